"""Generate summaries, batch by batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Sample = Mapping[str, Any]
"""One of the ``samples`` that `less-kv prompts` wrote."""


def batches(samples: Sequence[Sample], size: int) -> list[Sequence[Sample]]:
    """Consecutive samples, ``size`` at a time; a restart keeps to the same batches."""
    return [samples[start : start + size] for start in range(0, len(samples), size)]
