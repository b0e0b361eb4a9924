# From measurements to what people look at: the tidy table, tables, figures, provenance.


rule tabulate:
    input:
        paths.measured(CONFIG),
    output:
        TIDY,
    log:
        LOGS / "tabulate.log",
    benchmark:
        BENCHMARKS / "tabulate.tsv"
    threads: 1
    resources:
        mem_mb=memory(2000),
        runtime=minutes(20),
    params:
        spec=told(commands.tabulate(CONFIG)),
        code=code_of("tabulate"),
    shell:
        "python -m pipeline tabulate --spec {params.spec:q} --cells {input:q} --out {output:q}"
        " > {log:q} 2>&1"


rule tables:
    input:
        tidy=TIDY,
        curves=paths.curves(CONFIG),
        operators=paths.latencies(CONFIG, "operators.parquet"),
    output:
        results("{name}.parquet", name=["results", "curves", "operators"]),
        results("results.csv"),
        results("tables/{name}.{form}", name=TABLES, form=["md", "csv", "tex"]),
        [
            report(
                results(f"tables/{name}.html"),
                category=shown.section,
                caption=f"../report/{name}.rst",
                labels=titled(shown.title),
            )
            for name, shown in TABLES.items()
        ],
    log:
        LOGS / "tables.log",
    benchmark:
        BENCHMARKS / "tables.tsv"
    threads: 1
    resources:
        mem_mb=memory(2000),
        runtime=minutes(10),
    params:
        spec=told({"models": MODELS}),
        folder=PATHS.results,
        shown=resource("paper.yaml", *PAGE),
        code=code_of("tables"),
    shell:
        "python -m pipeline tables --spec {params.spec:q} --tidy {input.tidy:q}"
        " --curves {input.curves:q} --operators {input.operators:q} --out {params.folder:q}"
        " > {log:q} 2>&1"


rule compare:
    input:
        tidy=TIDY,
    output:
        page=report(
            results("paper_vs_ours.html"),
            category=COMPARISON,
            caption="../report/paper_vs_ours.rst",
            labels=titled("The paper's numbers and ours"),
        ),
        markdown=results("paper_vs_ours.md"),
    log:
        LOGS / "compare.log",
    benchmark:
        BENCHMARKS / "compare.tsv"
    threads: 1
    resources:
        mem_mb=memory(2000),
        runtime=minutes(10),
    params:
        spec=told(commands.compare(CONFIG)),
        shown=resource("paper.yaml", *PAGE),
        code=code_of("compare"),
    shell:
        "python -m pipeline compare --spec {params.spec:q} --tidy {input.tidy:q}"
        " --out {output.markdown:q} > {log:q} 2>&1"


rule plot:
    input:
        tidy=TIDY,
        curves=paths.curves(CONFIG),
        maps=paths.maps(CONFIG, "safetensors"),
        spectra=paths.maps(CONFIG, "spectrum.parquet"),
    output:
        results("figures/{name}.png", name=FIGURES),
        [
            report(
                results(f"figures/{name}.svg"),
                category=shown.section,
                caption=f"../report/{name}.rst",
                labels=titled(shown.title),
            )
            for name, shown in FIGURES.items()
        ],
    log:
        LOGS / "plot.log",
    benchmark:
        BENCHMARKS / "plot.tsv"
    threads: 1
    resources:
        mem_mb=memory(2000),
        runtime=minutes(10),
    params:
        folder=PATHS.results / "figures",
        code=code_of("plot"),
    shell:
        "python -m pipeline plot --tidy {input.tidy:q} --curves {input.curves:q}"
        " --maps {input.maps:q} --spectra {input.spectra:q} --out {params.folder:q} > {log:q} 2>&1"


rule provenance:
    input:
        files=hashed_inputs(),
        results=[
            results("{name}.parquet", name=["results", "curves", "operators"]),
            results("results.csv"),
            tables(),
            figures(),
            examples(),
            comparison(),
        ],
    output:
        config=results("config.json"),
        record=results("provenance.json"),
        page=report(
            results("provenance.html"),
            category=PROVENANCE,
            caption="../report/provenance.rst",
            labels=titled("Provenance"),
        ),
    log:
        LOGS / "provenance.log",
    benchmark:
        BENCHMARKS / "provenance.tsv"
    threads: 1
    resources:
        mem_mb=memory(1000),
        runtime=minutes(10),
    params:
        spec=told({"config": CONFIG, "config_hash": configuration.config_hash(CONFIG)}),
        names=[str(path) for path in hashed_inputs()],
        shown=resource(*PAGE),
        code=code_of("provenance"),
    shell:
        "python -m pipeline provenance --spec {params.spec:q} --inputs {input.files:q}"
        " --names {params.names:q} --results {input.results:q} --out {output.record:q}"
        " --config-out {output.config:q} > {log:q} 2>&1"


# Snakemake's own report of what is finished, as a page that opens without a network. It is asked
# for the record, which follows everything shown, so that it does not wait for itself.
rule page:
    input:
        config=results("config.json"),
        shown=results("provenance.html"),
    output:
        results("report.html"),
    log:
        LOGS / "page.log",
    benchmark:
        BENCHMARKS / "page.tsv"
    threads: 1
    resources:
        mem_mb=memory(1000),
        runtime=minutes(10),
    params:
        snakefile=os.path.relpath(workflow.main_snakefile),
        storage=storage_options(),
    shell:
        "snakemake --snakefile {params.snakefile:q} --configfile {input.config:q}"
        " --workflow-profile none --cores 1 --nolock {params.storage}"
        " --report {output:q} provenance > {log:q} 2>&1"
