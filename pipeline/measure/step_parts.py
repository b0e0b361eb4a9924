"""The parts of a decode step, as differences between stacks of layers."""

from __future__ import annotations

from dataclasses import replace

import torch
from transformers import PreTrainedModel

from ..cache import LessCache
from ..policies import Policy
from .operators import (
    ROUNDS,
    TINY,
    Kernels,
    Step,
    filled,
    pinned_step,
    random_token,
    timed,
    untrained_kernels,
)

# --- the parts of a step ----------------------------------------------------------------------

ABLATIONS = {
    "eviction": ("policy", "scoreless"),
    "kernels": ("all", "tiny maps"),
    "attention_synthesis": ("tiny maps", "tiny maps, nothing to read"),
    "low_rank_cache_update": ("tiny maps, nothing to read", "policy"),
}
"""A part of a decode step, and the two stacks of layers whose difference it is."""


def ablated(
    model: PreTrainedModel, policy: Policy, kernels: Kernels | None, batch: int, context: int
) -> dict[str, Step]:
    """Return stacks of attention layers, from the slots alone (``scoreless``) to all there is.

    ``scoreless`` keeps the latest tokens, so it neither scores nor searches. ``nothing to read``
    stands at the one position that evicts a pair but misses none before it.
    """
    q, k, v = random_token(model, batch)

    def stack(policy: Policy, kernels: Kernels | None, at: int) -> Step:
        return pinned_step(filled(LessCache(model.config, policy, kernels), batch, at, k), q, k, v)

    latest = replace(policy, name="latest", sink=0, recent=policy.budget, heavy=0)
    steps = {
        "scoreless": stack(latest, None, context),
        "policy": stack(policy, None, context),
    }
    if kernels is not None:
        rank = kernels[0].kernel_size
        tiny = untrained_kernels("less", model, kernel_size=rank, hidden_size=TINY)
        steps |= {
            "all": stack(policy, kernels, context),
            "tiny maps": stack(policy, tiny, context),
            "tiny maps, nothing to read": stack(policy, tiny, policy.budget),
        }
    return steps


def step_parts(
    model: PreTrainedModel,
    policy: Policy,
    kernels: Kernels | None,
    batch: int,
    context: int,
    rounds: int = ROUNDS,
) -> dict[str, float]:
    """Return seconds that a decode step of all layers spends in each part of :data:`ABLATIONS`.

    Without kernels only in ``eviction``. A difference of two times near each other may come out
    below zero by noise; it is given as it is.
    """
    with torch.no_grad():
        steps = ablated(model, policy, kernels, batch, context)
    seconds = timed(steps, model.device, rounds)
    return {
        part: seconds[more] - seconds[less]
        for part, (more, less) in ABLATIONS.items()
        if more in seconds and less in seconds
    }
