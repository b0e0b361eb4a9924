# Measurements: every cell of the grid by every method, and the full cache beside it.


def task_samples(wildcards):
    """Windows of a task's data set."""
    name = wildcards.get("task")
    task = TASKS[name] if name else CONFIG["fidelity"]
    return samples_of(wildcards.model, task["dataset"], task["windows"])


def trained_kernels(wildcards):
    """Kernels that a cell compares: one for every train sparsity."""
    if not grid.needs_training(CONFIG):
        return []
    return [
        kernels_of(wildcards.model, wildcards.policy, sparsity)
        for sparsity in GRID["train_sparsities"]
    ]


def cell_arguments(wildcards, input):
    """What names a cell on the command line; its words are quoted here."""
    budget = grid.budget(CONFIG, wildcards.model, float(wildcards.sparsity))
    words = [
        "--policy",
        wildcards.policy,
        "--budget",
        budget,
        "--scores",
        GRID["scores"],
    ]
    words += ["--methods", *GRID["methods"], "--seed", SEED]
    words += ["--kernel-size", TRAIN["kernel"]["kernel_size"]]
    pairs = list(zip(GRID["train_sparsities"], input.kernels))
    words += (
        ["--kernels", *(f"{sparsity}={path}" for sparsity, path in pairs)]
        if pairs
        else []
    )
    return " ".join(shlex.quote(str(word)) for word in words)


def cell_label(wildcards):
    """Columns that say what a file of measurements is about."""
    sparsity = wildcards.get("sparsity")
    label = {"model": wildcards.model, "task": wildcards.get("task", "fidelity")}
    return json.dumps(
        label | {"sparsity": None if sparsity is None else float(sparsity)}
    )


rule evaluate:
    input:
        model=SCRATCH / "models" / "{model}",
        samples=task_samples,
        kernels=trained_kernels,
    output:
        SCRATCH / "evaluations" / "{model}" / "{task}" / "{policy}-{sparsity}.parquet",
    log:
        LOGS / "evaluate" / "{model}" / "{task}" / "{policy}-{sparsity}.log",
    benchmark:
        BENCHMARKS / "evaluate" / "{model}" / "{task}" / "{policy}-{sparsity}.tsv"
    retries: 1
    threads: 1
    resources:
        mem_mb=model_memory,
        runtime=480,
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
        " {params.cell} --label {params.label:q} --out {output:q} > {log:q} 2>&1"


use rule evaluate as evaluate_full with:
    input:
        model=SCRATCH / "models" / "{model}",
        samples=task_samples,
    output:
        SCRATCH / "evaluations" / "{model}" / "{task}" / "full.parquet",
    log:
        LOGS / "evaluate" / "{model}" / "{task}" / "full.log",
    benchmark:
        BENCHMARKS / "evaluate" / "{model}" / "{task}" / "full.tsv"
    params:
        cell="",


use rule evaluate as fidelity with:
    input:
        model=SCRATCH / "models" / "{model}",
        samples=task_samples,
        kernels=trained_kernels,
    output:
        SCRATCH / "fidelity" / "{model}" / "{policy}-{sparsity}.parquet",
    log:
        LOGS / "fidelity" / "{model}" / "{policy}-{sparsity}.log",
    benchmark:
        BENCHMARKS / "fidelity" / "{model}" / "{policy}-{sparsity}.tsv"
    params:
        step="fidelity",
        code=code_of("fidelity"),
