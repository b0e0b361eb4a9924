"""Timing side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping


def interleaved(steps: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return seconds of each step in each round.

    Steps take turns, so that noise falls on all alike.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - started)
    return seconds
