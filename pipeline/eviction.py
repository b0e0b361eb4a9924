"""Eviction times: the whole effect of a policy on a sequence, one integer a key.

Evicted keys never return, so a policy is described by ``evicted_at[j]``, the first query position
that no longer sees key j (:data:`NEVER` where it is kept): key j is visible to query i
iff j <= i < evicted_at[j]. Times depend on q and k only, never on trained weights.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch

from .errors import ConfigError, unknown
from .ops.sequence import backend, sparse_part
from .ops.times import NEVER, by_index_set, evictions_seen
from .policies import Policy

__all__ = ["NEVER", "Scores", "evict_and_attend", "evicted_at", "evictions_seen"]

Scores = Literal["cached", "full"]


def _per_head(times: torch.Tensor, batch: int, groups: int) -> torch.Tensor:
    """Return times (U, S) as (B, G, S); heads that share an index set share its times."""
    return times.view(batch, -1, times.shape[-1]).expand(batch, groups, -1)


def _check_prompt(prompt: int, length: int) -> None:
    """Refuse a prompt that is no part of a sequence."""
    if not 0 <= prompt <= length:
        raise ConfigError(f"a prompt of {prompt} tokens does not lie within {length} tokens.")


def evicted_at(
    q: torch.Tensor, k: torch.Tensor, policy: Policy, scores: Scores = "cached", prompt: int = 0
) -> torch.Tensor:
    """Return eviction times of every key under ``policy``.

    Args:
        q: queries after rotary embedding, (B, H, S, D), any float dtype.
        k: keys after rotary embedding, (B, G, S, D), G dividing H.
        scores: ``cached``, probabilities over the keys still cached, as a bounded cache computes
            them; ``full``, over the whole causal row, as the paper's tables use.
        prompt: the first ``prompt`` queries see everything and one cut follows the last of them.

    Returns:
        int32 (B, G, S), :data:`NEVER` where kept.

    Raises:
        ConfigError: unknown ``scores``, or a prompt longer than the sequence.
    """
    _check_prompt(prompt, q.shape[2])
    if scores not in get_args(Scores):
        raise unknown("scores", scores, get_args(Scores))
    times = backend(q.device).evict(*by_index_set(q, k, policy), policy, scores, prompt)
    return _per_head(times, k.shape[0], k.shape[1])


def evict_and_attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    policy: Policy,
    scores: Scores = "cached",
    prompt: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return eviction times and the attention over what is cached; in one pass by cached scores.

    Args:
        q: (B, H, S, D). k, v: (B, G, S, D).
        scores, prompt: as for :func:`evicted_at`.

    Returns:
        evicted_at int32 (B, G, S); output float32 (B, H, S, D); log-sum-exp of the visible logits
        float32 (B, H, S).

    Raises:
        ConfigError: as :func:`evicted_at`.
    """
    if scores != "cached":
        times = evicted_at(q, k, policy, scores, prompt)
        return times, *sparse_part(q, k, v, times)
    _check_prompt(prompt, q.shape[2])
    units, keys = by_index_set(q, k, policy)
    times, out, lse = backend(q.device).bounded_attention(
        units, keys, v.reshape(keys.shape), policy, prompt
    )
    return _per_head(times, k.shape[0], k.shape[1]), out.view(q.shape), lse.view(q.shape[:-1])
