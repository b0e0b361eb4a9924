# Attention features on disk, a folder for each bundle of layers.

from pipeline.experiment.cost import bundles_at_once

# Features are by far the largest files; without `dump.keep` they go once every layer is trained.
kept_or_temporary = (lambda path: path) if CONFIG["dump"]["keep"] else temp


rule dump:
    input:
        model=PATHS.model("{model}"),
        samples=lambda wildcards: PATHS.samples_of(wildcards.model, CONFIG["train"]),
        # kernels whose training frees the disk for this bundle, if disk is bounded
        room=lambda wildcards: paths.freed_by(
            CONFIG, wildcards.model, int(wildcards.part), bundles_at_once(CONFIG)
        ),
    output:
        kept_or_temporary(directory(PATHS.features("{model}", "{part}"))),
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
        spec=lambda wildcards: as_json(commands.dump(CONFIG, wildcards.model, int(wildcards.part))),
        code=code_of("dump"),
    shell:
        "python -m pipeline --threads {threads} dump --spec {params.spec:q} --model {input.model:q}"
        " --samples {input.samples:q} --out {output:q} > {log:q} 2>&1"
