# Windows of tokens, for training and for evaluation.


rule sample:
    input:
        text=lambda wildcards: files_of(wildcards.dataset),
        model=PATHS.model("{model}"),
    output:
        PATHS.samples("{model}", "{dataset}", "{windows}", "{packed}"),
    log:
        LOGS / "sample" / "{model}" / "{dataset}-{windows}{packed}.log",
    benchmark:
        BENCHMARKS / "sample" / "{model}" / "{dataset}-{windows}{packed}.tsv"
    threads: 1
    resources:
        mem_mb=memory(3000),
        runtime=minutes(60),
    params:
        spec=lambda wildcards: as_json(
            commands.sample(
                CONFIG,
                wildcards.model,
                wildcards.dataset,
                int(wildcards.windows),
                bool(wildcards.packed),
            )
        ),
        code=code_of("sample"),
    shell:
        "python -m pipeline --threads {threads} sample --spec {params.spec:q}"
        " --dataset-file {input.text:q} --model {input.model:q} --out {output:q} > {log:q} 2>&1"
