# Generated summaries: prompts once for each model and task, then every cell by every method.

from pipeline.text.prompts import get_template


rule prompts:
    input:
        text=task_source("dataset"),
        shots=task_source("demonstration_dataset"),
        model=PATHS.model("{model}"),
    output:
        SCRATCH / "prompts" / "{model}" / "{task}{length}.json",
    log:
        LOGS / "prompts" / "{model}" / "{task}{length}.log",
    benchmark:
        BENCHMARKS / "prompts" / "{model}" / "{task}{length}.tsv"
    wildcard_constraints:
        length=r"(-P\d+)?",
    threads: 1
    resources:
        mem_mb=memory(2000),
        runtime=minutes(60),
    params:
        # prompts have the name of a full cache, the grid's or that of a length
        spec=lambda wildcards: as_json(
            commands.prompts(
                CONFIG,
                grid.Cell.of(wildcards.model, wildcards.task, f"full{wildcards.length}"),
            )
        ),
        wording=lambda wildcards: str(get_template(TASKS[wildcards.task]["template"])),
        code=code_of("prompts"),
    shell:
        "python -m pipeline --threads {threads} prompts --spec {params.spec:q}"
        " --dataset-file {input.text:q} --shots-file {input.shots:q} --model {input.model:q}"
        " --out {output:q} > {log:q} 2>&1"


rule summaries:
    input:
        model=PATHS.model("{model}"),
        prompts=lambda wildcards: PATHS.prompts(cell_of(wildcards)),
        kernels=trained_kernels,
    output:
        SCRATCH / "summaries" / "{model}" / "{task}" / "{cell}.parquet",
    log:
        LOGS / "summaries" / "{model}" / "{task}" / "{cell}.log",
    benchmark:
        BENCHMARKS / "summaries" / "{model}" / "{task}" / "{cell}.tsv"
    threads: 1
    resources:
        mem_mb=model_memory,
        runtime=minutes(1440),
        gpu=GPUS,
    params:
        spec=measure_spec,
        resume=unfinished,
        code=code_of("summaries"),
    shell:
        "python -m pipeline --threads {threads} summaries --spec {params.spec:q}"
        " --model {input.model:q} --prompts {input.prompts:q} --kernels {input.kernels:q}"
        " --resume {params.resume:q} --out {output:q} > {log:q} 2>&1"


rule examples:
    input:
        [
            paths.cell_file(CONFIG, cell)
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
        shown=resource("examples.html"),
        code=code_of("examples"),
    shell:
        "python -m pipeline examples --cells {input:q} --out {output.page:q} > {log:q} 2>&1"
