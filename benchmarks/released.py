"""A training step the way the released code does it: what the benchmark compares with.

In every batch the policy's mask is found anew, query by query over whole rows, and attention is
rebuilt over S x S matrices for all query heads: logits, boolean mask, phi psi^T, their mixture
(method of Dong et al. 2024 as released; written from its description).
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from pipeline.kernels import LessKernel
from pipeline.ops import by_index_set, reference
from pipeline.policies import Policy


def visible(q: torch.Tensor, k: torch.Tensor, policy: Policy) -> torch.Tensor:
    """The boolean mask (1, H, S, S) of what each query sees under ``policy``."""
    times = reference.evict(*by_index_set(q, k, policy), policy, "cached")
    mask = reference.visible_mask(times)
    return mask.repeat_interleave(q.shape[1] // mask.shape[0], dim=0)[None]


def loss(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, o_weight: torch.Tensor,
    policy: Policy, kernel: LessKernel, mask: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """Mean squared error after the output projection, over the rows that miss something.

    Args:
        q: (1, H, S, D). k, v: (1, G, S, D). o_weight: (hidden, H*D).
        mask: from :func:`visible`; None finds it here, as the release does in each batch.
    """
    length, rep = q.shape[2], q.shape[1] // k.shape[1]
    if mask is None:
        mask = visible(q, k, policy)
    psi = kernel.psi(k).repeat_interleave(rep, dim=1)
    keys, values = (x.repeat_interleave(rep, dim=1) for x in (k, v))
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    logits = q @ keys.transpose(-1, -2) * q.shape[-1] ** -0.5
    target = logits.masked_fill(~causal, float("-inf")).softmax(-1) @ values
    shift = logits.masked_fill(~mask, float("-inf")).amax(-1, keepdim=True)
    weights = (logits - shift).exp() * mask
    weights = weights + (kernel.phi(q) @ psi.transpose(-1, -2)) * (-shift).exp() * (causal & ~mask)
    attended = (weights / weights.sum(-1, keepdim=True)) @ values
    rows = slice(policy.budget + 1, None)
    difference = (attended - target)[:, :, rows].transpose(1, 2).flatten(2)
    return F.linear(difference, o_weight).square().mean()
