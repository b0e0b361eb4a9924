# Measurements of text in windows: every cell by every method, the full cache as one of them.


rule evaluate:
    input:
        model=PATHS.model("{model}"),
        samples=lambda wildcards: PATHS.samples_of(wildcards.model, TASKS[wildcards.task]),
        kernels=trained_kernels,
    output:
        SCRATCH / "evaluations" / "{model}" / "{task}" / "{cell}.parquet",
    log:
        LOGS / "evaluate" / "{model}" / "{task}" / "{cell}.log",
    benchmark:
        BENCHMARKS / "evaluate" / "{model}" / "{task}" / "{cell}.tsv"
    threads: 1
    resources:
        mem_mb=model_memory,
        runtime=minutes(480),
        gpu=GPUS,
    params:
        step="evaluate",
        spec=measure_spec,
        code=code_of("evaluate"),
    shell:
        "python -m pipeline --threads {threads} {params.step} --spec {params.spec:q}"
        " --model {input.model:q} --samples {input.samples:q} --kernels {input.kernels:q}"
        " --out {output:q} > {log:q} 2>&1"


use rule evaluate as fidelity with:
    input:
        model=PATHS.model("{model}"),
        samples=lambda wildcards: PATHS.samples_of(wildcards.model, CONFIG["fidelity"]),
        kernels=trained_kernels,
    output:
        SCRATCH / "fidelity" / "{model}" / "{cell}.parquet",
    log:
        LOGS / "fidelity" / "{model}" / "{cell}.log",
    benchmark:
        BENCHMARKS / "fidelity" / "{model}" / "{cell}.tsv"
    params:
        step="fidelity",
        code=code_of("fidelity"),


rule maps:
    input:
        model=PATHS.model("{model}"),
        samples=lambda wildcards: PATHS.samples_of(wildcards.model, CONFIG["maps"]),
        kernels=lambda wildcards: [
            PATHS.kernels(training) for training in commands.map_trainings(CONFIG, wildcards.model)
        ],
    output:
        maps=PATHS.maps("{model}", "safetensors"),
        spectrum=PATHS.maps("{model}", "spectrum.parquet"),
    log:
        LOGS / "maps" / "{model}.log",
    benchmark:
        BENCHMARKS / "maps" / "{model}.tsv"
    threads: 1
    resources:
        mem_mb=model_memory,
        runtime=minutes(60),
        gpu=GPUS,
    params:
        spec=lambda wildcards: as_json(commands.maps(CONFIG, wildcards.model)),
        code=code_of("maps"),
    shell:
        "python -m pipeline --threads {threads} maps --spec {params.spec:q} --model {input.model:q}"
        " --samples {input.samples:q} --kernels {input.kernels:q} --out {output.maps:q}"
        " --spectrum {output.spectrum:q} > {log:q} 2>&1"
