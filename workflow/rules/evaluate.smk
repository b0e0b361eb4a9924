# Measurements: every cell of the grid by every method, and the full cache beside it.


rule evaluate:
    input:
        model=SCRATCH / "models" / "{model}",
        samples=task_samples,
        kernels=trained_kernels,
    output:
        SCRATCH / "evaluations" / "{model}" / "{task}" / "{policy}-{sparsity}{study}.parquet",
    log:
        LOGS / "evaluate" / "{model}" / "{task}" / "{policy}-{sparsity}{study}.log",
    benchmark:
        BENCHMARKS / "evaluate" / "{model}" / "{task}" / "{policy}-{sparsity}{study}.tsv"
    threads: 1
    resources:
        mem_mb=model_memory,
        runtime=minutes(480),
        gpu=GPUS,
    params:
        step="evaluate",
        dtype=lambda wildcards: MODELS[wildcards.model]["dtype"],
        device=DEVICE,
        cell=cell_arguments,
        label=cell_label,
        code=code_of("evaluate"),
    shell:
        "python -m pipeline --threads {threads} {params.step} --model {input.model:q}"
        " --dtype {params.dtype} --device {params.device} --samples {input.samples:q}"
        " {params.cell} --kernels {input.kernels:q} --label {params.label:q} --out {output:q}"
        " > {log:q} 2>&1"


use rule evaluate as evaluate_full with:
    output:
        SCRATCH / "evaluations" / "{model}" / "{task}" / "full.parquet",
    log:
        LOGS / "evaluate" / "{model}" / "{task}" / "full.log",
    benchmark:
        BENCHMARKS / "evaluate" / "{model}" / "{task}" / "full.tsv"
    params:
        cell="",


use rule evaluate as fidelity with:
    output:
        SCRATCH / "fidelity" / "{model}" / "{policy}-{sparsity}.parquet",
    log:
        LOGS / "fidelity" / "{model}" / "{policy}-{sparsity}.log",
    benchmark:
        BENCHMARKS / "fidelity" / "{model}" / "{policy}-{sparsity}.tsv"
    params:
        step="fidelity",
        code=code_of("fidelity"),


rule maps:
    input:
        model=SCRATCH / "models" / "{model}",
        samples=map_samples,
        kernels=map_kernels,
    output:
        maps=SCRATCH / "maps" / "{model}.safetensors",
        spectrum=SCRATCH / "maps" / "{model}.spectrum.parquet",
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
        dtype=lambda wildcards: MODELS[wildcards.model]["dtype"],
        device=DEVICE,
        shown=map_arguments,
        code=code_of("maps"),
    shell:
        "python -m pipeline --threads {threads} maps --model {input.model:q} --dtype {params.dtype}"
        " --device {params.device} --samples {input.samples:q} {params.shown}"
        " --kernels {input.kernels:q} --out {output.maps:q} --spectrum {output.spectrum:q}"
        " > {log:q} 2>&1"
