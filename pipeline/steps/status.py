"""How far a run is: jobs by stage, what the running ones say, and how long it will still take."""

from __future__ import annotations

import argparse

from ..runtime.status import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``less-kv status``."""
    parser.add_argument(
        "where",
        nargs="?",
        default=".",
        help="results/<experiment>, the experiment's name, or the folder of the run, whose latest "
        "run is shown (default: here)",
    )
    parser.add_argument("--live", action="store_true", help="show it anew until the run ends")
    parser.add_argument("--every", type=float, default=2.0, help="seconds, with --live")


def run(args: argparse.Namespace) -> None:
    """Print how far the run is; with ``--live`` until it ends or Ctrl-C."""
    show(args.where, args.live, args.every)
