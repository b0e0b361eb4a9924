"""Join the kernels of all layers into one checkpoint, and their loss curves into one table."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pandas as pd

from ..storage.files import load_table, save_table
from ..training.checkpoint import join_kernels


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``less-kv collect``."""
    parser.add_argument("--kernels", type=Path, nargs="+", required=True, help="parts, in order")
    parser.add_argument("--curves", type=Path, nargs="+", required=True, help="parts, in order")
    parser.add_argument("--out", type=Path, required=True, help="kernels of all layers")
    parser.add_argument("--curves-out", type=Path, required=True)
    parser.add_argument(
        "--label", type=json.loads, default={}, help="columns every row carries, as JSON"
    )


def run(args: argparse.Namespace) -> None:
    """Write the checkpoint and the table."""
    join_kernels(args.kernels, args.out)
    curves = pd.concat([load_table(path) for path in args.curves])
    curves = curves.assign(**args.label)
    save_table(args.curves_out, curves.sort_values(["layer", "epoch"]))
