# Latency and memory: a job for each model and setting, in which all methods take turns.


rule latency:
    input:
        # random weights are made on the device
        model=lambda wildcards: (
            [] if "random" in MODELS[wildcards.model]["weights"] else PATHS.model(wildcards.model)
        ),
    output:
        times=PATHS.latency("{model}", "{setting}", "parquet"),
        operators=PATHS.latency("{model}", "{setting}", "operators.parquet"),
    log:
        LOGS / "latency" / "{model}" / "{setting}.log",
    benchmark:
        BENCHMARKS / "latency" / "{model}" / "{setting}.tsv"
    # All cores: what runs beside it would be measured too.
    threads: all_cores()
    resources:
        mem_mb=model_memory,
        runtime=minutes(1440),
        gpu=GPUS,
    params:
        spec=lambda wildcards: as_json(commands.time(CONFIG, wildcards.model, wildcards.setting)),
        code=code_of("latency"),
    shell:
        "python -m pipeline --threads {threads} latency --spec {params.spec:q}"
        " --model {input.model:q} --out {output.times:q} --operators {output.operators:q}"
        " > {log:q} 2>&1"
