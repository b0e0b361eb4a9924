"""Set an experiment's numbers beside the paper's, as Markdown and as a page to sort and filter."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..report.comparison import forms
from ..report.rows import load_tidy
from ..storage.files import whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``less-kv compare``."""
    parser.add_argument("--tidy", type=Path, required=True)
    parser.add_argument(
        "--config", type=json.loads, required=True,
        help="models, train, grid and tasks of the completed configuration, as JSON",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="Markdown; a page lies beside it")


def run(args: argparse.Namespace) -> None:
    """Write ``paper_vs_ours.md`` and the page of the same name."""
    for suffix, text in forms(load_tidy(args.tidy), args.config).items():
        with whole(args.out.with_suffix(f".{suffix}")) as partial:
            partial.write_text(text, encoding="utf-8")
