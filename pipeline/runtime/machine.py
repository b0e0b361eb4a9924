"""What this process runs on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import socket
import sys
from pathlib import Path
from typing import Any


def machine() -> str:
    """Return host, and the GPU if this process has begun to use one.

    Nothing is imported to find out.
    """
    torch = sys.modules.get("torch")
    gpu = torch.cuda.get_device_name() if torch and torch.cuda.is_initialized() else "no GPU"
    return f"{socket.gethostname()} ({platform.machine()}, {os.cpu_count()} cores, {gpu})"


PACKAGES = (
    "torch",
    "triton",
    "transformers",
    "tokenizers",
    "safetensors",
    "gguf",
    "snakemake",
    "numba",
    "numpy",
    "pandas",
    "pyarrow",
    "matplotlib",
    "tabulate",
    "datasets",
    "lm_eval",
    "rouge_score",
)


def hardware() -> dict[str, Any]:
    """Return processor, memory and accelerator."""
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
    """Return versions of the packages that numbers may depend on; None for one that is not here."""
    versions = {
        x.name.replace("-", "_").lower(): x.version for x in importlib.metadata.distributions()
    }
    return {name: versions.get(name) for name in PACKAGES}


def limit_threads(count: int) -> None:
    """Give every thread pool ``count`` threads; pools that overlap spin and slow each other."""
    import numba
    import torch

    most: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    numba.set_num_threads(min(count, most))
    torch.set_num_threads(count)  # last: numba's first call sets OpenMP's, which torch takes up
    os.environ["OMP_NUM_THREADS"] = str(count)
