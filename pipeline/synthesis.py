"""Synthesis: sparse attention and the low-rank state joined in one softmax (paper, equation 3).

    a_t = [ phi(q_t) H_t + sum_cached exp(l_j) v_j ] / [ phi(q_t) z_t + sum_cached exp(l_j) ]

with l_j = q_t k_j / sqrt(d), and H += psi(k)^T v, z += psi(k) for every evicted pair.

Two forms, one truth. The single-step form (:class:`LowRankState`) is what a cache runs. The
parallel form sorts keys by eviction time: every query then covers a prefix of the sorted keys, one
longer than the query before it, so a whole sequence is plain causal linear attention.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipeline.eviction import evictions_seen
from pipeline.kernels import Kernel
from pipeline.ops import backend

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
    """Unnormalised causal linear attention, query i over keys 0..i, chunk by chunk.

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
    """As :func:`linear_attention`, but query i over keys 0..i * stride.

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
        """The empty memory."""
        return cls(
            torch.zeros(batch, groups, rank, size, device=device),
            torch.zeros(batch, groups, rank, device=device),
        )

    def absorb(self, psi: torch.Tensor, v: torch.Tensor) -> None:
        """Take in evicted pairs, in place: psi (B, G, T, R), v (B, G, T, D)."""
        self.H += psi.transpose(-1, -2) @ v.float()
        self.z += psi.sum(-2)

    def read(self, phi: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """phi H (B, H, T, D) and phi z (B, H, T) of query features (B, H, T, R)."""
        batch, heads, length, rank = phi.shape
        rows = phi.reshape(batch, self.z.shape[1], -1, rank)
        numerator = (rows @ self.H).view(batch, heads, length, -1)
        return numerator, (rows @ self.z[..., None]).view(batch, heads, length)


@dataclass
class EvictedOrder:
    """Keys and values in the order of their eviction, and the queries that miss them.

    Attributes:
        first: the first query that misses anything; queries ``first``.. are the ones to correct.
        initial: how many pairs are evicted at once before it, less the one every step evicts.
        index: (B, G, E) positions of the pairs evicted before the last query, in eviction order.
    """

    first: int
    initial: int
    index: torch.Tensor

    @classmethod
    def of(cls, evicted_at: torch.Tensor) -> EvictedOrder:
        """The order of eviction times (B, G, S)."""
        length = evicted_at.shape[-1]
        first, count = evictions_seen(evicted_at)
        covered = max(count + length - first - 1, 0) if count else 0
        index = evicted_at.sort(dim=-1, stable=True).indices[..., :covered]
        return cls(first, max(count - 1, 0), index)

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """(B, G, S, D) to (B, G, E, D), in eviction order."""
        return x.gather(2, self.index[..., None].expand(*self.index.shape, x.shape[-1]))


def sparse_part(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, evicted_at: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over what is visible (B, H, S, D) and its log-sum-exp (B, H, S), float32.

    Raises:
        ValueError: q of another length than k.
    """
    batch, groups, length, size = k.shape
    if q.shape[2] != length:
        raise ValueError(f"{q.shape[2]} queries do not match {length} keys")
    units = batch * groups
    out, lse = backend(q.device).sparse_attention(
        q.reshape(units, 1, -1, length, size), k.reshape(units, 1, length, size),
        v.reshape(units, 1, length, size), evicted_at.reshape(units, length),
    )  # fmt: skip
    return out.view(q.shape), lse.view(q.shape[:-1])


def low_rank_part(
    phi: torch.Tensor, psi: torch.Tensor, v: torch.Tensor, initial: int = 0, stride: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """phi H and phi z of the queries that miss something, or of every ``stride``-th of them.

    Args:
        phi: features of those queries, (B, H, T, R).
        psi, v: of the evicted pairs in eviction order, (B, G, initial + 1 + (T - 1) stride, ...).
        initial: pairs that the first of those queries already misses besides one.
    """
    rest = psi[:, :, initial:], v[:, :, initial:].float()
    if stride == 1:
        compiled = getattr(backend(phi.device), "linear_attention", linear_attention)
        numerator, denominator = compiled(phi, *rest)
    else:
        numerator, denominator = strided_linear_attention(phi, *rest, stride)
    if initial:
        batch, groups, _, rank = psi.shape
        state = LowRankState.zeros(batch, groups, rank, v.shape[-1], psi.device)
        state.absorb(psi[:, :, :initial], v[:, :, :initial])
        more, mass = state.read(phi)
        numerator, denominator = numerator + more, denominator + mass
    return numerator, denominator


def correct(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, evicted_at: torch.Tensor, kernel: Kernel,
    sparse_out: torch.Tensor, lse: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """Add the low-rank part to a sparse attention output: (B, H, S, D), float32."""
    order = EvictedOrder.of(evicted_at)
    if order.index.shape[-1] == 0:
        return sparse_out
    rows = slice(order.first, None)
    numerator, denominator = low_rank_part(
        kernel.phi(q[:, :, rows]), kernel.psi(order.gather(k)), order.gather(v), order.initial
    )
    merged = merge(sparse_out[:, :, rows], lse[:, :, rows], numerator, denominator)
    return torch.cat([sparse_out[:, :, : order.first], merged], dim=2)


def synthesize(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    evicted_at: torch.Tensor,
    kernel: Kernel | None = None,
) -> torch.Tensor:
    """Attention of a whole sequence under eviction times, with or without the low-rank part.

    Args:
        q: (B, H, S, D). k, v: (B, G, S, D), any float dtype.
        evicted_at: (B, G, S), from :func:`pipeline.eviction.evicted_at`.
        kernel: the layer's feature maps; None gives the sparse policy alone.

    Returns:
        (B, H, S, D), float32. No tensor of size S x S is formed.
    """
    out, lse = sparse_part(q, k, v, evicted_at)
    return out if kernel is None else correct(q, k, v, evicted_at, kernel, out, lse)
