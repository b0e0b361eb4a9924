"""Summaries of the full cache, baseline+ and LESS side by side, as a web page and as Markdown."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..report.examples import as_html, as_markdown, sections
from ..storage.files import load_table, whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``less-kv examples``."""
    parser.add_argument("--cells", type=Path, nargs="+", required=True, help="from `summaries`")
    parser.add_argument("--count", type=int, default=4, help="documents of each cell")
    parser.add_argument("--out", type=Path, required=True, help="HTML; Markdown lies beside it")


def run(args: argparse.Namespace) -> None:
    """Write the page and the Markdown."""
    tables = [load_table(path) for path in args.cells]
    found = list(sections(tables, args.count))
    note = (
        f"The first {args.count} documents of each task in the order they were drawn, not chosen "
        "by result. Prompts are not shown; documents too long for one were passed over."
    )
    for path, text in (
        (args.out, as_html(found, note)),
        (args.out.with_suffix(".md"), as_markdown(found, note)),
    ):
        with whole(path) as partial:
            partial.write_text(text, encoding="utf-8")
