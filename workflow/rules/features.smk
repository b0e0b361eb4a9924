# Attention features on disk, a folder for each bundle of layers.


rule dump:
    input:
        model=SCRATCH / "models" / "{model}",
        samples=lambda wildcards: samples_of(
            wildcards.model, TRAIN["dataset"], TRAIN["sequences"], TRAIN["pack"]
        ),
        room=dump_after,
    output:
        kept_or_temporary(directory(SCRATCH / "features" / "{model}" / "part{part}")),
    log:
        LOGS / "dump" / "{model}" / "part{part}.log",
    benchmark:
        BENCHMARKS / "dump" / "{model}" / "part{part}.tsv"
    threads: 2
    resources:
        mem_mb=model_memory,
        runtime=minutes(240),
        gpu=GPUS,
    params:
        layers=lambda wildcards: dump_ranges(wildcards.model)[int(wildcards.part)],
        dtype=lambda wildcards: MODELS[wildcards.model]["dtype"],
        device=DEVICE,
        code=code_of("dump"),
    shell:
        "python -m pipeline --threads {threads} dump --model {input.model:q}"
        " --dtype {params.dtype} --device {params.device} --samples {input.samples:q}"
        " --layers {params.layers} --out {output:q} > {log:q} 2>&1"
