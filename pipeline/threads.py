"""How many threads a process computes with."""

from __future__ import annotations

import os


def limit_threads(count: int) -> None:
    """Give every thread pool ``count`` threads; pools that overlap spin and slow each other."""
    import numba
    import torch

    most: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    numba.set_num_threads(min(count, most))
    torch.set_num_threads(count)  # last: numba's first call sets OpenMP's, which torch takes up
    os.environ["OMP_NUM_THREADS"] = str(count)
