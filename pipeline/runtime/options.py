"""Options that several steps of the command line share."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add what loads a model: its folder, and where and how it runs."""
    parser.add_argument("--model", type=Path, required=True, help="transformers folder")
    parser.add_argument("--dtype", default="float32", help="of weights and forward passes")
    parser.add_argument("--device", default="cpu")


def add_compared(parser: argparse.ArgumentParser) -> None:
    """Add what names a cell of the grid: policy, budget, methods and the kernels they need."""
    parser.add_argument("--policy", help="leave out for the full cache")
    parser.add_argument("--budget", type=int, help="tokens")
    parser.add_argument("--scores", default="cached", help="cached or full")
    parser.add_argument("--methods", nargs="*", default=[])
    parser.add_argument("--kernels", type=Path, nargs="*", default=[], help="trained kernels")
    parser.add_argument(
        "--train-sparsities", type=float, nargs="*", default=[], help="of the kernels, in order"
    )
    parser.add_argument("--kernel-size", type=int, default=8, help="R of the low-rank state")
    parser.add_argument("--seed", type=int, default=0, help="of random features")
    add_label(parser)


def add_label(parser: argparse.ArgumentParser) -> None:
    """Add the columns that say what rows are about."""
    parser.add_argument(
        "--label", type=json.loads, default={}, help="columns every row carries, as JSON"
    )
