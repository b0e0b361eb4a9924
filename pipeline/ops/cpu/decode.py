"""A decode step compiled with numba: one pass over the slots of each index set.

Slots of bfloat16 and float16 are read as bit patterns and widened row by row, so the arithmetic is
float32 whatever the storage. One thread an index set.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import torch

from ...policies import Policy
from ..low_rank import EPSILON, LowRankState
from ..packed import PackedKernel, PlainKernel
from ..reference import decode as reference
from ..slots import Decoded, Slots
from .jit import jit, parallel
from .maps import as_bits, feature_scan, widen
from .sequence import victim
from .sums import copy, dot, exp, fill


@jit
def _read(queries, keys, values, count, scale, weight, ones, row, mass, out, lse):
    """Attend with queries (N, D) of one key/value head over ``count`` slots.

    Fills ``out`` (N, D) and ``lse`` (N,), adds the probabilities to ``mass``; ``weight`` (N, >=
    count) and ``row`` (D,) are scratch, ``ones`` (>= count,) is of ones.
    """
    heads, size = queries.shape
    for c in range(count):
        for i in range(size):
            row[i] = widen(keys[c, i])
        for n in range(heads):
            weight[n, c] = dot(queries, n, row, size) * scale
    for n in range(heads):
        top = weight[n, 0]
        for c in range(1, count):
            top = max(top, weight[n, c])
        for c in range(count):
            weight[n, c] = exp(weight[n, c] - top)
        total = dot(weight, n, ones, count)
        share = np.float32(1) / total
        for c in range(count):
            weight[n, c] *= share
            mass[c] += weight[n, c]
        lse[n] = top + np.float32(np.log(total))
        for i in range(size):
            out[n, i] = np.float32(0)
    for c in range(count):
        for i in range(size):
            row[i] = widen(values[c, i])
        for n in range(heads):
            p = weight[n, c]
            for i in range(size):
                out[n, i] += p * row[i]


@jit
def _decode_set(
    b, u, q, k, v, keys, values, positions, scores, free, first, sink, recent, budget, decay, scale,
    out, lse, read_queries, gone_keys, gone_values, gone,
):  # fmt: skip
    """Do :func:`_decode` for index set ``u`` of sequence ``b``."""
    groups, rep, length, size = q.shape[1:]
    shared = groups // positions.shape[1]
    held = range(u * shared, (u + 1) * shared)
    row = np.empty(size, np.float32)
    weight = np.empty((rep, budget + 1), np.float32)
    ones = np.ones(budget + 1, np.float32)
    mass = np.empty(budget + 1, np.float32)
    queries = np.empty((rep, size), np.float32)
    read = np.empty((rep, size), np.float32)
    read_lse = np.empty(rep, np.float32)
    for t in range(length):
        now = first[b] + t
        gone[b, u, t] = -1
        for g in held:
            fill(gone_keys[g, b, t], 0)
            fill(gone_values[b, g, t], 0)
            for n in range(rep):
                copy(q[b, g, n, t], read_queries[g, n, b, t])
        if now < 0:
            for g in held:
                for n in range(rep):
                    fill(out[b, g, n, t], np.float32(0))
            continue
        count = min(now, budget) + 1
        slot = free[b, u]
        positions[b, u, slot] = now
        fill(mass, np.float32(0))
        for g in held:
            copy(k[b, g, t], keys[b, g, slot])
            copy(v[b, g, t], values[b, g, slot])
            for n in range(rep):
                for i in range(size):
                    queries[n, i] = widen(q[b, g, n, t, i])
            _read(
                queries, keys[b, g], values[b, g], count, scale, weight, ones, row, mass,
                read, read_lse,
            )  # fmt: skip
            for n in range(rep):
                copy(read[n], out[b, g, n, t])
                lse[b, g, n, t] = read_lse[n]
        score = mass  # with no candidate but one, any score does
        if scores.shape[2] > 0:
            score = scores[b, u]
            score[slot] = np.float32(0)
            for c in range(count):
                score[c] = decay * score[c] + mass[c]
        if now < budget:
            free[b, u] = now + 1
            continue
        slot = victim(positions[b, u], score, count, now, sink, recent)
        gone[b, u, t] = positions[b, u, slot]
        for g in held:
            copy(keys[b, g, slot], gone_keys[g, b, t])
            copy(values[b, g, slot], gone_values[b, g, t])
        positions[b, u, slot] = -1
        free[b, u] = slot


@parallel
def _decode(
    q, k, v, keys, values, positions, scores, free, first, sink, recent, budget, decay, scale,
    out, lse, read_queries, gone_keys, gone_values, gone,
):  # fmt: skip
    """See :func:`pipeline.ops.reference.decode.decode`; q (B, G, N, T, D), out and lse likewise.

    ``read_queries`` (G, N, B, T, D) takes a copy of q; ``gone_keys`` is (G, B, T, D).
    """
    batch, sets = positions.shape[:2]
    for job in numba.prange(batch * sets):
        _decode_set(
            job // sets, job % sets, q, k, v, keys, values, positions, scores, free, first, sink,
            recent, budget, decay, scale, out, lse, read_queries, gone_keys, gone_values, gone,
        )  # fmt: skip


@jit
def _needed(heads, groups, first, budget, gone):
    """Tell which maps are: of queries if any sequence has a memory, of keys if any is evicted."""
    memory = evicted = False
    for b in range(first.shape[0]):
        memory |= first[b] > budget
        for u in range(gone.shape[1]):
            evicted |= gone[b, u, 0] >= 0
    needed = np.empty(heads + groups, np.bool_)
    for i in range(heads + groups):
        needed[i] = memory if i < heads else evicted
    return needed


@jit
def _correct_group(b, g, out, lse, features, v, gone, H, z, first, budget, epsilon):
    """Do :func:`correct_token` for key/value head ``g`` of sequence ``b``, given all features."""
    heads, size = out.shape[1], out.shape[3]
    groups, rank = z.shape[1:]
    rep = heads // groups
    if first[b] > budget:
        for n in range(rep):
            head = g * rep + n
            feature = features[head, b]
            low = np.float32(epsilon)
            for r in range(rank):
                low += feature[r] * z[b, g, r]
            if low <= np.float32(epsilon):  # no memory: the sparse policy as it is
                continue
            low = np.float32(np.log(low))
            sparse = lse[b, head, 0]
            top = max(sparse, low)
            total = top + np.float32(np.log(np.exp(sparse - top) + np.exp(low - top)))
            share = np.float32(np.exp(sparse - total))
            unit = np.float32(np.exp(-total))
            for i in range(size):
                out[b, head, 0, i] *= share
            for r in range(rank):
                w = feature[r] * unit
                for i in range(size):
                    out[b, head, 0, i] += w * H[b, g, r, i]
    if gone[b, g * gone.shape[1] // groups, 0] >= 0:
        for r in range(rank):
            w = features[heads + g, b, r]
            z[b, g, r] += w
            for i in range(size):
                H[b, g, r, i] += w * widen(v[b, g, 0, i])


@parallel
def correct_token(out, lse, rows, w1, w2, last, v, gone, H, z, first, budget, epsilon):
    """Correct one token's ``out`` (B, H, 1, D) in place; then H and z take the pair in.

    ``rows`` (H + G, B, D) holds the queries, then the evicted keys, as the maps read them.
    """
    batch, heads = out.shape[:2]
    groups, rank = z.shape[1:]
    features = np.empty((heads + groups, batch, rank), np.float32)
    feature_scan(rows, w1, w2, last, _needed(heads, groups, first, budget, gone), features)
    for job in numba.prange(batch * groups):
        _correct_group(
            job // groups, job % groups, out, lse, features, v, gone, H, z, first, budget, epsilon
        )


KEEPS_FEATURES = False


@dataclass
class Read(Decoded):
    """What :func:`decode` gives here.

    Attributes:
        rows: (H + G, B * T, D), queries and evicted keys head by head, as feature maps read them.
    """

    rows: torch.Tensor


def decode(
    slots: Slots,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    position: torch.Tensor,
    policy: Policy,
) -> Read:
    """See :func:`pipeline.ops.reference.decode.decode`."""
    batch, heads, length, size = q.shape
    groups, sets = k.shape[1], slots.positions.shape[1]
    out = torch.empty(batch, groups, heads // groups, length, size)
    lse = torch.empty(batch, groups, heads // groups, length)
    rows = q.new_empty(heads + groups, batch * length, size)
    queries = rows[:heads].view(groups, -1, batch, length, size)
    keys = rows[heads:].view(groups, batch, length, size)
    values = torch.empty_like(v, memory_format=torch.contiguous_format)
    gone = torch.empty(batch, sets, length, dtype=torch.int32)
    new = (
        as_bits(q.contiguous().view(out.shape)),
        as_bits(k.contiguous()),
        as_bits(v.contiguous()),
    )
    held = (
        as_bits(slots.keys),
        as_bits(slots.values),
        slots.positions.numpy(),
        slots.scores.numpy(),
        slots.free.numpy(),
    )
    rule = (policy.sink, policy.recent, policy.budget, np.float32(policy.decay))
    given = (out.numpy(), lse.numpy(), as_bits(queries), as_bits(keys), as_bits(values))
    scale = np.float32(size**-0.5)
    _decode(*new, *held, position.numpy(), *rule, scale, *given, gone.numpy())
    keys = keys.transpose(0, 1)
    return Read(out.view(q.shape), lse.view(q.shape[:-1]), keys, values, gone, rows)


def correct(
    read: Read,
    q: torch.Tensor,
    kernel: PackedKernel | PlainKernel,
    state: LowRankState,
    position: torch.Tensor,
    policy: Policy,
) -> torch.Tensor:
    """See :func:`pipeline.ops.reference.decode.correct`; compiled for one token, in place."""
    if q.shape[2] > 1 or isinstance(kernel, PlainKernel):
        return reference.correct(read, q, kernel, state, position, policy)
    maps = (as_bits(kernel.w1), kernel.w2.numpy(), kernel.last.numpy())
    evicted = (as_bits(read.values), read.positions.numpy())
    memory = (state.H.numpy(), state.z.numpy())
    out, lse, rows = read.out.numpy(), read.lse.numpy(), as_bits(read.rows)
    correct_token(
        out, lse, rows, *maps, *evicted, *memory, position.numpy(), policy.budget, EPSILON
    )
    return read.out


def step(
    slots: Slots,
    kept: torch.Tensor | None,
    state: LowRankState,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    kernel: PackedKernel | PlainKernel,
    position: torch.Tensor,
    policy: Policy,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See :func:`pipeline.ops.reference.decode.step`."""
    read = decode(slots, q, k, v, position, policy)
    return correct(read, q, kernel, state, position, policy), read.positions
