"""The hot loops, and the one place that picks their backend.

Every operator exists in :mod:`pipeline.ops.reference` (plain, obviously right, any device) and in
a compiled form with the same signature. :func:`backend` picks by device.

An *index set* (axis U) is what a policy decides about as one: a key/value head of one sequence
when scores are pooled over the group, a whole layer of one sequence when pooled over the layer.
Operators take tensors regrouped by :func:`by_index_set`.
"""

from __future__ import annotations

from types import ModuleType

import torch

from pipeline.policies import Policy

NEVER = 2**31 - 1
"""The eviction time of a key that is never evicted (int32)."""


def backend(device: torch.device) -> ModuleType:
    """The module that implements the operators for ``device``."""
    if device.type == "cpu":
        from pipeline.ops import cpu

        return cpu
    if device.type == "cuda":
        from pipeline.ops import gpu

        return gpu
    from pipeline.ops import reference

    return reference


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
