"""Set an experiment's numbers beside the paper's, as Markdown and as a page to sort and filter."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..report.comparison import write
from ..report.rows import load_tidy


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``less-kv compare``."""
    parser.add_argument("--tidy", type=Path, required=True)
    parser.add_argument(
        "--config",
        type=json.loads,
        required=True,
        help="models, train, grid and tasks of the completed configuration, as JSON",
    )
    parser.add_argument("--out", type=Path, required=True, help="Markdown; a page lies beside it")


def run(args: argparse.Namespace) -> None:
    """Write ``paper_vs_ours.md`` and the page of the same name."""
    write(load_tidy(args.tidy), args.config, args.out)
