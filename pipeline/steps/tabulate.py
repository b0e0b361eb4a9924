"""Gather all measurements of an experiment into one tidy table: one row a number."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..report.tidy import tabulate
from ..runtime.code import short_commit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``less-kv tabulate``."""
    parser.add_argument("--cells", type=Path, nargs="+", required=True, help="measured cells")
    parser.add_argument("--experiment", required=True)
    parser.add_argument("--config-hash", required=True)
    parser.add_argument(
        "--labels",
        type=json.loads,
        default={},
        help="what columns may say in this run, such as model, task and policy: JSON lists",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bootstrap", type=int, default=2000, help="resamples")
    parser.add_argument("--out", type=Path, required=True)


def run(args: argparse.Namespace) -> None:
    """Write the tidy table (parquet)."""
    tabulate(
        args.cells,
        args.labels,
        args.bootstrap,
        args.seed,
        args.out,
        experiment=args.experiment,
        config=args.config_hash,
        commit=short_commit(),
    )
