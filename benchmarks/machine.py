"""What the numbers of a benchmark depend on, and processes whose memory is their own."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable
from pathlib import Path

import torch

from pipeline.runtime.machine import hardware

MIB = 2**20


def describe() -> str:
    """Processor, threads, versions and the load of other work, in one line."""
    found = hardware()
    return (
        f"{found['processor']}, {found['cores']} cores, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, Python {platform.python_version()}, "
        f"load {os.getloadavg()[0]:.1f}"
    )


def times_faster(slow: list[float], fast: list[float]) -> float:
    """Median over rounds of the ratio within a round."""
    return statistics.median(s / f for s, f in zip(slow, fast, strict=True))


def peak_mib(step: Callable[[], object]) -> float:
    """The most resident memory while ``step`` runs, less what was resident before (Linux)."""

    def status(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(key))

    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = status("VmRSS:")
    step()
    return (status("VmHWM:") - before) / 1024
