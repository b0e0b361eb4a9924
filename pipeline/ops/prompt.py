"""Reading a prompt: full attention, scores in blocks of queries, and one cut at its end."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ..policies import Policy

BLOCK_ELEMENTS = 2**22
"""Logits held at once (16 MiB in float32): blocks of queries shrink as prompts grow."""
GPU_BLOCK_ELEMENTS = 2**27
"""The same on a GPU, where a block is a few launches whatever its size."""


def _blocks(batch: int, heads: int, length: int, device: torch.device) -> list[slice]:
    """Return runs of queries whose logits over the whole prompt stay within the limit."""
    limit = GPU_BLOCK_ELEMENTS if device.type == "cuda" else BLOCK_ELEMENTS
    size = max(1, limit // (batch * heads * length))
    return [slice(i, min(i + size, length)) for i in range(0, length, size)]


def _causal(rows: slice, start: torch.Tensor) -> torch.Tensor:
    """Return which of the keys 0..rows.stop each query sees, bool (B, 1, T, rows.stop).

    Padding sees itself, so that no row is empty.
    """
    key = torch.arange(rows.stop, device=start.device)
    query = key[rows, None]
    return ((key <= query) & (key >= start[:, None, None]) | (key == query))[:, None]


def full_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, start: torch.Tensor
) -> torch.Tensor:
    """Return causal attention of a left-padded prompt by the library, never P x P logits.

    Args:
        q: (B, H, P, D). k, v: (B, G, P, D). start: (B,), how many of the first tokens are padding.

    Returns:
        (B, H, P, D) in q's dtype; rows of padding mean nothing.
    """
    if not bool(start.any()):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    out = torch.empty_like(q)
    for rows in _blocks(q.shape[0], 1, q.shape[2], q.device):
        out[:, :, rows] = F.scaled_dot_product_attention(
            q[:, :, rows],
            k[:, :, : rows.stop],
            v[:, :, : rows.stop],
            attn_mask=_causal(rows, start),
            enable_gqa=True,
        )
    return out


def prompt_scores(
    q: torch.Tensor, k: torch.Tensor, start: torch.Tensor, policy: Policy
) -> torch.Tensor:
    """Return scores of every key after the last query, by full rows: float32 (B, U, P).

    Empty, (B, U, 0), for a policy that needs none. Arguments as :func:`full_attention`.
    """
    batch, heads, length, size = q.shape
    groups = k.shape[1]
    sets = groups if policy.pooling == "group" else 1
    score = torch.zeros(batch, sets, length if policy.needs_scores else 0, device=q.device)
    if not policy.needs_scores:
        return score
    blocks = _blocks(batch, heads, length, q.device)
    if policy.decay == 0:  # only the last query counts
        blocks = [slice(length - 1, length)]
    for rows in blocks:
        block = q[:, :, rows].float().reshape(batch, groups, -1, size)
        logits = block @ k[:, :, : rows.stop].float().transpose(-1, -2) * size**-0.5
        logits = logits.view(batch, heads, -1, rows.stop)
        p = logits.masked_fill_(~_causal(rows, start), float("-inf")).softmax(-1)
        query = torch.arange(rows.start, rows.stop, device=q.device)
        weight = policy.decay ** (rows.stop - 1 - query).float() * (query >= start[:, None])
        score *= policy.decay ** (rows.stop - rows.start)
        pooled = weight[:, None, None] @ p  # (B, H, 1, rows.stop)
        score[..., : rows.stop] += pooled.view(batch, sets, -1, rows.stop).sum(2)
    return score


def cut(
    scores: torch.Tensor, start: torch.Tensor, length: int, policy: Policy
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the one cut after a prompt's last query.

    Args:
        scores: (B, U, P), or (B, U, 0). start: (B,) padding. length: P.

    Returns:
        Indices into the prompt: kept (B, U, min(P, C)), by position, and cut (B, U, the rest), in
        the order of eviction. Padding stands last among the kept and first among the cut.
    """
    column = torch.arange(length, device=scores.device)
    position = (column - start[:, None])[:, None].expand(-1, scores.shape[1], -1)
    rank = scores if scores.shape[-1] else torch.zeros_like(position, dtype=torch.float32)
    last = length - 1 - start[:, None, None]
    protected = (position < policy.sink) | (position > last - policy.recent)
    rank = rank.masked_fill(protected, float("inf")).masked_fill(position < 0, float("-inf"))
    order = rank.sort(dim=-1, stable=True).indices  # among equals the lowest position goes first
    excess = max(length - policy.budget, 0)
    kept = order[..., excess:]
    late = torch.where(kept >= start[:, None, None], kept, kept + length)
    return late.sort(dim=-1).values % length, order[..., :excess]
