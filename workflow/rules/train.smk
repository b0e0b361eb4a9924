# Kernels: one job for each model, policy, train sparsity and bundle of layers.


rule train:
    input:
        features_for,
    output:
        kernels=SCRATCH
        / "kernels"
        / "{model}"
        / "{policy}-{sparsity}{size}"
        / "part{part}.safetensors",
        curves=SCRATCH / "kernels" / "{model}" / "{policy}-{sparsity}{size}" / "part{part}.parquet",
    log:
        LOGS / "train" / "{model}" / "{policy}-{sparsity}{size}" / "part{part}.log",
    benchmark:
        BENCHMARKS / "train" / "{model}" / "{policy}-{sparsity}{size}" / "part{part}.tsv"
    threads: 1
    resources:
        mem_mb=memory(TRAIN["memory_mb"]),
        runtime=minutes(240),
        gpu=GPUS,
    params:
        layers=lambda wildcards: train_ranges(wildcards.model)[int(wildcards.part)],
        budget=lambda wildcards: grid.budget(CONFIG, wildcards.model, float(wildcards.sparsity)),
        scores=GRID["scores"],
        kernel=kernel_arguments,
        recipe=json.dumps(TRAIN["recipe"]),
        on_harm=TRAIN["on_harm"],
        dtype=TRAIN["compute_dtype"],
        device=DEVICE,
        seed=SEED,
        resume=lambda wildcards: SCRATCH.joinpath(
            "unfinished",
            wildcards.model,
            f"{wildcards.policy}-{wildcards.sparsity}{wildcards.size}",
            f"part{wildcards.part}",
        ),
        code=code_of("train"),
    shell:
        "python -m pipeline --threads {threads} train --features {input:q} --layers {params.layers}"
        " --policy {wildcards.policy} --budget {params.budget} --scores {params.scores}"
        " --sizes {params.kernel:q} --recipe {params.recipe:q} --on-harm {params.on_harm}"
        " --compute-dtype {params.dtype} --device {params.device} --seed {params.seed}"
        " --resume {params.resume:q} --out {output.kernels:q} --curves {output.curves:q}"
        " > {log:q} 2>&1"


rule collect:
    input:
        kernels=parts_of("safetensors"),
        curves=parts_of("parquet"),
    output:
        kernels=SCRATCH / "kernels" / "{model}" / "{policy}-{sparsity}{size}.safetensors",
        curves=SCRATCH / "kernels" / "{model}" / "{policy}-{sparsity}{size}.curves.parquet",
    log:
        LOGS / "collect" / "{model}" / "{policy}-{sparsity}{size}.log",
    benchmark:
        BENCHMARKS / "collect" / "{model}" / "{policy}-{sparsity}{size}.tsv"
    threads: 1
    resources:
        mem_mb=memory(2000),
        runtime=minutes(10),
    params:
        label=lambda wildcards: json.dumps(
            {
                "model": wildcards.model,
                "policy": wildcards.policy,
                "train_sparsity": float(wildcards.sparsity),
            }
        ),
        code=code_of("collect"),
    shell:
        "python -m pipeline collect --kernels {input.kernels:q} --curves {input.curves:q}"
        " --label {params.label:q} --out {output.kernels:q} --curves-out {output.curves:q}"
        " > {log:q} 2>&1"
