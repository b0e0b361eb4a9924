# Tasks of lm-evaluation-harness: every cell by every method, and the full cache beside it.


rule harness:
    input:
        text=task_source("dataset"),
        shots=task_source("fewshot_dataset"),
        model=SCRATCH / "models" / "{model}",
        kernels=trained_kernels,
    output:
        SCRATCH / "harness" / "{model}" / "{task}" / "{policy}-{sparsity}{study}.parquet",
    log:
        LOGS / "harness" / "{model}" / "{task}" / "{policy}-{sparsity}{study}.log",
    benchmark:
        BENCHMARKS / "harness" / "{model}" / "{task}" / "{policy}-{sparsity}{study}.tsv"
    threads: 1
    resources:
        mem_mb=model_memory,
        runtime=minutes(1440),
        gpu=GPUS,
    params:
        dtype=lambda wildcards: MODELS[wildcards.model]["dtype"],
        device=DEVICE,
        task=harness_arguments,
        definition=task_definition,
        cell=cell_arguments,
        label=cell_label,
        resume=unfinished,
        code=code_of("harness"),
    shell:
        "python -m pipeline --threads {threads} harness --model {input.model:q}"
        " --dtype {params.dtype} --device {params.device} {params.task}"
        " --dataset-file {input.text:q} --shots-file {input.shots:q} {params.cell}"
        " --kernels {input.kernels:q} --label {params.label:q} --resume {params.resume:q}"
        " --out {output:q} > {log:q} 2>&1"


use rule harness as harness_full with:
    output:
        SCRATCH / "harness" / "{model}" / "{task}" / "full.parquet",
    log:
        LOGS / "harness" / "{model}" / "{task}" / "full.log",
    benchmark:
        BENCHMARKS / "harness" / "{model}" / "{task}" / "full.tsv"
    params:
        cell="",
