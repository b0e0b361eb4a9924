"""Write the tables from the tidy table: each as Markdown, CSV, LaTeX and a web page."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pandas as pd

from ..report.rows import load_curves, load_tidy
from ..report.tables import OPERATORS, TABLES, Measured, view, write
from ..storage.files import load_table, save_table, whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``less-kv tables``."""
    parser.add_argument("--tidy", type=Path, required=True)
    parser.add_argument("--curves", type=Path, nargs="*", default=[], help="loss curves")
    parser.add_argument(
        "--operators", type=Path, nargs="*", default=[], help="operators of the latency study"
    )
    parser.add_argument(
        "--models", type=json.loads, default={}, help="the configuration's models, as JSON"
    )
    parser.add_argument("--out", type=Path, required=True, help="results folder")


def run(args: argparse.Namespace) -> None:
    """Write ``results.parquet``, ``results.csv``, the loss curves, operators and every table."""
    found = [load_table(path) for path in args.operators]
    operators = pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=OPERATORS)
    measured = Measured(load_tidy(args.tidy), load_curves(args.curves), args.models, operators)
    save_table(args.out / "operators.parquet", measured.operators)
    save_table(args.out / "results.parquet", measured.tidy)
    save_table(args.out / "curves.parquet", measured.curves)
    with whole(args.out / "results.csv") as partial:
        measured.tidy.to_csv(partial, index=False)
    for name in TABLES:
        write(view(name, measured), args.out / "tables", name)
