"""Check a folder of results: files are what was recorded, and all follow from the tidy table.

Nothing is measured again. Hashes of files are compared with the record of the run; tables and the
comparison with the paper are made again from the tidy table, curves and operators, in memory. Pages
that every run builds and git does not carry may be absent.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..report.verify import verify


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``less-kv verify``."""
    parser.add_argument("results", type=Path, help="results/<experiment>")


def run(args: argparse.Namespace) -> None:
    """Print what holds, and fail where something does not."""
    verify(args.results)
