# Tasks of lm-evaluation-harness: every cell by every method, the full cache as one of them.


rule harness:
    input:
        text=task_source("dataset"),
        shots=task_source("fewshot_dataset"),
        model=PATHS.model("{model}"),
        kernels=trained_kernels,
    output:
        SCRATCH / "harness" / "{model}" / "{task}" / "{cell}.parquet",
    log:
        LOGS / "harness" / "{model}" / "{task}" / "{cell}.log",
    benchmark:
        BENCHMARKS / "harness" / "{model}" / "{task}" / "{cell}.tsv"
    threads: 1
    resources:
        mem_mb=model_memory,
        runtime=minutes(1440),
        gpu=GPUS,
    params:
        spec=measure_spec,
        definition=lambda wildcards: commands.task_definition(CONFIG, wildcards.task),
        resume=unfinished,
        code=code_of("harness"),
    shell:
        "python -m pipeline --threads {threads} harness --spec {params.spec:q}"
        " --model {input.model:q} --dataset-file {input.text:q} --shots-file {input.shots:q}"
        " --kernels {input.kernels:q} --resume {params.resume:q} --out {output:q} > {log:q} 2>&1"
