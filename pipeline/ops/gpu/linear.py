"""Causal linear attention for training, chunk by chunk, with its gradients.

Two kernels: the state before every chunk, one program a head, and then the outputs of all chunks at
once. They serve the backward pass too, because the gradients of causal linear attention

    out_i = sum over j <= i of (phi_i . psi_j) w_j,    w_j = [v_j, 1]

are causal linear attention again, with the parts exchanged and, for two of them, time reversed:

    d phi_i = sum over j <= i of (d out_i . w_j) psi_j
    d psi_j = sum over i >= j of (w_j . d out_i) phi_i
    d w_j   = sum over i >= j of (psi_j . phi_i) d out_i
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from .tiles import INTERPRETED, padded, tuned

CHUNK = 16 if INTERPRETED else 32
"""Positions whose mutual weights are formed at once."""
SIDE = 64
"""Rows and columns of a tile of the state, at most."""
CONFIGS = [
    triton.Config({}, num_warps=warps, num_stages=stages)
    for warps, stages in [(8, 2), (4, 2), (8, 1)]
]
PRECISION = tl.constexpr("tf32x3")
"""Three products on tensor cores, that lose about as little as one in float32."""
LENGTHS = ["length", "chunks"]
"""Arguments whose values must not make compiled variants."""


@triton.jit
def _place(chunk, length, REVERSE, CHUNK):
    """Return positions (CHUNK,) of a chunk, in the order of the sum; past the length at its end."""
    i = chunk * CHUNK + tl.arange(0, CHUNK)
    inside = i < length
    if REVERSE:
        i = length - 1 - i
    return i, inside


@tuned(CONFIGS, key=["K", "V", "REVERSE"])
@triton.jit(do_not_specialize=LENGTHS)
def _states_kernel(
    keys, values, states, length, chunks,
    K: tl.constexpr, V: tl.constexpr, KP: tl.constexpr, VP: tl.constexpr, CHUNK: tl.constexpr,
    REVERSE: tl.constexpr,
):  # fmt: skip
    """Sum states (heads, chunks, K, V) before each chunk: programs (heads, K / KP, V / VP)."""
    head = tl.program_id(0).to(tl.int64)
    a, b = tl.program_id(1) * KP + tl.arange(0, KP), tl.program_id(2) * VP + tl.arange(0, VP)
    state = tl.zeros([KP, VP], tl.float32)
    for chunk in range(0, chunks):
        at = ((head * chunks + chunk) * K + a)[:, None] * V + b[None, :]
        tl.store(states + at, state, (a < K)[:, None] & (b < V)[None, :])
        j, inside = _place(chunk, length, REVERSE, CHUNK)
        row = (head * length + j)[:, None]
        key = tl.load(keys + row * K + a[None, :], inside[:, None] & (a < K)[None, :], 0.0)
        value = tl.load(values + row * V + b[None, :], inside[:, None] & (b < V)[None, :], 0.0)
        state += tl.dot(tl.trans(key), value, input_precision=PRECISION)


@tuned(CONFIGS, key=["K", "V", "REVERSE"])
@triton.jit(do_not_specialize=LENGTHS)
def _outputs_kernel(
    queries, keys, values, states, out, length, chunks,
    QUERY: tl.constexpr, KEY: tl.constexpr, K: tl.constexpr, V: tl.constexpr, KP: tl.constexpr,
    VP: tl.constexpr, CHUNK: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Read states in programs (heads, chunks, V / VP); QUERY heads share a query, KEY a key."""
    head, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    b = tl.program_id(2) * VP + tl.arange(0, VP)
    i, inside = _place(chunk, length, REVERSE, CHUNK)
    query_row = (head // QUERY * length + i)[:, None]
    key_row = (head // KEY * length + i)[:, None]
    weight = tl.zeros([CHUNK, CHUNK], tl.float32)
    result = tl.zeros([CHUNK, VP], tl.float32)
    for start in range(0, K, KP):
        a = start + tl.arange(0, KP)
        wanted = inside[:, None] & (a < K)[None, :]
        query = tl.load(queries + query_row * K + a[None, :], wanted, 0.0)
        key = tl.load(keys + key_row * K + a[None, :], wanted, 0.0)
        at = ((head // KEY * chunks + chunk) * K + a)[:, None] * V + b[None, :]
        state = tl.load(states + at, (a < K)[:, None] & (b < V)[None, :], 0.0)
        weight += tl.dot(query, tl.trans(key), input_precision=PRECISION)
        result += tl.dot(query, state, input_precision=PRECISION)
    order = tl.arange(0, CHUNK)
    weight = tl.where(order[:, None] >= order[None, :], weight, 0.0)
    wanted = inside[:, None] & (b < V)[None, :]
    value = tl.load(values + key_row * V + b[None, :], wanted, 0.0)
    result += tl.dot(weight, value, input_precision=PRECISION)
    tl.store(out + (head * length + i)[:, None] * V + b[None, :], result, wanted)


def causal(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, reverse: bool = False
) -> torch.Tensor:
    """Return out_i = sum over j <= i (j >= i where ``reverse``) of (queries_i . keys_j) values_j.

    Args:
        queries: (B, H1, T, K). keys: (B, H2, T, K), values: (B, H2, T, V), float32. Whichever of
            H1 and H2 is less shares each of its heads among as many of the other's.

    Returns:
        float32 (B, max(H1, H2), T, V).
    """
    queries, keys, values = (x.float().contiguous() for x in (queries, keys, values))
    batch, sources, length, size = keys.shape
    heads, width = max(queries.shape[1], sources), values.shape[-1]
    chunks = triton.cdiv(length, CHUNK)
    states = keys.new_empty(batch, sources, chunks, size, width)
    out = keys.new_empty(batch, heads, length, width)
    rows, columns = min(SIDE, padded(size)), min(SIDE, padded(width))
    blocks = triton.cdiv(width, columns)
    tiles = size, width, rows, columns, CHUNK, reverse
    _states_kernel[(batch * sources, triton.cdiv(size, rows), blocks)](
        keys, values, states, length, chunks, *tiles
    )
    _outputs_kernel[(batch * heads, chunks, blocks)](
        queries, keys, values, states, out, length, chunks,
        heads // queries.shape[1], heads // sources, *tiles,
    )  # fmt: skip
    return out


class _LinearAttention(torch.autograd.Function):
    """(phi, psi, w) to the sums above; heads of phi share those of psi and w."""

    @staticmethod
    def forward(ctx: Any, phi: torch.Tensor, psi: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        """Return phi (B, H, T, R), psi (B, G, T, R), w (B, G, T, D + 1): (B, H, T, D + 1)."""
        ctx.save_for_backward(phi, psi, w)
        return causal(phi, psi, w)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return gradients of phi, psi and w, each where wanted."""
        phi, psi, w = ctx.saved_tensors
        groups = psi.shape[1]
        wanted = ctx.needs_input_grad
        return (
            causal(grad, w, psi) if wanted[0] else None,
            _by_group(causal(w, grad, phi, reverse=True), groups) if wanted[1] else None,
            _by_group(causal(psi, phi, grad, reverse=True), groups) if wanted[2] else None,
        )


def _by_group(x: torch.Tensor, groups: int) -> torch.Tensor:
    """Return (B, H, T, K) summed over the heads of each group: (B, G, T, K)."""
    summed: torch.Tensor = x.unflatten(1, (groups, -1)).sum(2)
    return summed


def sums(phi: torch.Tensor, psi: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Return numerator and denominator of linear attention side by side, (B, H, T, D + 1)."""
    w = torch.cat([v.float(), v.new_ones(*v.shape[:-1], 1, dtype=torch.float32)], dim=-1)
    out: torch.Tensor = _LinearAttention.apply(phi.float(), psi.float(), w)
    return out


def linear_attention(
    phi: torch.Tensor, psi: torch.Tensor, v: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """See :func:`pipeline.ops.low_rank.linear_attention`."""
    out = sums(phi, psi, v)
    return out[..., :-1], out[..., -1]
