"""Write the tables from the tidy table: each as Markdown, CSV, LaTeX and a web page."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..report.rows import load_curves, load_tidy
from ..report.tables import Measured, load_operators, write_all


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
    measured = Measured(
        load_tidy(args.tidy),
        load_curves(args.curves),
        args.models,
        load_operators(args.operators),
    )
    write_all(measured, args.out)
