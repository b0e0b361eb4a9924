"""The operators written plainly: step by step over dense rows, on any device.

These are the truth the compiled forms are tested against. They cost O(S^2) memory and a small
tensor operation per step.
"""

from __future__ import annotations

import torch

from ...policies import Policy
from ..times import NEVER


def causal_logits(q: torch.Tensor, k: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Return q k^T / sqrt(d) in float32 with -inf where not visible.

    Args:
        q: (U, M, N, S, D). k: (U, M, S, D). visible: broadcastable to (U, M, N, S, S), bool.
    """
    logits: torch.Tensor = (
        q.float() @ k.float().unsqueeze(2).transpose(-1, -2) * q.shape[-1] ** -0.5
    )
    return logits.masked_fill(~visible, float("-inf"))


def visible_mask(evicted_at: torch.Tensor) -> torch.Tensor:
    """Return the mask (U, S, S) of times (U, S): key j visible to i iff j <= i < e_j."""
    position = torch.arange(evicted_at.shape[-1], device=evicted_at.device)
    causal = position[None, :] <= position[:, None]
    return causal & (position[:, None] < evicted_at[:, None, :])


def keep(score: torch.Tensor, cached: torch.Tensor, query: int, policy: Policy) -> torch.Tensor:
    """Return which cached keys stay after ``query``, (U, S), of scores and cached (U, S).

    Evicts the candidates (neither sink nor recent) of lowest score, lowest position first among
    equals, until the budget holds.
    """
    position = torch.arange(score.shape[-1], device=score.device)
    candidate = cached & (position >= policy.sink) & (position <= query - policy.recent)
    excess = int(cached[0].sum()) - policy.budget
    ranked = torch.where(candidate, score, float("inf")).sort(dim=-1, stable=True).indices
    kept = cached.clone()
    if excess > 0:
        kept.scatter_(-1, ranked[:, :excess], False)
    return kept


def evict(
    q: torch.Tensor, k: torch.Tensor, policy: Policy, scores: str, prompt: int = 0
) -> torch.Tensor:
    """Return eviction times (U, S), int32, by the policy's definition, one query at a time.

    Args:
        q: (U, M, N, S, D). k: (U, M, S, D).
        scores: ``full`` (probabilities over the causal row) or ``cached`` (over what is cached).
        prompt: queries before it see everything; one cut follows the last of them.
    """
    sets, length = q.shape[0], q.shape[-2]
    cached = torch.zeros(sets, length, dtype=torch.bool, device=q.device)
    score = torch.zeros(sets, length, device=q.device)
    evicted_at = torch.full((sets, length), NEVER, dtype=torch.int32, device=q.device)
    position = torch.arange(length, device=q.device)
    for t in range(length):
        cached[:, t] = True
        row = cached if scores == "cached" else (position <= t).expand(sets, length)
        row = row if t >= prompt else (position <= t).expand(sets, length)
        logits = causal_logits(q[..., t : t + 1, :], k, row[:, None, None, None, :])
        p = logits.softmax(-1).sum((1, 2, 3))
        score = policy.decay * score + p
        if t + 1 >= prompt:
            kept = keep(score, cached, t, policy)
            evicted_at[cached & ~kept] = t + 1
            cached = kept
    return evicted_at


def sparse_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, evicted_at: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return attention over what is visible, by an S x S mask.

    Args:
        q: (U, M, N, S, D). k, v: (U, M, S, D). evicted_at: (U, S).

    Returns:
        The output (U, M, N, S, D) and the log-sum-exp of the visible logits (U, M, N, S), float32.
    """
    logits = causal_logits(q, k, visible_mask(evicted_at)[:, None, None])
    return logits.softmax(-1) @ v.float().unsqueeze(2), logits.logsumexp(-1)


def bounded_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, policy: Policy, prompt: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Evict by cached scores and attend over the rest: (evicted_at, out, lse)."""
    evicted_at = evict(q, k, policy, "cached", prompt)
    return evicted_at, *sparse_attention(q, k, v, evicted_at)
