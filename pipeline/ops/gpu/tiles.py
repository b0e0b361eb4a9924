"""What the Triton kernels share: tile sizes and matrix products of any shape.

Kernels run compiled on a GPU, or in Triton's interpreter on a CPU where ``TRITON_INTERPRET=1`` was
set before triton was imported.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

INTERPRETED: bool = triton.knobs.runtime.interpret
SMALLEST = 16
"""The least side of a matrix product on tensor cores."""
NOTHING = tl.constexpr(-1.0e30)
"""The logarithm of a weight of nothing; finite, so that padding makes no NaN."""


def padded(size: int) -> int:
    """Return the side of a tile that holds ``size`` numbers: a power of two, 16 at least."""
    return max(SMALLEST, int(triton.next_power_of_2(size)))


def rows(count: int) -> int:
    """Do as :func:`padded`, but a single row stays single: it is no work for tensor cores."""
    return 1 if count == 1 else padded(count)


def tuned(configs: list[triton.Config], key: list[str]) -> Any:
    """Choose among ``configs`` on the GPU at hand, once.

    Choices are kept on disk beside compiled kernels. The interpreter takes the first.
    """
    return triton.autotune(configs[:1] if INTERPRETED else configs, key=key, cache_results=True)


@triton.jit
def dot(a, b):
    """Multiply a (N, K) by b (K, M) to float32: half types as they are, all else in full."""
    if a.shape[0] == 1:
        return tl.sum(tl.trans(a).to(tl.float32) * b.to(tl.float32), 0)[None, :]
    if a.dtype != b.dtype:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def weigh(p, v):
    """Multiply p (N, K), float32, by v (K, M) of any type, to float32.

    Against half types p is split in two halves that together hold it: a rounded p would cost more
    than what is rounded in v, and a second product costs nothing where memory is the limit.
    """
    if p.shape[0] == 1 or v.dtype == tl.float32:
        return dot(p, v)
    high = p.to(v.dtype)
    return dot(high, v) + dot((p - high.to(tl.float32)).to(v.dtype), v)
