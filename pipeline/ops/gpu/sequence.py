"""Operators over sequences in Triton: eviction, and attention over what is visible."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl

from ...policies import Policy
from ..prompt import cut, prompt_scores
from ..slots import Slots
from ..times import NEVER
from . import decode as decoding
from .decode import RUNTIME, Held, Rule, Scratch, Sizes
from .tiles import dot, padded, tuned, weigh

QUERY_BLOCK = 256
"""Rows of probabilities held at once where whole rows are needed."""
evict_step = decoding.evict


@triton.jit(do_not_specialize=[*RUNTIME, "first", "width", "total"])
def _rows_kernel(held, scratch, evicted_at, first, length, places, width, total, rule, S):
    """Evict by given probabilities (U, length, width) of queries ``first``..: programs (U).

    Fills ``evicted_at`` (U, total).
    """
    unit = tl.program_id(0).to(tl.int64)
    for t in range(0, length):
        evicts, _, position = evict_step(
            held, scratch, unit, first + t, t, length, places, width, rule, S
        )
        tl.store(evicted_at + unit * total + position, first + t + 1, evicts)
        tl.debug_barrier()


def _start(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, policy: Policy, prompt: int
) -> tuple[Slots, torch.Tensor]:
    """Return slots (of U sequences) after a prompt's one cut, and eviction times (U, S) so far."""
    slots = Slots.empty(k, policy)
    evicted_at = torch.full((q.shape[0], q.shape[2]), NEVER, dtype=torch.int32, device=q.device)
    if prompt:
        start = torch.zeros(q.shape[0], dtype=torch.int32, device=q.device)
        q, k, v = (x[:, :, :prompt] for x in (q, k, v))
        scores = prompt_scores(q, k, start, policy)
        kept, gone = cut(scores, start, prompt, policy)
        slots.fill(k, v, scores, kept, kept.to(torch.int32))
        evicted_at.scatter_(1, gone[:, 0], prompt)
    return slots, evicted_at


def _as_layers(q: torch.Tensor, policy: Policy) -> tuple[torch.Tensor, Policy]:
    """Return index sets (U, M, N, S, D) as U sequences of one layer of M N query heads."""
    return q.flatten(1, 2), replace(policy, pooling="layer")


def bounded_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, policy: Policy, prompt: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See :func:`pipeline.ops.reference.sequence.bounded_attention`."""
    shape = q.shape
    q, policy = _as_layers(q, policy)
    slots, evicted_at = _start(q, k, v, policy, prompt)
    out = q.new_empty(q.shape, dtype=torch.float32)
    lse = q.new_empty(q.shape[:-1], dtype=torch.float32)
    if prompt:
        read, read_lse = sparse_attention(
            q.view(shape)[..., :prompt, :], k[..., :prompt, :], v[..., :prompt, :],
            torch.full_like(evicted_at[:, :prompt], NEVER),
        )  # fmt: skip
        out[:, :, :prompt], lse[:, :, :prompt] = read.flatten(1, 2), read_lse.flatten(1, 2)
    if prompt < q.shape[2]:
        position = torch.full((len(q),), prompt, dtype=torch.int32, device=q.device)
        decoded = decoding.decode(
            slots, q[:, :, prompt:], k[:, :, prompt:], v[:, :, prompt:], position, policy
        )
        out[:, :, prompt:], lse[:, :, prompt:] = decoded.out, decoded.lse
        _record(evicted_at, decoded.positions[:, 0], prompt)
    return evicted_at, out.view(shape), lse.view(shape[:-1])


def _record(evicted_at: torch.Tensor, gone: torch.Tensor, first: int) -> None:
    """Record positions (U, T) evicted after queries ``first``.., -1 for none, in place."""
    times = torch.arange(first + 1, first + 1 + gone.shape[1], device=gone.device)
    times = times.to(torch.int32).expand_as(gone)
    nowhere = evicted_at.shape[1]
    padded = torch.nn.functional.pad(evicted_at, (0, 1))
    padded.scatter_(1, torch.where(gone < 0, nowhere, gone).long(), times)
    evicted_at.copy_(padded[:, :nowhere])


def evict(
    q: torch.Tensor, k: torch.Tensor, policy: Policy, scores: str, prompt: int = 0
) -> torch.Tensor:
    """See :func:`pipeline.ops.reference.sequence.evict`; ``full`` holds 256 rows at a time."""
    if scores == "cached":
        return bounded_attention(q, k, k, policy, prompt)[0]
    sets, shared, rep, length, size = q.shape
    layers, policy = _as_layers(q, policy)
    slots, evicted_at = _start(layers, k, k, policy, prompt)
    places = policy.budget + 1
    held = Held(None, None, slots.positions, slots.scores, slots.free, None, None, None)
    rule = Rule(policy.sink, policy.recent, policy.budget, float(policy.decay))
    tile = min(decoding.PLACES, padded(places))
    S = Sizes(*map(tl.constexpr, (
        rep, size, 1, shared, 1, 1, 1, 1, tile, policy.needs_scores, True, False
    )))  # fmt: skip
    for first in range(prompt, length, QUERY_BLOCK):
        stop = min(first + QUERY_BLOCK, length)
        rows = _probabilities(q, k, first, stop) if policy.needs_scores else None
        _rows_kernel[(sets,)](
            held, Scratch(rows, None, None, None, None, None), evicted_at, first, stop - first,
            places, stop, length, rule, S,
        )  # fmt: skip
    return evicted_at


def _probabilities(q: torch.Tensor, k: torch.Tensor, first: int, stop: int) -> torch.Tensor:
    """Return causal probabilities of queries first..stop, summed over heads: (U, T, stop)."""
    keys = k[..., :stop, :].float().unsqueeze(2).transpose(-1, -2)
    logits = q[..., first:stop, :].float() @ keys * q.shape[-1] ** -0.5
    future = torch.ones(stop - first, stop, dtype=torch.bool, device=q.device).triu(first + 1)
    p: torch.Tensor = logits.masked_fill_(future, float("-inf")).softmax(-1).sum((1, 2))
    return p


CONFIGS = [
    triton.Config({"ROWS": rows, "COLUMNS": columns}, num_warps=warps, num_stages=stages)
    for rows, columns, warps, stages in [
        (16, 32, 4, 2),
        (64, 32, 4, 2),
        (64, 64, 4, 2),
        (128, 32, 8, 2),
    ]
]
"""Queries and keys of a tile."""


@tuned(CONFIGS, key=["D", "DP"])
@triton.jit(do_not_specialize=["length", "shared", "rep"])
def _sparse_kernel(
    q, k, v, evicted_at, out, lse, length, shared, rep, scale,
    D: tl.constexpr, DP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Attend over what is visible in programs (U M N, S / ROWS)."""
    head, first = tl.program_id(0).to(tl.int64), tl.program_id(1) * ROWS
    source = head // rep
    d, i = tl.arange(0, DP), first + tl.arange(0, ROWS)
    wanted = (i < length)[:, None] & (d < D)[None, :]
    query = tl.load(q + (head * length + i)[:, None] * D + d[None, :], wanted, 0.0)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, DP], tl.float32)
    for start in range(0, tl.minimum(first + ROWS, length), COLUMNS):
        j = start + tl.arange(0, COLUMNS)
        until = tl.load(evicted_at + source // shared * length + j, j < length, 0)
        if tl.max(until, 0) > first:
            at = (source * length + j)[:, None] * D + d[None, :]
            inside = (j < length)[:, None] & (d < D)[None, :]
            logit = dot(query, tl.trans(tl.load(k + at, inside, 0.0))) * scale
            visible = (j[None, :] <= i[:, None]) & (i[:, None] < until[None, :])
            logit = tl.where(visible, logit, float("-inf"))
            highest = tl.maximum(top, tl.max(logit, 1))
            shift = tl.where(highest == float("-inf"), 0.0, highest)
            fade = tl.exp(top - shift)
            p = tl.exp(logit - shift[:, None])
            total = total * fade + tl.sum(p, 1)
            acc = acc * fade[:, None] + weigh(p, tl.load(v + at, inside, 0.0))
            top = highest
    total = tl.where(total == 0.0, 1.0, total)  # rows beyond the length
    row = head * length + i
    tl.store(out + row[:, None] * D + d[None, :], acc / total[:, None], wanted)
    tl.store(lse + row, top + tl.log(total), i < length)


def sparse_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, evicted_at: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """See :func:`pipeline.ops.reference.sequence.sparse_attention`."""
    q, k, v, evicted_at = (x.contiguous() for x in (q, k, v, evicted_at))
    sets, shared, rep, length, size = q.shape
    out = q.new_empty(q.shape, dtype=torch.float32)
    lse = q.new_empty(q.shape[:-1], dtype=torch.float32)
    heads = sets * shared * rep

    def grid(options: dict[str, Any]) -> tuple[int, int]:
        return heads, triton.cdiv(length, options["ROWS"])

    _sparse_kernel[grid](
        q, k, v, evicted_at, out, lse, length, shared, rep, size**-0.5, size, padded(size)
    )
    return out, lse
