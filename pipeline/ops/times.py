"""Eviction times, the index sets they belong to, and the order they put keys in.

An *index set* (axis U) is what a policy decides about as one: a key/value head of one sequence
when scores are pooled over the group, a whole layer of one sequence when pooled over the layer.
Operators take tensors regrouped by :func:`by_index_set`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..policies import Policy


def evictions_seen(evicted_at: torch.Tensor) -> tuple[int, int]:
    """Return when evictions start and how many come at once: (first, count).

    Query ``first`` is the first that misses ``count`` keys; each later query misses one more. The
    numbers are the same for every index set, because a policy always fills its budget.
    ``first`` is S when nothing is evicted.
    """
    times = evicted_at.reshape(-1, evicted_at.shape[-1])[0]
    first = int(times.min())
    if first >= times.numel():
        return times.numel(), 0
    return first, int((times == first).sum())


NEVER = 2**31 - 1
"""The eviction time of a key that is never evicted (int32)."""


def by_index_set(
    q: torch.Tensor, k: torch.Tensor, policy: Policy
) -> tuple[torch.Tensor, torch.Tensor]:
    """Regroup (B, H, S, D), (B, G, S, D) to (U, M, N, S, D), (U, M, S, D).

    M key/value heads share an index set; N query heads share a key/value head. U = B*G and M = 1
    when scores are pooled over the group, U = B and M = G when pooled over the layer.
    """
    batch, heads, length, size = q.shape
    groups = k.shape[1]
    if heads % groups:
        raise ValueError(f"{heads} query heads cannot share {groups} key/value heads evenly.")
    shared = 1 if policy.pooling == "group" else groups
    q = q.reshape(batch * groups // shared, shared, heads // groups, length, size)
    return q, k.reshape(batch * groups // shared, shared, length, size)


@dataclass
class EvictedOrder:
    """Keys and values in the order of their eviction, and the queries that miss them.

    Attributes:
        first: the first query that misses anything; queries ``first``.. are the ones to correct.
        initial: how many pairs are evicted at once before it, less the one every step evicts.
        index: (B, G, E) positions of the pairs evicted before the last query, in eviction order.
    """

    first: int
    initial: int
    index: torch.Tensor

    @classmethod
    def of(cls, evicted_at: torch.Tensor) -> EvictedOrder:
        """Return the order of eviction times (B, G, S)."""
        length = evicted_at.shape[-1]
        first, count = evictions_seen(evicted_at)
        covered = max(count + length - first - 1, 0) if count else 0
        index = evicted_at.sort(dim=-1, stable=True).indices[..., :covered]
        return cls(first, max(count - 1, 0), index)

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, G, S, D) to (B, G, E, D), in eviction order."""
        return x.gather(2, self.index[..., None].expand(*self.index.shape, x.shape[-1]))
