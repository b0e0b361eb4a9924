# Generated summaries: prompts once for each model and task, then every cell by every method.


rule prompts:
    input:
        text=task_source("dataset"),
        shots=task_source("demonstration_dataset"),
        model=SCRATCH / "models" / "{model}",
    output:
        SCRATCH / "prompts" / "{model}" / "{task}{study}.json",
    log:
        LOGS / "prompts" / "{model}" / "{task}{study}.log",
    benchmark:
        BENCHMARKS / "prompts" / "{model}" / "{task}{study}.tsv"
    threads: 1
    resources:
        mem_mb=memory(2000),
        runtime=minutes(60),
    params:
        prompts=prompt_arguments,
        wording=lambda wildcards: str(get_template(TASKS[wildcards.task]["template"])),
        seed=SEED,
        code=code_of("prompts"),
    shell:
        "python -m pipeline --threads {threads} prompts {params.prompts}"
        " --dataset-file {input.text:q} --shots-file {input.shots:q} --model {input.model:q}"
        " --seed {params.seed} --out {output:q} > {log:q} 2>&1"


rule summaries:
    input:
        model=SCRATCH / "models" / "{model}",
        prompts=SCRATCH / "prompts" / "{model}" / "{task}{study}.json",
        kernels=trained_kernels,
    output:
        SCRATCH / "summaries" / "{model}" / "{task}" / "{policy}-{sparsity}{study}.parquet",
    log:
        LOGS / "summaries" / "{model}" / "{task}" / "{policy}-{sparsity}{study}.log",
    benchmark:
        BENCHMARKS / "summaries" / "{model}" / "{task}" / "{policy}-{sparsity}{study}.tsv"
    threads: 1
    resources:
        mem_mb=model_memory,
        runtime=minutes(1440),
        gpu=GPUS,
    params:
        dtype=lambda wildcards: MODELS[wildcards.model]["dtype"],
        device=DEVICE,
        decoding=decoding_arguments,
        cell=cell_arguments,
        label=cell_label,
        resume=unfinished,
        code=code_of("summaries"),
    shell:
        "python -m pipeline --threads {threads} summaries --model {input.model:q}"
        " --dtype {params.dtype} --device {params.device} --prompts {input.prompts:q}"
        " {params.decoding} {params.cell} --kernels {input.kernels:q} --label {params.label:q}"
        " --resume {params.resume:q} --out {output:q} > {log:q} 2>&1"


use rule summaries as summaries_full with:
    output:
        SCRATCH / "summaries" / "{model}" / "{task}" / "full{study}.parquet",
    log:
        LOGS / "summaries" / "{model}" / "{task}" / "full{study}.log",
    benchmark:
        BENCHMARKS / "summaries" / "{model}" / "{task}" / "full{study}.tsv"
    params:
        cell="",


rule examples:
    input:
        [
            cell_file(cell)
            for cell in grid.task_cells(CONFIG, "summaries")
            if cell.study == grid.GRID
        ],
    output:
        page=report(
            results("examples.html"),
            category=TEXTS,
            caption="../report/examples.rst",
            labels=titled("Figures 2, 12, 13: Summaries side by side"),
        ),
        markdown=results("examples.md"),
    log:
        LOGS / "examples.log",
    benchmark:
        BENCHMARKS / "examples.tsv"
    threads: 1
    resources:
        mem_mb=memory(1000),
        runtime=minutes(10),
    params:
        code=code_of("examples"),
    shell:
        "python -m pipeline examples --cells {input:q} --out {output.page:q} > {log:q} 2>&1"
