"""Attention over what eviction times leave visible, and its low-rank correction, over a sequence.

The sparse part goes tile by tile and skips tiles of keys that are all evicted. The low-rank part is
causal linear attention on keys in the order of their eviction (:mod:`pipeline.synthesis`). The
merge and its gradient are one pass each: with Z = log(e^lse + phi z + eps),

    out = e^(lse - Z) sparse_out + e^(-Z) phi H
    d (phi H) = e^(-Z) d out        d (phi z) = -e^(-Z) (out . d out)
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch.nn import functional as F

from pipeline.kernels import Kernel
from pipeline.ops.gpu.linear import sums
from pipeline.ops.gpu.tiles import NOTHING, dot, padded, tuned, weigh
from pipeline.synthesis import EPSILON, EvictedOrder

CONFIGS = [
    triton.Config({"ROWS": rows, "COLUMNS": columns}, num_warps=warps, num_stages=stages)
    for rows, columns, warps, stages in [
        (16, 32, 4, 2),
        (64, 32, 4, 2),
        (64, 64, 4, 2),
        (128, 32, 8, 2),
    ]
]
"""Queries and keys of a tile."""
MERGED = 16
"""Rows that one program merges."""


@tuned(CONFIGS, key=["D", "DP"])  # type: ignore[untyped-decorator]
@triton.jit(do_not_specialize=["length", "shared", "rep"])  # type: ignore[untyped-decorator]
def _sparse_kernel(  # type: ignore[no-untyped-def]
    q, k, v, evicted_at, out, lse, length, shared, rep, scale,
    D: tl.constexpr, DP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Programs (U M N, S / ROWS)."""
    head, first = tl.program_id(0).to(tl.int64), tl.program_id(1) * ROWS
    source = head // rep
    d, i = tl.arange(0, DP), first + tl.arange(0, ROWS)
    wanted = (i < length)[:, None] & (d < D)[None, :]
    query = tl.load(q + (head * length + i)[:, None] * D + d[None, :], wanted, 0.0)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, DP], tl.float32)
    for start in range(0, tl.minimum(first + ROWS, length), COLUMNS):
        j = start + tl.arange(0, COLUMNS)
        until = tl.load(evicted_at + source // shared * length + j, j < length, 0)
        if tl.max(until, 0) > first:
            at = (source * length + j)[:, None] * D + d[None, :]
            inside = (j < length)[:, None] & (d < D)[None, :]
            logit = dot(query, tl.trans(tl.load(k + at, inside, 0.0))) * scale
            visible = (j[None, :] <= i[:, None]) & (i[:, None] < until[None, :])
            logit = tl.where(visible, logit, float("-inf"))
            highest = tl.maximum(top, tl.max(logit, 1))
            shift = tl.where(highest == float("-inf"), 0.0, highest)
            fade = tl.exp(top - shift)
            p = tl.exp(logit - shift[:, None])
            total = total * fade + tl.sum(p, 1)
            acc = acc * fade[:, None] + weigh(p, tl.load(v + at, inside, 0.0))
            top = highest
    total = tl.where(total == 0.0, 1.0, total)  # rows beyond the length
    row = head * length + i
    tl.store(out + row[:, None] * D + d[None, :], acc / total[:, None], wanted)
    tl.store(lse + row, top + tl.log(total), i < length)


def sparse_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, evicted_at: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """See :func:`pipeline.ops.reference.sparse_attention`."""
    q, k, v, evicted_at = (x.contiguous() for x in (q, k, v, evicted_at))
    sets, shared, rep, length, size = q.shape
    out = q.new_empty(q.shape, dtype=torch.float32)
    lse = q.new_empty(q.shape[:-1], dtype=torch.float32)
    heads = sets * shared * rep

    def grid(options: dict[str, Any]) -> tuple[int, int]:
        return heads, triton.cdiv(length, options["ROWS"])

    _sparse_kernel[grid](
        q, k, v, evicted_at, out, lse, length, shared, rep, size**-0.5, size, padded(size)
    )
    return out, lse


@triton.jit(do_not_specialize=["count"])  # type: ignore[untyped-decorator]
def _merge_kernel(  # type: ignore[no-untyped-def]
    sparse, lse, parts, out, share, count, epsilon, D: tl.constexpr, DP: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Rows of phi H and phi z side by side, (count, D + 1): out (count, D), share e^(-Z)."""
    row, d = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, DP)
    wanted = (row < count)[:, None] & (d < D)[None, :]
    at, beside = row[:, None] * D + d[None, :], row[:, None] * (D + 1) + d[None, :]
    mass = tl.load(parts + row * (D + 1) + D, row < count, 0.0) + epsilon
    low = tl.where(mass <= epsilon, NOTHING, tl.log(mass))
    high = tl.load(lse + row, row < count, 0.0)
    top = tl.maximum(high, low)
    z = top + tl.log(tl.exp(high - top) + tl.exp(low - top))
    merged = tl.load(sparse + at, wanted, 0.0).to(tl.float32) * tl.exp(high - z)[:, None]
    unit = tl.exp(tl.where(mass <= epsilon, NOTHING, -z))
    merged += tl.load(parts + beside, wanted, 0.0) * unit[:, None]
    tl.store(out + at, merged, wanted)
    tl.store(share + row, unit, row < count)


@triton.jit(do_not_specialize=["count"])  # type: ignore[untyped-decorator]
def _unmerge_kernel(  # type: ignore[no-untyped-def]
    grad, out, share, parts, count, D: tl.constexpr, DP: tl.constexpr, ROWS: tl.constexpr
):
    """Gradients of phi H and phi z, side by side as in :func:`_merge_kernel`."""
    row, d = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, DP)
    wanted = (row < count)[:, None] & (d < D)[None, :]
    at, beside = row[:, None] * D + d[None, :], row[:, None] * (D + 1) + d[None, :]
    weight = tl.load(share + row, row < count, 0.0)
    above = tl.load(grad + at, wanted, 0.0)
    inner = tl.sum(above * tl.load(out + at, wanted, 0.0), 1)
    tl.store(parts + beside, above * weight[:, None], wanted)
    tl.store(parts + row * (D + 1) + D, -inner * weight, row < count)


class _Merge(torch.autograd.Function):
    """See :func:`merge`."""

    @staticmethod
    def forward(
        ctx: Any, sparse: torch.Tensor, lse: torch.Tensor, parts: torch.Tensor
    ) -> torch.Tensor:
        """Sparse part (..., D), its log-sum-exp (...), parts (..., D + 1): (..., D)."""
        sparse, lse, parts = sparse.contiguous(), lse.contiguous(), parts.contiguous()
        out, share = torch.empty_like(sparse, dtype=torch.float32), torch.empty_like(lse)
        size, count = sparse.shape[-1], lse.numel()
        _merge_kernel[(triton.cdiv(count, MERGED),)](
            sparse, lse, parts, out, share, count, EPSILON, size, padded(size), MERGED
        )
        ctx.save_for_backward(out, share)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[None, None, torch.Tensor]:
        """The gradient of phi H and phi z."""
        out, share = ctx.saved_tensors
        size, count = out.shape[-1], share.numel()
        parts = out.new_empty(*out.shape[:-1], size + 1)
        _unmerge_kernel[(triton.cdiv(count, MERGED),)](
            grad.contiguous(), out, share, parts, count, size, padded(size), MERGED
        )
        return None, None, parts


def merge(sparse_out: torch.Tensor, lse: torch.Tensor, parts: torch.Tensor) -> torch.Tensor:
    """:func:`pipeline.synthesis.merge`, phi H and phi z side by side: parts (..., D + 1).

    Gradients flow to ``parts``.
    """
    merged: torch.Tensor = _Merge.apply(sparse_out, lse, parts)
    return merged


def correct(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, evicted_at: torch.Tensor, kernel: Kernel,
    sparse_out: torch.Tensor, lse: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """See :func:`pipeline.synthesis.correct`. Gradients flow to the kernel's features."""
    order = EvictedOrder.of(evicted_at)
    if order.index.shape[-1] == 0:
        return sparse_out
    rows = slice(order.first, None)
    phi, psi = kernel.phi(q[:, :, rows]), kernel.psi(order.gather(k))
    # What is evicted at once before the first of these queries is read by queries of zeros.
    phi = F.pad(phi, (0, 0, order.initial, 0))
    parts = sums(phi, psi, order.gather(v))[:, :, order.initial :]
    merged = merge(sparse_out[:, :, rows], lse[:, :, rows], parts)
    return torch.cat([sparse_out[:, :, : order.first], merged], dim=2)


def synthesize(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, evicted_at: torch.Tensor,
    kernel: Kernel | None = None,
) -> torch.Tensor:  # fmt: skip
    """See :func:`pipeline.synthesis.synthesize`. Gradients flow to the kernel's features."""
    batch, groups, length, size = k.shape
    if q.shape[2] != length:
        raise ValueError(f"{q.shape[2]} queries do not match {length} keys")
    units = batch * groups
    out, lse = sparse_attention(
        q.reshape(units, 1, -1, length, size), k.reshape(units, 1, length, size),
        v.reshape(units, 1, length, size), evicted_at.reshape(units, length),
    )  # fmt: skip
    out, lse = out.view(q.shape), lse.view(q.shape[:-1])
    return out if kernel is None else correct(q, k, v, evicted_at, kernel, out, lse)
