# Configuration, the grid, and the names of all files between rules.

import json
import re
import shlex
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

# Steps run as `python -m pipeline`; rules need the same package to plan.
sys.path.insert(0, str(Path(workflow.basedir)))

from pipeline import config as configuration
from pipeline import grid
from pipeline.catalogue import FIGURES, TABLES
from pipeline.errors import LessError
from pipeline.methods import METHODS
from pipeline.packages import packages
from pipeline.sources import code_of

try:
    CONFIG = configuration.complete(config)
except LessError as error:
    raise WorkflowError(f"configuration: {error}")

SCRATCH = Path(CONFIG["scratch"]) / CONFIG["experiment"]
DOWNLOADS = Path(CONFIG["scratch"]) / "downloads"
RESULTS = Path("results") / CONFIG["experiment"]
LOGS = Path("logs") / CONFIG["experiment"]
BENCHMARKS = SCRATCH / "benchmarks"

MODELS, TASKS, TRAIN, GRID = (
    CONFIG[key] for key in ("models", "tasks", "train", "grid")
)
SEED, DEVICE = CONFIG["seed"], CONFIG["device"]
GPUS = 1 if DEVICE == "cuda" else 0
DATA_DIR = CONFIG["data_dir"]
FORMATS = ["md", "csv", "tex"]


wildcard_constraints:
    model="|".join(map(re.escape, MODELS)),
    dataset="|".join(map(re.escape, CONFIG["datasets"])),
    task="|".join(map(re.escape, TASKS)),
    policy="|".join(GRID["policies"]),
    sparsity=r"\d+(\.\d+)?(e-\d+)?",
    part=r"\d+",
    file="|".join(re.escape(package.file) for package in packages().values()),
    windows=r"\d+",


def samples_of(model, dataset, count, pack=False):
    """Windows of a data set, cut to a model's context."""
    packed = "-packed" if pack else ""
    return SCRATCH / "samples" / model / f"{dataset}-{count}{packed}.safetensors"


def features_of(model, part):
    """Features of one bundle of layers."""
    return SCRATCH / "features" / model / f"part{part}"


def kernels_of(model, policy, sparsity):
    """Kernels of all layers, trained for a policy at a sparsity."""
    return SCRATCH / "kernels" / model / f"{policy}-{sparsity}.safetensors"


def curves_of(model, policy, sparsity):
    """Loss curves of those kernels."""
    return SCRATCH / "kernels" / model / f"{policy}-{sparsity}.curves.parquet"


def cell_file(cell):
    """Measurements of a cell."""
    name = f"{cell.policy}-{cell.sparsity}" if cell.policy else "full"
    return SCRATCH / "evaluations" / cell.model / cell.task / f"{name}.parquet"


def all_curves():
    """Loss curves of every training."""
    return [curves_of(t.model, t.policy, t.sparsity) for t in grid.trainings(CONFIG)]


def measured():
    """Every file of measurements."""
    cells = [cell_file(cell) for cell in grid.task_cells(CONFIG)]
    if CONFIG["fidelity"]:
        cells += [
            SCRATCH / "fidelity" / cell.model / f"{cell.policy}-{cell.sparsity}.parquet"
            for cell in grid.policy_cells(CONFIG, "fidelity")
        ]
    return cells


def tables():
    """Every table in every format."""
    return expand(RESULTS / "tables" / "{name}.{form}", name=TABLES, form=FORMATS)


def figures():
    """Every figure in both formats."""
    return expand(
        RESULTS / "figures" / "{name}.{form}", name=FIGURES, form=["svg", "png"]
    )


def memory(base):
    """Memory in MB that grows with the attempt, so that a retry after a kill has more."""
    return lambda wildcards, attempt: base * attempt


def model_memory(wildcards, attempt):
    """Memory in MB of a job that loads a model."""
    return MODELS[wildcards.model]["memory_mb"] * attempt
