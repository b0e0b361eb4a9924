"""The low-rank state, how it is joined with sparse attention, and its causal parallel form."""

from __future__ import annotations

from dataclasses import dataclass

import torch

EPSILON = 1e-6
CHUNK = 16  # queries whose mutual weights are formed at once; 16 to 32 is fastest on a CPU


def merge(
    sparse_out: torch.Tensor,
    lse: torch.Tensor,
    numerator: torch.Tensor,
    denominator: torch.Tensor,
) -> torch.Tensor:
    """Join the two parts in float32, working with logarithms so that exp never overflows.

        a = sparse_out e^(lse - Z) + numerator e^(-Z),   Z = logaddexp(lse, log(denominator + eps))

    Where the denominator does not count beside eps there is no memory (psi = 0, say), and a is
    ``sparse_out`` exactly, whatever the logits.

    Args:
        sparse_out: attention over the cached keys, (..., D). lse: of the cached logits, (...).
        numerator: phi H, (..., D). denominator: phi z, (...).
    """
    mass = denominator + EPSILON
    empty = mass <= EPSILON
    z = torch.logaddexp(lse, mass.log().masked_fill(empty, -torch.inf))
    unit = (-z).masked_fill(empty, -torch.inf).exp()
    return sparse_out * (lse - z).exp()[..., None] + numerator * unit[..., None]


def linear_attention(
    phi: torch.Tensor, psi: torch.Tensor, v: torch.Tensor, chunk: int = CHUNK
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return unnormalised causal linear attention, query i over keys 0..i, chunk by chunk.

    Args:
        phi: (B, H, T, R). psi: (B, G, T, R). v: (B, G, T, D). float32.

    Returns:
        numerator (B, H, T, D) and denominator (B, H, T); memory O(T (chunk + D)).
    """
    batch, heads, length, rank = phi.shape
    groups, size = v.shape[1], v.shape[-1]
    pad = -length % chunk
    v = torch.cat([v, v.new_ones(batch, groups, length, 1)], dim=-1)  # last column sums psi: z
    if pad:
        phi, psi, v = (torch.nn.functional.pad(x, (0, 0, 0, pad)) for x in (phi, psi, v))
    chunks, rep = (length + pad) // chunk, heads // groups
    # Query heads of a group are stacked along the rows of one matrix product.
    phi = phi.view(batch, groups, rep, chunks, chunk, rank).transpose(2, 3)
    phi = phi.reshape(batch, groups, chunks, rep * chunk, rank)
    psi = psi.view(batch, groups, chunks, chunk, rank)
    v = v.view(batch, groups, chunks, chunk, size + 1)
    added = psi.transpose(-1, -2) @ v
    before = added.cumsum(2) - added
    causal = torch.ones(chunk, chunk, device=phi.device).tril().repeat(rep, 1)
    out = phi @ before + ((phi @ psi.transpose(-1, -2)) * causal) @ v
    out = out.view(batch, groups, chunks, rep, chunk, size + 1).transpose(2, 3)
    out = out.reshape(batch, heads, length + pad, size + 1)[:, :, :length]
    return out[..., :size], out[..., size]


def strided_linear_attention(
    phi: torch.Tensor, psi: torch.Tensor, v: torch.Tensor, stride: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Do as :func:`linear_attention`, but query i over keys 0..i * stride.

    Args:
        phi: (B, H, T, R). psi: (B, G, (T - 1) * stride + 1, R). v: (B, G, (T - 1) * stride + 1, D).

    Returns:
        numerator (B, H, T, D) and denominator (B, H, T); memory O(T R D), a state for each query.
    """
    batch, heads, length, rank = phi.shape
    groups, size = v.shape[1], v.shape[-1]
    v = torch.cat([v, v.new_ones(*v.shape[:-1], 1)], dim=-1)  # last column sums psi: z
    first = psi[:, :, :1].mT @ v[:, :, :1]
    psi = psi[:, :, 1:].reshape(batch, groups, length - 1, stride, rank)
    v = v[:, :, 1:].reshape(batch, groups, length - 1, stride, size + 1)
    states = torch.cat([first[:, :, None], psi.mT @ v], dim=2).cumsum(2)
    out = phi.view(batch, groups, -1, length, rank).transpose(2, 3) @ states
    out = out.transpose(2, 3).reshape(batch, heads, length, size + 1)
    return out[..., :size], out[..., size]


@dataclass
class LowRankState:
    """What one layer remembers of evicted pairs: H (B, G, R, D) and z (B, G, R), float32."""

    H: torch.Tensor
    z: torch.Tensor

    @classmethod
    def zeros(
        cls, batch: int, groups: int, rank: int, size: int, device: torch.device | str = "cpu"
    ) -> LowRankState:
        """Return the empty memory."""
        return cls(
            torch.zeros(batch, groups, rank, size, device=device),
            torch.zeros(batch, groups, rank, device=device),
        )

    def absorb(self, psi: torch.Tensor, v: torch.Tensor) -> None:
        """Take in evicted pairs, in place: psi (B, G, T, R), v (B, G, T, D)."""
        self.H += psi.transpose(-1, -2) @ v.float()
        self.z += psi.sum(-2)

    def read(self, phi: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return phi H (B, H, T, D) and phi z (B, H, T) of query features (B, H, T, R)."""
        batch, heads, length, rank = phi.shape
        rows = phi.reshape(batch, self.z.shape[1], -1, rank)
        numerator = (rows @ self.H).view(batch, heads, length, -1)
        return numerator, (rows @ self.z[..., None]).view(batch, heads, length)
