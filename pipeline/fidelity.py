"""How well approximated attention rows match the true ones (paper, section 4.4 and Figure 6)."""

from __future__ import annotations

import torch

from pipeline.kernels import Kernel

ROWS = 256  # queries at once; keeps memory at O(ROWS * S)


def hellinger(
    q: torch.Tensor,
    k: torch.Tensor,
    evicted_at: torch.Tensor,
    queries: torch.Tensor,
    kernel: Kernel | None = None,
) -> torch.Tensor:
    """Hellinger distance of attention rows to its approximation under eviction times.

        distance = || sqrt(p) - sqrt(p') ||_2 / sqrt(2)

    where p' spreads over the visible keys by exp(q k / sqrt(d)) and, given a ``kernel``, over the
    evicted ones by phi(q) psi(k).

    Args:
        q: (B, H, S, D). k: (B, G, S, D). evicted_at: (B, G, S).
        queries: positions of the rows to judge, (T,).

    Returns:
        float32 (B, H, T), in [0, 1].
    """
    q = q[:, :, queries]
    batch, heads, count, size = q.shape
    groups = k.shape[1]
    rows = q.float().view(batch, groups, heads // groups, count, size)
    position = torch.arange(k.shape[2], device=q.device)
    features = None
    if kernel is not None:
        phi = kernel.phi(q).view(batch, groups, heads // groups, count, -1)
        features = phi, kernel.psi(k)[:, :, None].transpose(-1, -2)
    distances = []
    for start in range(0, count, ROWS):
        chunk = slice(start, start + ROWS)
        causal = position <= queries[chunk, None]
        visible = causal & (queries[chunk, None] < evicted_at[:, :, None, None, :])
        logits = rows[..., chunk, :] @ k.float()[:, :, None].transpose(-1, -2) * size**-0.5
        logits = logits.masked_fill(~causal, float("-inf"))
        true = logits.softmax(-1)
        # One shift for both parts keeps exp in range and cancels in the normalisation. It is that
        # of the visible keys: all they weigh may be nothing beside a key that is gone.
        shift = logits.masked_fill(~visible, float("-inf")).amax(-1, keepdim=True)
        mass = torch.where(visible, (logits - shift).exp(), 0.0)
        if features is not None:
            low_rank = features[0][..., chunk, :] @ features[1] * (-shift).exp()
            mass = torch.where(visible | ~causal, mass, low_rank)
        approximate = mass / mass.sum(-1, keepdim=True)
        distances.append((true.sqrt() - approximate.sqrt()).square().sum(-1).div(2).sqrt())
    return torch.cat(distances, dim=-1).view(batch, heads, count)
