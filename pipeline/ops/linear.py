"""Pick the backend of causal linear attention."""

from __future__ import annotations

import torch

from . import low_rank


def linear_attention(
    phi: torch.Tensor, psi: torch.Tensor, v: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """See :func:`pipeline.ops.low_rank.linear_attention`; compiled where there is a GPU."""
    if phi.device.type == "cuda":
        from .gpu.linear import linear_attention as compiled

        return compiled(phi, psi, v)
    return low_rank.linear_attention(phi, psi, v)
