"""A training step the way the method's released code takes it: what the benchmark compares with.

In every batch the policy's boolean masks are found anew, query by query over whole rows of
attention, and attention is rebuilt as S x S matrices of all query heads: logits, masks, phi psi^T
and their mixture. Written from a description of that code (Dong et al. 2024), with grouped-query
attention added by repeating heads. Kernels are this package's own, and the full model's output is
given, so only the way of attending differs.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from pipeline.kernels import LessKernel
from pipeline.ops.low_rank import EPSILON
from pipeline.policies import Policy


def causal_logits(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """(B, H, S, D), (B, G, S, D) to (B, H, S, S): q k^T / sqrt(d), -inf in the future."""
    keys = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    logits = q @ keys.mT * q.shape[-1] ** -0.5
    future = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1)
    return logits.masked_fill_(future, float("-inf"))


def masks(logits: torch.Tensor, policy: Policy, groups: int) -> torch.Tensor:
    """What each query sees, (B, H, S, S) bool, one row of logits (B, H, S, S) after the other.

    Scores are over whole causal rows, summed over the query heads of each of ``groups`` heads.
    """
    batch, heads, length, _ = logits.shape
    seen = torch.zeros(batch, groups, length, length, dtype=torch.bool)
    cached = torch.zeros(batch, groups, length, dtype=torch.bool)
    score = torch.zeros(batch, groups, length)
    for t in range(length):
        cached[..., t] = True
        seen[..., t, :] = cached
        row = logits[..., t, :].softmax(-1)
        score = policy.decay * score + row.view(batch, groups, -1, length).sum(2)
        if t >= policy.budget:
            candidate = cached.clone()
            candidate[..., : policy.sink] = False
            candidate[..., t - policy.recent + 1 :] = False
            lowest = score.masked_fill(~candidate, float("inf")).argmin(-1, keepdim=True)
            cached.scatter_(-1, lowest, False)
    return seen.repeat_interleave(heads // groups, dim=1)


def loss_of(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, target: torch.Tensor,
    o_weight: torch.Tensor, policy: Policy, kernel: LessKernel, seen: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """Mean squared error after the output projection, over the rows that miss something.

    Args:
        q, target: (B, H, S, D), target being full attention. k, v: (B, G, S, D).
        o_weight: (hidden, H*D).
        seen: from :func:`masks`; None finds it here, as the release does in each batch.
    """
    rep = q.shape[1] // k.shape[1]
    logits = causal_logits(q, k)
    if seen is None:
        seen = masks(logits, policy, k.shape[1])
    missed = torch.ones_like(seen[0, 0]).tril() & ~seen
    sparse = logits.masked_fill(~seen, float("-inf"))
    low_rank = kernel.phi(q) @ kernel.psi(k).repeat_interleave(rep, dim=1).mT * missed
    mass = (low_rank.sum(-1, keepdim=True) + EPSILON).log()
    z = torch.logaddexp(sparse.logsumexp(-1, keepdim=True), mass)
    attention = (sparse - z).exp() + low_rank * (-z).exp()
    out = attention @ v.repeat_interleave(rep, dim=1)
    difference = (out - target)[:, :, policy.budget + 1 :].transpose(1, 2).flatten(2)
    return F.linear(difference, o_weight).square().mean()
