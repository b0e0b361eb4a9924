"""Operators over whole sequences: what a backend offers, and which one serves a device.

Every operator exists in ``reference/sequence`` (plain, obviously right, any device) and in
compiled forms with the same signature.
"""

from __future__ import annotations

from typing import Protocol

import torch

from ..policies import Policy


class SequenceBackend(Protocol):
    """A module of operators over whole sequences.

    Tensors are by index set (:func:`pipeline.ops.times.by_index_set`): q (U, M, N, S, D), k and v
    (U, M, S, D); eviction times are int32 (U, S).
    """

    def evict(
        self, q: torch.Tensor, k: torch.Tensor, policy: Policy, scores: str, prompt: int = 0
    ) -> torch.Tensor:
        """Return eviction times; see :func:`pipeline.eviction.evicted_at`."""

    def sparse_attention(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, evicted_at: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return attention over what is visible, like q, and its log-sum-exp (U, M, N, S)."""

    def bounded_attention(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, policy: Policy, prompt: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return eviction times by cached scores and, of the same pass, attention."""


def backend(device: torch.device) -> SequenceBackend:
    """Return the module that implements the operators for ``device``."""
    if device.type == "cpu":
        from .cpu import sequence as cpu

        return cpu
    if device.type == "cuda":
        from .gpu import sequence as gpu

        return gpu
    from .reference import sequence as reference

    return reference


def sparse_part(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, evicted_at: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return attention over what is visible (B, H, S, D) and its log-sum-exp (B, H, S), float32.

    Args:
        q: (B, H, S, D). k, v: (B, G, S, D). evicted_at: (B, G, S).

    Raises:
        ValueError: q of another length than k.
    """
    batch, groups, length, size = k.shape
    if q.shape[2] != length:
        raise ValueError(f"{q.shape[2]} queries do not match {length} keys")
    units = batch * groups
    out, lse = backend(q.device).sparse_attention(
        q.reshape(units, 1, -1, length, size),
        k.reshape(units, 1, length, size),
        v.reshape(units, 1, length, size),
        evicted_at.reshape(units, length),
    )
    return out.view(q.shape), lse.view(q.shape[:-1])
