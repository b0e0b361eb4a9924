# From measurements to what people look at: the tidy table, tables, figures, provenance.


rule tabulate:
    input:
        measured(),
    output:
        SCRATCH / "tidy.parquet",
    log:
        LOGS / "tabulate.log",
    benchmark:
        BENCHMARKS / "tabulate.tsv"
    threads: 1
    resources:
        mem_mb=memory(2000),
        runtime=20,
    params:
        experiment=CONFIG["experiment"],
        config_hash=configuration.config_hash(CONFIG),
        seed=SEED,
        bootstrap=CONFIG["bootstrap"],
        code=code_of("tabulate"),
    shell:
        "python -m pipeline tabulate --cells {input:q} --experiment {params.experiment}"
        " --config-hash {params.config_hash} --seed {params.seed} --bootstrap {params.bootstrap}"
        " --out {output:q} > {log:q} 2>&1"


rule tables:
    input:
        tidy=SCRATCH / "tidy.parquet",
        curves=all_curves(),
    output:
        RESULTS / "results.parquet",
        RESULTS / "results.csv",
        expand(RESULTS / "tables" / "{name}.{form}", name=TABLES, form=["md", "tex"]),
        [
            report(
                RESULTS / "tables" / f"{name}.csv",
                category="Tables",
                caption=f"../report/{name}.rst",
                labels={"table": title},
            )
            for name, title in TABLES.items()
        ],
    log:
        LOGS / "tables.log",
    benchmark:
        BENCHMARKS / "tables.tsv"
    threads: 1
    resources:
        mem_mb=memory(2000),
        runtime=10,
    params:
        folder=RESULTS,
        code=code_of("tables"),
    shell:
        "python -m pipeline tables --tidy {input.tidy:q} --curves {input.curves:q}"
        " --out {params.folder:q} > {log:q} 2>&1"


rule plot:
    input:
        tidy=SCRATCH / "tidy.parquet",
        curves=all_curves(),
    output:
        expand(RESULTS / "figures" / "{name}.png", name=FIGURES),
        [
            report(
                RESULTS / "figures" / f"{name}.svg",
                category="Figures",
                caption=f"../report/{name}.rst",
                labels={"figure": title},
            )
            for name, title in FIGURES.items()
        ],
    log:
        LOGS / "plot.log",
    benchmark:
        BENCHMARKS / "plot.tsv"
    threads: 1
    resources:
        mem_mb=memory(2000),
        runtime=10,
    params:
        folder=RESULTS / "figures",
        code=code_of("plot"),
    shell:
        "python -m pipeline plot --tidy {input.tidy:q} --curves {input.curves:q}"
        " --out {params.folder:q} > {log:q} 2>&1"


rule provenance:
    input:
        files=hashed_inputs(),
        results=[SCRATCH / "tidy.parquet", RESULTS / "results.csv"],
    output:
        config=RESULTS / "config.json",
        provenance=report(
            RESULTS / "provenance.json",
            category="Provenance",
            caption="../report/provenance.rst",
            labels={"file": "Provenance"},
        ),
    log:
        LOGS / "provenance.log",
    benchmark:
        BENCHMARKS / "provenance.tsv"
    threads: 1
    resources:
        mem_mb=memory(1000),
        runtime=10,
    params:
        config=json.dumps(CONFIG, sort_keys=True),
        config_hash=configuration.config_hash(CONFIG),
        code=code_of("provenance"),
    shell:
        "python -m pipeline provenance --config {params.config:q}"
        " --config-hash {params.config_hash} --inputs {input.files:q}"
        " --results {input.results:q} --out {output.provenance:q}"
        " --config-out {output.config:q} > {log:q} 2>&1"


# Snakemake's own report of what is finished, as a page that opens without a network. It is asked
# for the tables and figures alone, so that it does not wait for itself.
rule page:
    input:
        config=RESULTS / "config.json",
        shown=[tables(), figures(), examples(), RESULTS / "provenance.json"],
    output:
        RESULTS / "report.html",
    log:
        LOGS / "page.log",
    benchmark:
        BENCHMARKS / "page.tsv"
    threads: 1
    resources:
        mem_mb=memory(1000),
        runtime=10,
    params:
        snakefile=os.path.relpath(workflow.main_snakefile),
    shell:
        "snakemake --snakefile {params.snakefile:q} --configfile {input.config:q}"
        " --workflow-profile none --cores 1 --nolock --report {output:q} {input.shown:q}"
        " > {log:q} 2>&1"
