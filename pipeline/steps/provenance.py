"""Record what a run was made of: code, configuration, seeds, versions, hardware, input hashes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..report.provenance import record, write
from ..storage.files import save_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``less-kv provenance``."""
    parser.add_argument("--config", type=json.loads, required=True, help="completed, as JSON")
    parser.add_argument("--config-hash", required=True)
    parser.add_argument(
        "--inputs", type=Path, nargs="*", default=[], help="files and folders to hash"
    )
    parser.add_argument("--names", type=Path, nargs="*", help="what the record calls the inputs")
    parser.add_argument(
        "--results", type=Path, nargs="*", default=[], help="files beside --out to hash"
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON; a page lies beside it")
    parser.add_argument("--config-out", type=Path, required=True, help="the completed config")


def run(args: argparse.Namespace) -> None:
    """Write the record as JSON and as a page, and the configuration, which runs as it stands."""
    save_json(args.config_out, args.config)
    made = record(args.config, args.config_hash, args.inputs, args.names, args.results, args.out)
    write(made, args.out)
