"""Record what a run was made of: code, configuration, seeds, versions, hardware, input hashes."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from pipeline.files import save_json, sha256

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
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config-out", type=Path, required=True, help="the completed config")


def commit() -> dict[str, Any]:
    """The commit of the checkout this runs from, and whether tracked files were changed."""

    def git(*words: str) -> str | None:
        folder = Path(__file__).parent
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":!/results")
    return {
        "commit": git("rev-parse", "HEAD"),
        "changed": None if changed is None else bool(changed),
    }


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


def run(args: argparse.Namespace) -> None:
    """Write ``provenance.json``, and the completed configuration, which runs as it stands."""
    save_json(args.config_out, args.config)
    save_json(
        args.out,
        {
            "code": commit(),
            "config": args.config,
            "config_hash": args.config_hash,
            "seed": args.config["seed"],
            "python": platform.python_version(),
            "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
            "hardware": hardware(),
            "inputs": {str(path): sha256(path) for path in args.inputs},
            "results": {path.name: sha256(path) for path in args.results},
        },
    )
