"""Eviction over a sequence: one program an index set, memory O(budget).

By cached scores the tokens are simply decoded, all in one launch. By full scores rows of
probabilities are formed in blocks and the kernel below reads them.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl

from pipeline.ops import NEVER
from pipeline.ops.gpu import decoding
from pipeline.ops.gpu.decoding import RUNTIME, Held, Rule, Scratch, Sizes
from pipeline.ops.gpu.sparse import sparse_attention
from pipeline.ops.gpu.tiles import padded
from pipeline.policies import Policy
from pipeline.prefill import cut, prompt_scores
from pipeline.slots import Slots

QUERY_BLOCK = 256
"""Rows of probabilities held at once where whole rows are needed."""
evict_step = decoding.evict


@triton.jit(do_not_specialize=[*RUNTIME, "first", "width", "total"])
def _rows_kernel(held, scratch, evicted_at, first, length, places, width, total, rule, S):  # type: ignore[no-untyped-def]  # fmt: skip
    """Queries ``first``.. with probabilities (U, length, width) given: programs (U).

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
    """Slots (of U sequences) after a prompt's one cut, and eviction times (U, S) so far."""
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
    """Index sets (U, M, N, S, D) as U sequences of a layer with M N query heads, pooled over it."""
    return q.flatten(1, 2), replace(policy, pooling="layer")


def bounded_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, policy: Policy, prompt: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See :func:`pipeline.ops.reference.bounded_attention`."""
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
    """Enter positions (U, T) evicted after queries ``first``.., -1 for none, in place."""
    times = torch.arange(first + 1, first + 1 + gone.shape[1], device=gone.device)
    times = times.to(torch.int32).expand_as(gone)
    nowhere = evicted_at.shape[1]
    padded = torch.nn.functional.pad(evicted_at, (0, 1))
    padded.scatter_(1, torch.where(gone < 0, nowhere, gone).long(), times)
    evicted_at.copy_(padded[:, :nowhere])


def evict(
    q: torch.Tensor, k: torch.Tensor, policy: Policy, scores: str, prompt: int = 0
) -> torch.Tensor:
    """See :func:`pipeline.ops.reference.evict`; ``full`` holds 256 rows at a time."""
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
    """Causal probabilities of queries first..stop summed over heads, (U, T, stop), float32."""
    keys = k[..., :stop, :].float().unsqueeze(2).transpose(-1, -2)
    logits = q[..., first:stop, :].float() @ keys * q.shape[-1] ** -0.5
    future = torch.ones(stop - first, stop, dtype=torch.bool, device=q.device).triu(first + 1)
    p: torch.Tensor = logits.masked_fill_(future, float("-inf")).softmax(-1).sum((1, 2))
    return p
