"""Compute what training needs of a layer's features, once for all steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ..eviction import Scores, evict_and_attend
from ..ops.times import EvictedOrder
from ..policies import Policy


@dataclass
class Prepared:
    """What training needs of each sequence, N of them, half precision but for the log-sum-exp.

    In main memory, where there is more of it: batches go to the projection's device. T rows miss
    something (queries first..S-1); E = initial + T pairs are evicted before the last.

    Attributes:
        q: (N, H, T, D), queries of those rows.
        k, v: (N, G, E, D), evicted pairs in eviction order.
        sparse_out: (N, H, T, D) attention over what is cached; lse: (N, H, T), float32.
        target: (N, H, T, D), full attention before the output projection.
        o_weight: (hidden, H*D), the frozen output projection.
        initial: see :class:`pipeline.ops.times.EvictedOrder`.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    sparse_out: torch.Tensor
    lse: torch.Tensor
    target: torch.Tensor
    o_weight: torch.Tensor
    initial: int

    def __len__(self) -> int:
        return self.q.shape[0]


def prepare(
    features: Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    o_weight: torch.Tensor,
    policy: Policy,
    scores: Scores,
) -> Prepared:
    """Compute the part of training that no weight changes, one sequence at a time.

    Args:
        features: for each sequence q (1, H, S, D), k and v (1, G, S, D), after rotary embedding.
        o_weight: (hidden, H*D).

    Raises:
        ValueError: nothing is evicted, because the budget covers the sequences.
    """
    columns: list[list[torch.Tensor]] = [[] for _ in range(6)]
    initial = 0
    for q, k, v in features:
        times, out, lse = evict_and_attend(q, k, v, policy, scores)
        order = EvictedOrder.of(times)
        if order.index.shape[-1] == 0:
            raise ValueError(
                f"a budget of {policy.budget} tokens evicts nothing from {q.shape[2]}-token samples"
            )
        rows, initial = slice(order.first, None), order.initial
        full = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        half = (q[:, :, rows], order.gather(k), order.gather(v), out[:, :, rows], full[:, :, rows])
        row = (*(x.half().cpu() for x in half), lse[:, :, rows].contiguous().cpu())
        for column, part in zip(columns, row, strict=True):
            column.append(part)
    q, k, v, out, target, lse = map(_joined, columns)
    return Prepared(q, k, v, out, lse, target, o_weight, initial)


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    """Return all parts as one; the list is emptied, so that only one column is in memory twice."""
    whole = torch.cat(parts)
    parts.clear()
    return whole
