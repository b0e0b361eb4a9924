"""Summaries of the full cache, baseline+ and LESS side by side, as a web page and as Markdown."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..report.examples import write
from ..storage.files import load_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``less-kv examples``."""
    parser.add_argument("--cells", type=Path, nargs="+", required=True, help="from `summaries`")
    parser.add_argument("--count", type=int, default=4, help="documents of each cell")
    parser.add_argument("--out", type=Path, required=True, help="HTML; Markdown lies beside it")


def run(args: argparse.Namespace) -> None:
    """Write the page and the Markdown."""
    write([load_table(path) for path in args.cells], args.count, args.out)
