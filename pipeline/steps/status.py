"""How far a run is: jobs by stage, what the running ones say, and how long it will still take."""

from __future__ import annotations

import argparse
import sys
import time

from ..runtime.history import is_alive
from ..runtime.status import REDRAW, describe, find


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``less-kv status``."""
    parser.add_argument(
        "where", nargs="?", default=".",
        help="results/<experiment>, the experiment's name, or the folder of the run, whose latest "
        "run is shown (default: here)",
    )  # fmt: skip
    parser.add_argument("--live", action="store_true", help="show it anew until the run ends")
    parser.add_argument("--every", type=float, default=2.0, help="seconds, with --live")


def run(args: argparse.Namespace) -> None:
    """Print how far the run is; with ``--live`` until it ends or Ctrl-C."""
    path = find(args.where)
    try:
        while args.live and is_alive(path):
            print(REDRAW * sys.stdout.isatty() + describe(path, time.time()), flush=True)
            time.sleep(args.every)
    except KeyboardInterrupt:
        return
    print(REDRAW * (args.live and sys.stdout.isatty()) + describe(path, time.time()))
