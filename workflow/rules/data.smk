# Windows of tokens, for training and for evaluation.


rule sample:
    input:
        text=windows_source,
        model=SCRATCH / "models" / "{model}",
    output:
        SCRATCH / "samples" / "{model}" / "{dataset}-{windows}{packed}.safetensors",
    log:
        LOGS / "sample" / "{model}" / "{dataset}-{windows}{packed}.log",
    benchmark:
        BENCHMARKS / "sample" / "{model}" / "{dataset}-{windows}{packed}.tsv"
    threads: 1
    resources:
        mem_mb=memory(3000),
        runtime=minutes(60),
    params:
        dataset=lambda wildcards: json.dumps(CONFIG["datasets"][wildcards.dataset], sort_keys=True),
        length=lambda wildcards: MODELS[wildcards.model]["context"],
        pack=lambda wildcards: "--pack" if wildcards.packed else "",
        seed=SEED,
        code=code_of("sample"),
    shell:
        "python -m pipeline --threads {threads} sample --dataset {params.dataset:q}"
        " --dataset-file {input.text:q} --model {input.model:q} --length {params.length}"
        " --count {wildcards.windows} {params.pack} --seed {params.seed} --out {output:q}"
        " > {log:q} 2>&1"
