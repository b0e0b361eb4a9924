"""Record what a run was made of: code, configuration, seeds, versions, hardware, input hashes."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.files import save_json, sha256, whole
from pipeline.page import Section, as_html
from pipeline.revision import commit

PACKAGES = (
    "torch", "triton", "transformers", "snakemake", "numba", "numpy", "pandas", "matplotlib",
    "datasets", "lm_eval",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``less provenance``."""
    parser.add_argument("--config", type=json.loads, required=True, help="completed, as JSON")
    parser.add_argument("--config-hash", required=True)
    parser.add_argument("--inputs", type=Path, nargs="*", default=[], help="files to hash")
    parser.add_argument("--results", type=Path, nargs="*", default=[], help="files to hash")
    parser.add_argument("--out", type=Path, required=True, help="JSON; a page lies beside it")
    parser.add_argument("--config-out", type=Path, required=True, help="the completed config")


def hardware() -> dict[str, Any]:
    """Processor, memory and accelerator."""
    import psutil
    import torch

    processor = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8").splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        processor = names[0] if names else processor
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": gpus,
        "platform": platform.platform(),
    }


def flat(value: Any, place: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots."""
    if not isinstance(value, dict) or not value:
        return {place: value}
    found: dict[str, Any] = {}
    for key, item in value.items():
        found |= flat(item, f"{place}.{key}" if place else key)
    return found


def page(record: dict[str, Any]) -> str:
    """The record as a page of tables."""
    sections = [
        Section(name, pd.DataFrame(flat(part).items(), columns=["key", "value"], dtype=object))
        for name, part in record.items()
        if isinstance(part, dict) and part
    ]
    rest = {name: part for name, part in record.items() if not isinstance(part, dict)}
    return as_html("Provenance", sections, [f"{name}: {part}" for name, part in rest.items()])


def run(args: argparse.Namespace) -> None:
    """Write the record as JSON and as a page, and the configuration, which runs as it stands."""
    save_json(args.config_out, args.config)
    record = {
        "code": commit(),
        "config": args.config,
        "config_hash": args.config_hash,
        "seed": args.config["seed"],
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "hardware": hardware(),
        "inputs": {str(path): sha256(path) for path in args.inputs},
        "results": {path.name: sha256(path) for path in args.results},
    }
    save_json(args.out, record)
    with whole(args.out.with_suffix(".html")) as partial:
        partial.write_text(page(record), encoding="utf-8")
