"""Attention maps of chosen heads under policies."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from ..eviction import evicted_at
from ..kernels import LessKernel
from ..policies import get_policy
from .fidelity import attention_rows

PIXELS = 256
"""Rows and columns of a map at most; longer windows are averaged in blocks."""


class Shown(NamedTuple):
    """A policy whose maps are drawn, and the kernels that correct it (none: the policy alone)."""

    policy: str
    kernels: list[LessKernel] | None


def pooled(rows: torch.Tensor) -> torch.Tensor:
    """Attention rows (S, S) with at most :data:`PIXELS` queries and keys, averages of blocks."""
    block = -(-rows.shape[0] // PIXELS)
    return F.avg_pool2d(rows[None], block, ceil_mode=True)[0]


def maps_of(
    q: torch.Tensor, k: torch.Tensor, head: int, shown: Shown, layer: int, budget: int, scores: Any
) -> dict[str, torch.Tensor]:
    """Maps (T, T) of one head under one policy: true, the policy's, and with its kernels."""
    times = evicted_at(q, k, get_policy(shown.policy, budget), scores)
    queries = torch.arange(q.shape[2], device=q.device)
    group, place = divmod(head, q.shape[1] // k.shape[1])
    kernels = {shown.policy: None}
    if shown.kernels is not None:
        kernels[f"{shown.policy}+less"] = shown.kernels[layer]  # type: ignore[assignment]
    found: dict[str, torch.Tensor] = {}
    for kind, kernel in kernels.items():
        parts = [
            torch.stack([rows[0, group, place] for rows in pair])
            for pair in attention_rows(q, k, times, queries, kernel)
        ]
        true, approximate = torch.cat(parts, 1)
        found["full"], found[kind] = pooled(true), pooled(approximate)
    return found
