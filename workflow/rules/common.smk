# The configuration, and what all rules share: names of files, wildcards and resources.

import os
import re
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

# Steps run as `python -m pipeline`; rules need the same package to plan.
sys.path.insert(0, str(Path(workflow.basedir)))

from pipeline.download.packages import packages
from pipeline.errors import LessError
from pipeline.experiment import commands, grid, latency, paths
from pipeline.experiment import config as configuration
from pipeline.experiment.commands import as_json
from pipeline.report.contents import COMPARISON, FIGURES, PROVENANCE, TABLES, TEXTS
from pipeline.runtime.code import code_of

try:
    CONFIG = configuration.complete(config)
except LessError as error:
    raise WorkflowError(f"configuration: {error}")

PATHS = paths.Paths.of(CONFIG)
SCRATCH, LOGS, BENCHMARKS = PATHS.scratch, PATHS.logs, PATHS.benchmarks
MODELS, TASKS = CONFIG["models"], CONFIG["tasks"]
GPUS = 1 if CONFIG["device"] == "cuda" else 0
# From here on everything is made where Snakemake runs, and stays there, also where there is no
# shared file system: it is small, and people look at it.
TIDY = local(PATHS.tidy)


wildcard_constraints:
    model="|".join(map(re.escape, MODELS)),
    dataset="|".join(map(re.escape, CONFIG["datasets"])),
    windows=r"\d+",
    packed="(-packed)?",
    part=r"\d+",
    kernel="|".join(map(re.escape, grid.trained_kernels(CONFIG))) or "none",
    training=grid.TRAINING,
    task="|".join(map(re.escape, TASKS)),
    cell=grid.CELL,
    setting=latency.PATTERN,
    file="|".join(re.escape(package.file) for package in packages().values()),


def cell_of(wildcards):
    """The cell of the grid that a rule measures."""
    return grid.Cell.of(wildcards.model, wildcards.get("task", commands.FIDELITY), wildcards.cell)


def training_of(wildcards):
    """The training that a rule is a part of."""
    return grid.Training.of(wildcards.model, wildcards.kernel, wildcards.training)


def trained_kernels(wildcards):
    """Input: kernels that a cell compares."""
    return [PATHS.kernels(training) for training in grid.trainings_of(CONFIG, cell_of(wildcards))]


def measure_spec(wildcards):
    """Parameter: what a cell measures."""
    return as_json(commands.measure(CONFIG, cell_of(wildcards)))


def unfinished(wildcards):
    """Parameter: where a cell keeps its finished documents until all are."""
    folder = paths.KINDS[TASKS[wildcards.task]["kind"]].folder
    return PATHS.unfinished(folder, wildcards.model, wildcards.task, wildcards.cell)


def files_of(dataset):
    """The file that a data set is read from, if any."""
    file, needed = paths.text_file(CONFIG, dataset)
    return [file] if file and (needed or exists(str(file))) else []


def task_source(key):
    """Input: the file that the data set under a key of the task is read from, if any."""
    return lambda wildcards: (
        files_of(TASKS[wildcards.task][key]) if key in TASKS[wildcards.task] else []
    )


def results(pattern, **values):
    """Files that people look at; they stay where Snakemake runs."""
    return local(expand(PATHS.results / pattern, **values))


def growing(base):
    """A resource that grows with the attempt, so that a retry after a kill has more."""
    return lambda wildcards, attempt: base * attempt


memory = minutes = growing  # in MB; in minutes


def model_memory(wildcards, attempt):
    """Memory in MB of a job that loads a model."""
    return MODELS[wildcards.model]["memory_mb"] * attempt
