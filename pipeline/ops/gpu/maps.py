"""Feature maps phi and psi of a trained kernel, hidden units never in memory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..packed import PackedKernel, PlainKernel
from .tiles import dot, padded, rows, tuned

CONFIGS = [
    triton.Config({"BLOCK": block}, num_warps=warps, num_stages=stages)
    for block, warps, stages in [(32, 4, 2), (64, 4, 2), (64, 4, 3), (64, 8, 2)]
]
"""Hidden units at once."""
TOKENS = 64
"""Tokens of one program, at most."""
SQRT_HALF = tl.constexpr(0.5**0.5)


@triton.jit
def gelu(x):
    """Return x times the normal distribution function of x."""
    return 0.5 * x * (1.0 + tl.erf(x * SQRT_HALF))


@tuned(CONFIGS, key=["D", "RP", "TP", "hidden_size"])
@triton.jit(do_not_specialize=["heads", "groups", "count", "length"])
def _features_kernel(
    q, k, w1, w2, last, phi, psi, heads, groups, count, length, hidden_size, in_stride, out_stride,
    D: tl.constexpr, R: tl.constexpr, DP: tl.constexpr, RP: tl.constexpr, TP: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Map in programs (heads + groups, tokens / TP): the heads of q (B, H, T, D), then k's.

    ``count`` B T tokens a head. Weights as :class:`~pipeline.ops.packed.PackedKernel` holds them.
    """
    head = tl.program_id(0).to(tl.int64)
    token = tl.program_id(1) * TP + tl.arange(0, TP)
    d, r = tl.arange(0, DP), tl.arange(0, RP)
    some = (token < count)[:, None]
    b, t = token // length, token % length
    if head < heads:
        row = (b * heads + head) * length + t
        x = tl.load(q + row[:, None] * D + d[None, :], some & (d < D)[None, :], 0.0)
        x = x.to(w1.dtype.element_ty)
    else:
        row = (b * groups + head - heads) * length + t
        x = tl.load(k + row[:, None] * D + d[None, :], some & (d < D)[None, :], 0.0)
        x = x.to(w1.dtype.element_ty)
    u = tl.zeros([TP, RP], tl.float32)
    for start in range(0, hidden_size, BLOCK):
        h = start + tl.arange(0, BLOCK)
        within = h < hidden_size
        at = head * hidden_size * D + d[:, None] * in_stride + h[None, :] * out_stride
        hidden = dot(x, tl.load(w1 + at, within[None, :] & (d < D)[:, None], 0.0))
        hidden = gelu(hidden.to(x.dtype).to(tl.float32))
        at = (head * hidden_size + h)[:, None] * R + r[None, :]
        u += dot(hidden, tl.load(w2 + at, within[:, None] & (r < R)[None, :], 0.0))
    at = (head * R + r)[None, :] * R + r[:, None]
    y = tl.abs(dot(gelu(u), tl.load(last + at, (r < R)[None, :] & (r < R)[:, None], 0.0)))
    if head < heads:
        tl.store(phi + row[:, None] * R + r[None, :], y, some & (r < R)[None, :])
    else:
        tl.store(psi + row[:, None] * R + r[None, :], y, some & (r < R)[None, :])


def features(
    kernel: PackedKernel | PlainKernel, q: torch.Tensor, k: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (kernel.phi(q), kernel.psi(k)) of as many tokens each; one launch for a packed kernel.

    Args:
        q: (B, H, T, D). k: (B, G, T, D).
    """
    if isinstance(kernel, PlainKernel):
        return kernel.phi(q), kernel.psi(k)
    return packed_features(kernel.w1, kernel.w2, kernel.last, q, k)


def packed_features(
    w1: torch.Tensor, w2: torch.Tensor, last: torch.Tensor, q: torch.Tensor, k: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return :func:`features` from the weights that a packed kernel holds."""
    q, k = q.contiguous(), k.contiguous()
    batch, heads, length, size = q.shape
    groups, count = k.shape[1], batch * length
    hidden_size, rank = w2.shape[1:]
    phi = q.new_empty(batch, heads, length, rank, dtype=torch.float32)
    psi = k.new_empty(batch, groups, length, rank, dtype=torch.float32)
    tokens = min(TOKENS, rows(count))
    _features_kernel[(heads + groups, triton.cdiv(count, tokens))](
        q, k, w1, w2, last, phi, psi, heads, groups, count, length,
        hidden_size, *w1.stride()[1:], size, rank, padded(size), padded(rank), tokens,
    )  # fmt: skip
    return phi, psi
