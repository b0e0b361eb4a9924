# Latency and memory: a job for each model and setting, in which all methods take turns.


rule latency:
    input:
        model=latency_model,
    output:
        times=SCRATCH / "latency" / "{model}" / "{setting}.parquet",
        operators=SCRATCH / "latency" / "{model}" / "{setting}.operators.parquet",
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
        weights=latency_weights,
        measured=latency_arguments,
        code=code_of("latency"),
    shell:
        "python -m pipeline --threads {threads} latency --model {input.model:q} {params.weights}"
        " {params.measured} --out {output.times:q} --operators {output.operators:q} > {log:q} 2>&1"
