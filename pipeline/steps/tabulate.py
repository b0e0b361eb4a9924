"""Gather all measurements of an experiment into one tidy table: one row a number.

Columns: experiment, config, commit, study, setting, model, task, policy, sparsity, budget, method,
train_sparsity, layer, metric, value, low, high, n, seed. Tables, figures and comparisons are views
of it. Files that vary something beside the grid say what in columns ``study`` (its name) and
``setting`` (its value, a number); in the others the study is "grid". ``config`` and ``commit`` say
which run gathered the table. A measured file of an earlier commit counts as long as the code and
settings that it depends on are the same: its column ``measured_by`` is a hash of them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pandas as pd

from ..report.statistics import resamples
from ..report.tidy import ALONE, COLUMNS, MEASURES, Key, full_caches, measure_of, of_one_run, parts
from ..runtime.code import short_commit
from ..runtime.progress import Progress
from ..storage.files import load_table, save_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``less-kv tabulate``."""
    parser.add_argument("--cells", type=Path, nargs="+", required=True, help="measured cells")
    parser.add_argument("--experiment", required=True)
    parser.add_argument("--config-hash", required=True)
    parser.add_argument(
        "--labels", type=json.loads, default={},
        help="what columns may say in this run, such as model, task and policy: JSON lists",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bootstrap", type=int, default=2000, help="resamples")
    parser.add_argument("--out", type=Path, required=True)


def run(args: argparse.Namespace) -> None:
    """Write the tidy table (parquet)."""
    cells = [part for path in args.cells for part in parts(load_table(path))]
    of_one_run(cells, args.labels)
    reference_of = full_caches(cells)
    rows: list[Key] = []
    progress = Progress("tabulate", len(cells))
    for part in cells:
        measure = measure_of(part.table)
        reference = part.table if measure in ALONE else reference_of(part)
        documents = reference.get("document", pd.Series([""]))
        draws = resamples(documents.nunique(), args.bootstrap, args.seed)
        where = {"study": part.study, "setting": part.setting}
        rows += [where | found for found in MEASURES[measure](part.table, reference, draws)]
        progress.step()
    tidy = pd.DataFrame(rows).assign(
        experiment=args.experiment, config=args.config_hash, commit=short_commit(), seed=args.seed
    )
    save_table(args.out, tidy.reindex(columns=COLUMNS).astype({"setting": float}))
