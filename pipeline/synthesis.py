"""Synthesis: sparse attention and the low-rank state joined in one softmax (paper, equation 3).

    a_t = [ phi(q_t) H_t + sum_cached exp(l_j) v_j ] / [ phi(q_t) z_t + sum_cached exp(l_j) ]

with l_j = q_t k_j / sqrt(d), and H += psi(k)^T v, z += psi(k) for every evicted pair.

Two forms, one truth. The single-step form (:class:`LowRankState`) is what a cache runs. The
parallel form sorts keys by eviction time: every query then covers a prefix of the sorted keys, one
longer than the query before it, so a whole sequence is plain causal linear attention.
"""

from __future__ import annotations

import torch

from .kernels import Kernel
from .ops.linear import linear_attention
from .ops.low_rank import LowRankState, merge, strided_linear_attention
from .ops.sequence import sparse_part
from .ops.times import EvictedOrder

__all__ = ["correct", "low_rank_part", "sparse_part", "synthesize"]


def low_rank_part(
    phi: torch.Tensor, psi: torch.Tensor, v: torch.Tensor, initial: int = 0, stride: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return phi H and phi z of the queries that miss something, or of every ``stride``-th of them.

    Args:
        phi: features of those queries, (B, H, T, R).
        psi, v: of the evicted pairs in eviction order, (B, G, initial + 1 + (T - 1) stride, ...).
        initial: pairs that the first of those queries already misses besides one.
    """
    rest = psi[:, :, initial:], v[:, :, initial:].float()
    if stride == 1:
        numerator, denominator = linear_attention(phi, *rest)
    else:
        numerator, denominator = strided_linear_attention(phi, *rest, stride)
    if initial:
        batch, groups, _, rank = psi.shape
        state = LowRankState.zeros(batch, groups, rank, v.shape[-1], psi.device)
        state.absorb(psi[:, :, :initial], v[:, :, :initial])
        more, mass = state.read(phi)
        numerator, denominator = numerator + more, denominator + mass
    return numerator, denominator


def correct(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    evicted_at: torch.Tensor,
    kernel: Kernel,
    sparse_out: torch.Tensor,
    lse: torch.Tensor,
) -> torch.Tensor:
    """Add the low-rank part to a sparse attention output: (B, H, S, D), float32."""
    order = EvictedOrder.of(evicted_at)
    if order.index.shape[-1] == 0:
        return sparse_out
    rows = slice(order.first, None)
    numerator, denominator = low_rank_part(
        kernel.phi(q[:, :, rows]), kernel.psi(order.gather(k)), order.gather(v), order.initial
    )
    merged = merge(sparse_out[:, :, rows], lse[:, :, rows], numerator, denominator)
    return torch.cat([sparse_out[:, :, : order.first], merged], dim=2)


def synthesize(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    evicted_at: torch.Tensor,
    kernel: Kernel | None = None,
) -> torch.Tensor:
    """Return attention of a whole sequence under eviction times, with or without the low-rank part.

    Args:
        q: (B, H, S, D). k, v: (B, G, S, D), any float dtype.
        evicted_at: (B, G, S), from :func:`pipeline.eviction.evicted_at`.
        kernel: the layer's feature maps; None gives the sparse policy alone.

    Returns:
        (B, H, S, D), float32. No tensor of size S x S is formed.
    """
    out, lse = sparse_part(q, k, v, evicted_at)
    return out if kernel is None else correct(q, k, v, evicted_at, kernel, out, lse)
