"""Record what a run was made of: code, configuration, seeds, versions, hardware, input hashes."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.errors import DataError
from pipeline.files import save_json, sha256, whole
from pipeline.page import Section, as_html
from pipeline.revision import commit

PACKAGES = (
    "torch", "triton", "transformers", "tokenizers", "safetensors", "gguf", "snakemake", "numba",
    "numpy", "pandas", "pyarrow", "matplotlib", "tabulate", "datasets", "lm_eval", "rouge_score",
)  # fmt: skip
LOCK = Path(__file__).parent.parent.parent / "envs" / "requirements.lock"
"""Every version that the environment is built from."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``less provenance``."""
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


def installed() -> dict[str, str | None]:
    """Versions of the packages that numbers may depend on; None for one that is not here."""
    found = {
        x.name.replace("-", "_").lower(): x.version for x in importlib.metadata.distributions()
    }
    return {name: found.get(name) for name in PACKAGES}


def hashes(paths: Sequence[Path], names: Sequence[Path] | None = None) -> dict[str, str]:
    """SHA-256 of files, and of every file in folders.

    Args:
        names: what to call the files and folders, where copies of them are hashed.

    Raises:
        DataError: one cannot be read.
    """
    files = {
        name / file.relative_to(path): file
        for path, name in zip(paths, names or paths, strict=True)
        for file in (sorted(path.rglob("*")) if path.is_dir() else [path])
        if not file.is_dir() and not file.name.startswith(".")
    }
    try:
        return {str(name): sha256(file) for name, file in files.items()}
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror}.") from error


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
