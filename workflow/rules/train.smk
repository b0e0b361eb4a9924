# Kernels: one job for each model, kernel, policy, train sparsity and bundle of layers.

KERNELS = SCRATCH / "kernels" / "{model}" / "{kernel}"


rule train:
    input:
        lambda wildcards: paths.features_for(CONFIG, wildcards.model, int(wildcards.part)),
    output:
        kernels=KERNELS / "{training}" / "part{part}.safetensors",
        curves=KERNELS / "{training}" / "part{part}.parquet",
    log:
        LOGS / "train" / "{model}" / "{kernel}" / "{training}" / "part{part}.log",
    benchmark:
        BENCHMARKS / "train" / "{model}" / "{kernel}" / "{training}" / "part{part}.tsv"
    threads: 1
    resources:
        mem_mb=memory(CONFIG["train"]["memory_mb"]),
        runtime=minutes(240),
        gpu=GPUS,
    params:
        spec=lambda wildcards: as_json(
            commands.train(CONFIG, training_of(wildcards), int(wildcards.part))
        ),
        resume=lambda wildcards: PATHS.unfinished(
            wildcards.model, wildcards.kernel, wildcards.training, f"part{wildcards.part}"
        ),
        code=code_of("train"),
    shell:
        "python -m pipeline --threads {threads} train --spec {params.spec:q} --features {input:q}"
        " --resume {params.resume:q} --out {output.kernels:q} --curves {output.curves:q}"
        " > {log:q} 2>&1"


rule collect:
    input:
        kernels=lambda wildcards: paths.parts_of(CONFIG, training_of(wildcards), "safetensors"),
        curves=lambda wildcards: paths.parts_of(CONFIG, training_of(wildcards), "parquet"),
    output:
        kernels=KERNELS / "{training}.safetensors",
        curves=KERNELS / "{training}.curves.parquet",
    log:
        LOGS / "collect" / "{model}" / "{kernel}" / "{training}.log",
    benchmark:
        BENCHMARKS / "collect" / "{model}" / "{kernel}" / "{training}.tsv"
    threads: 1
    resources:
        mem_mb=memory(2000),
        runtime=minutes(10),
    params:
        spec=lambda wildcards: as_json(commands.collect(training_of(wildcards))),
        code=code_of("collect"),
    shell:
        "python -m pipeline collect --spec {params.spec:q} --kernels {input.kernels:q}"
        " --curves {input.curves:q} --out {output.kernels:q} --curves-out {output.curves:q}"
        " > {log:q} 2>&1"
