# The whole experiment: text and weights to samples, features, kernels, evaluations, tables and
# figures. `snakemake` runs the embedded default (config.yaml); another experiment of the same
# schema is chosen with `snakemake --configfile experiments/<name>.yaml`.

from snakemake.utils import min_version

min_version("9.0")


# Not with --configfile: Snakemake would merge the two, and an experiment is one file.
if not workflow.configfiles:

    configfile: "config.yaml"


# What envs/Containerfile begins with: Snakemake wants one named. Jobs need what that file adds, so
# run Snakemake itself in its image (docs/cluster.md).
container: "docker://python:3.11-slim"


# For `--sdm conda`, otherwise without effect.
conda: "envs/environment.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/site.smk"
include: "workflow/rules/shown.smk"
include: "workflow/rules/model.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/features.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/harness.smk"
include: "workflow/rules/latency.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/summaries.smk"


localrules:
    all,
    fetch,  # where Snakemake runs there is a network, on a cluster's nodes often none


onstart:
    refuse_limits_on_arrays()


rule all:
    input:
        # The tidy table lies in scratch, so a checkout that carries committed results but no
        # scratch runs everything.
        TIDY,
        tables(),
        figures(),
        examples(),
        comparison(),
        results("report.html"),


# A part of the grid that a long experiment can be run by: the measurements of one policy.
for policy in CONFIG["grid"]["policies"]:

    rule:
        name:
            f"policy_{policy}"
        input:
            [paths.cell_file(CONFIG, cell) for cell in grid.cells_of_policy(CONFIG, policy)],
        localrule: True
