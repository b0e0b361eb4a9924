"""Feature maps of single tokens compiled with numba."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from numba.extending import overload

from ..packed import PackedKernel
from .jit import jit, parallel
from .products import product
from .sums import gelu

PIECE = 8
"""Sequences whose hidden units stay in the first-level cache."""


def widen(x: Any) -> Any:
    """Return a stored number as float32; bfloat16 is stored as uint16, float16 as int16."""


@overload(widen, inline="always")
def widen_of(x):
    """Compile :func:`widen` for the type of ``x``."""
    if isinstance(x, numba.types.Float):
        return lambda x: x
    if x == numba.uint16:
        return lambda x: np.uint32(np.uint32(x) << np.uint32(16)).view(np.float32)

    def half(x):
        # Exponent and mantissa moved to float32's places are 2^-112 times too small, also for
        # subnormals; infinities and NaN, which no cache holds, come out finite.
        bits = np.uint32(np.uint16(x))
        magnitude = np.uint32((bits & np.uint32(0x7FFF)) << np.uint32(13)).view(np.float32)
        sign = np.float32(1) - np.float32((bits >> np.uint32(15)) << np.uint32(1))
        return sign * (magnitude * np.float32(2.0**112))

    return half


@jit
def _features_of(map, start, rows, w1, w2, last, out):
    """Do :func:`feature_scan` for one map and a piece of the sequences."""
    batch, size = rows.shape[1:]
    width, rank = w2.shape[1:]
    count = min(PIECE, batch - start)
    x = np.empty((PIECE, size), np.float32)
    hidden = np.empty((PIECE, width), np.float32)
    u = np.empty((PIECE, rank), np.float32)
    for n in range(count):
        for i in range(size):
            x[n, i] = widen(rows[map, start + n, i])
    product(x, w1[map], count, hidden)
    for n in range(count):
        for i in range(width):
            hidden[n, i] = gelu(hidden[n, i])
    product(hidden, w2[map], count, u)
    for n in range(count):
        for r in range(rank):
            u[n, r] = gelu(u[n, r])
        for r in range(rank):
            feature = np.float32(0)
            for s in range(rank):
                feature += last[map, r, s] * u[n, s]
            out[map, start + n, r] = abs(feature)


@parallel
def feature_scan(rows, w1, w2, last, needed, out):
    """Fill ``out`` (A, B, R): features of ``rows`` (A, B, D) by those of A maps ``needed``.

    Weights as :class:`pipeline.ops.packed.PackedKernel` holds them.
    """
    maps, batch, _ = rows.shape
    pieces = (batch + PIECE - 1) // PIECE
    for job in numba.prange(maps * pieces):
        if needed[job // pieces]:
            _features_of(job // pieces, job % pieces * PIECE, rows, w1, w2, last, out)


def as_bits(x: torch.Tensor) -> np.ndarray:
    """Return a view as numpy; half types as bit patterns (:func:`widen`)."""
    x = x.detach()  # a caller may track gradients; none flows through a cache
    if x.dtype == torch.bfloat16:
        return x.view(torch.uint16).numpy()
    if x.dtype == torch.float16:
        return x.view(torch.int16).numpy()
    return x.numpy()


def features(kernel: PackedKernel, rows: torch.Tensor) -> torch.Tensor:
    """Return float32 features (A, B, R) of rows (A, B, D), one a map and sequence."""
    maps, batch, _ = rows.shape
    out = torch.empty(maps, batch, kernel.w2.shape[-1])
    feature_scan(
        as_bits(rows), as_bits(kernel.w1), kernel.w2.numpy(), kernel.last.numpy(),
        np.ones(maps, np.bool_), out.numpy(),
    )  # fmt: skip
    return out
