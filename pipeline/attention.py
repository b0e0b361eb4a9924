"""Attention of `transformers` models replaced from outside: attach, don't fork.

Models stay the library's classes. :func:`attach` puts a policy (and kernels) on every attention
layer for teacher-forced evaluation, by the hooks of :mod:`pipeline.transformer.interface`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from .eviction import Scores, evict_and_attend
from .kernels import Kernel
from .policies import Policy
from .synthesis import correct
from .transformer.interface import Handler, attention_layers, enable, handled, record

__all__ = ["attach", "enable", "policy_attention", "record"]


def policy_attention(policy: Policy, kernel: Kernel | None, scores: Scores) -> Handler:
    """Return attention of a whole sequence under ``policy``, corrected by ``kernel`` if any."""

    def handler(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        times, out, lse = evict_and_attend(q, k, v, policy, scores)
        return out if kernel is None else correct(q, k, v, times, kernel, out, lse)

    return handler


@contextmanager
def attach(
    model: PreTrainedModel,
    policy: Policy,
    kernels: Sequence[Kernel] | None = None,
    scores: Scores = "full",
) -> Iterator[PreTrainedModel]:
    """Evaluate ``model`` teacher-forced as if its cache followed ``policy``, within a ``with``.

    Args:
        policy: applied to every layer and row.
        kernels: one per layer, for LESS or +Performer; None for the sparse policy alone.
        scores: see :func:`pipeline.eviction.evicted_at`.

    Raises:
        ConfigError: a wrong number of kernels, or a model this cannot be done to.
    """
    without: Sequence[Kernel | None] = [None] * len(attention_layers(model))
    each = without if kernels is None else kernels
    with handled(model, [policy_attention(policy, kernel, scores) for kernel in each]):
        yield model
