"""Record what a run was made of: code, configuration, seeds, versions, hardware, input hashes."""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

from ..report.provenance import LOCK, hashes, page
from ..runtime.code import commit
from ..runtime.machine import hardware, installed
from ..storage.files import save_json, whole


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
    record = {
        "code": commit(),
        "config": args.config,
        "config_hash": args.config_hash,
        "seed": args.config["seed"],
        "python": platform.python_version(),
        "packages": installed(),
        "environment": hashes([LOCK] if LOCK.exists() else []).get(str(LOCK)),
        "hardware": hardware(),
        "inputs": hashes(args.inputs, args.names),
        "results": {
            Path(path).relative_to(args.out.parent).as_posix(): digest
            for path, digest in hashes(args.results).items()
        },
    }
    save_json(args.out, record)
    with whole(args.out.with_suffix(".html")) as partial:
        partial.write_text(page(record), encoding="utf-8")
