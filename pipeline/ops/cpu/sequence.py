"""The operators compiled with numba: a bounded set of slots scanned once, O(budget) state.

The scan does what a real cache does. ``budget + 1`` slots hold keys, values, positions and scores;
the new pair takes the slot of the one evicted last, so nothing is shifted and nothing of size
S x S exists. One thread an index set.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import torch

from ...policies import Policy
from ..times import NEVER
from .jit import jit, parallel
from .products import product
from .sums import copy, dot, exp, fill

QUERY_BLOCK = 256  # rows of probabilities held at once where whole rows are needed
LANES = 32


@jit
def _largest(rows, n, lanes):
    """Return the largest number of row ``n``, in whole vectors as long as ``lanes`` (scratch)."""
    fill(lanes, np.float32(-np.inf))
    for first in range(0, rows.shape[1], lanes.shape[0]):
        for i in range(lanes.shape[0]):
            lanes[i] = max(lanes[i], rows[n, first + i])
    largest = lanes[0]
    for i in range(1, lanes.shape[0]):
        largest = max(largest, lanes[i])
    return largest


@jit
def _scratch(rows, size, slots):
    """Allocate what :func:`_attend` works in: queries, weights, outputs, lanes and ones."""
    return (
        np.empty((rows, size), np.float32), np.empty((rows, slots), np.float32),
        np.empty((rows, size), np.float32), np.empty(LANES, np.float32),
        np.ones(slots, np.float32),
    )  # fmt: skip


@jit
def _attend(q, keys, values, count, scale, scratch, mass, out, lse):
    """Attend with queries ``q`` (N, D) of a group at one position over ``count`` slots.

    Fills ``out`` (N, D) and the log-sum-exp of the logits ``lse`` (N,); adds the probabilities to
    ``mass`` (C,).

    Args:
        keys: (D, C), finite. values: (C, D), finite. C is :func:`_padded`.
        scratch: of :func:`_scratch`.
    """
    queries, weight, outs, lanes, ones = scratch
    for n in range(q.shape[0]):
        for i in range(q.shape[1]):
            queries[n, i] = q[n, i] * scale
    product(queries, keys, queries.shape[0], weight)
    for n in range(queries.shape[0]):
        for c in range(count, weight.shape[1]):
            weight[n, c] = np.float32(-np.inf)
        top = _largest(weight, n, lanes)
        for c in range(weight.shape[1]):
            weight[n, c] = exp(weight[n, c] - top)
        for c in range(count, weight.shape[1]):
            weight[n, c] = np.float32(0)
        total = dot(weight, n, ones, count)
        share = np.float32(1) / total
        for c in range(weight.shape[1]):
            weight[n, c] *= share
            mass[c] += weight[n, c]
        lse[n] = top + np.float32(math.log(total))
    product(weight, values, queries.shape[0], outs)
    for n in range(q.shape[0]):
        copy(outs[n], out[n])


@jit
def _padded(slots):
    """Return the length of arrays that hold ``slots`` slots: whole vectors."""
    return (slots + LANES - 1) // LANES * LANES


@jit
def victim(position, score, count, query, sink, recent):
    """Return the slot to evict: of lowest score, neither sink nor recent; of ties, the oldest."""
    best = -1
    for c in range(count):
        if position[c] < sink or position[c] > query - recent:
            continue
        if (
            best < 0
            or score[c] < score[best]
            or (score[c] == score[best] and position[c] < position[best])
        ):
            best = c
    return best


@jit
def _bounded_set(
    u, q, k, v, kept, kept_score, prompt, sink, recent, budget, decay, scale, evicted_at, out, lse
):
    """Do :func:`_bounded_scan` for index set ``u``."""
    shared, rep, length, size = q.shape[1:]
    start = kept.shape[1]
    slots = _padded(budget + 1)
    keys = np.zeros((shared, size, slots), np.float32)
    values = np.zeros((shared, slots, size), np.float32)
    position = np.empty(budget + 1, np.int32)
    score = np.empty(budget + 1, np.float32)
    mass = np.empty(slots, np.float32)
    scratch = _scratch(rep, size, slots)
    for c in range(start):
        position[c] = kept[u, c]
        score[c] = kept_score[u, c]
        for m in range(shared):
            copy(k[u, m, position[c]], keys[m, :, c])
            copy(v[u, m, position[c]], values[m, c])
    count = start
    slot = start
    for t in range(prompt, length):
        if count <= budget:
            slot = count
            count += 1
        position[slot] = t
        score[slot] = np.float32(0)
        fill(mass, np.float32(0))
        for m in range(shared):
            copy(k[u, m, t], keys[m, :, slot])
            copy(v[u, m, t], values[m, slot])
            _attend(
                q[u, m, :, t], keys[m], values[m], count, scale, scratch, mass,
                out[u, m, :, t], lse[u, m, :, t],
            )  # fmt: skip
        for c in range(count):
            score[c] = decay * score[c] + mass[c]
        if count > budget:
            slot = victim(position, score, count, t, sink, recent)
            evicted_at[u, position[slot]] = t + 1


@parallel
def _bounded_scan(
    q, k, v, kept, kept_score, prompt, sink, recent, budget, decay, scale, evicted_at, out, lse
):
    """Read queries ``prompt``.. over slots that start with ``kept`` (U, <= budget) positions."""
    for u in numba.prange(q.shape[0]):
        _bounded_set(
            u, q, k, v, kept, kept_score, prompt, sink, recent, budget, decay, scale, evicted_at,
            out, lse,
        )  # fmt: skip


@jit
def _row_set(rows, first, position, score, count, sink, recent, budget, decay, evicted_at):
    """Do :func:`_row_scan` for one index set, rows (T, S); return the ``count`` of slots."""
    for row in range(rows.shape[0]):
        t = first + row
        position[count] = t
        score[count] = np.float32(0)
        count += 1
        for c in range(count):
            score[c] = decay * score[c] + rows[row, position[c]]
        if count > budget:
            slot = victim(position, score, count, t, sink, recent)
            evicted_at[position[slot]] = t + 1
            count -= 1
            position[slot] = position[count]
            score[slot] = score[count]
    return count


@parallel
def _row_scan(rows, first, slots, scores, counts, sink, recent, budget, decay, evicted_at):
    """Continue the scan over given probability rows (U, T, S) of queries ``first``.. .

    ``slots`` (U, budget + 1) positions, ``scores`` likewise and ``counts`` (U,) carry the state
    from block to block; after an eviction the free slot is swapped to the end.
    """
    for u in numba.prange(rows.shape[0]):
        counts[u] = _row_set(
            rows[u], first, slots[u], scores[u], counts[u], sink, recent, budget, decay,
            evicted_at[u],
        )  # fmt: skip


@jit
def _most_visible(evicted_at):
    """Return the most keys that any query sees, given eviction times (S,) of one index set."""
    length = evicted_at.shape[0]
    gone = np.zeros(length + 1, np.int32)
    seen = most = 0
    for t in range(length):
        seen += 1 - gone[t]
        most = max(most, seen)
        gone[min(max(evicted_at[t], t + 1), length)] += 1  # a query sees its own key
    return most


@jit
def _visible_head(q, k, v, evicted_at, scale, out, lse):
    """Do :func:`_visible_scan` for one key/value head: q (N, S, D), k and v (S, D)."""
    rep, length, size = q.shape
    slots = _padded(_most_visible(evicted_at))
    keys = np.zeros((size, slots), np.float32)
    values = np.zeros((slots, size), np.float32)
    until = np.empty(slots, np.int32)
    scratch = _scratch(rep, size, slots)
    mass = np.empty(slots, np.float32)
    count = 0
    for t in range(length):
        c = 0
        while c < count:
            if until[c] <= t:
                count -= 1
                until[c] = until[count]
                copy(keys[:, count], keys[:, c])
                copy(values[count], values[c])
            else:
                c += 1
        until[count] = evicted_at[t]
        copy(k[t], keys[:, count])
        copy(v[t], values[count])
        count += 1
        _attend(q[:, t], keys, values, count, scale, scratch, mass, out[:, t], lse[:, t])


@parallel
def _visible_scan(q, k, v, evicted_at, scale, out, lse):
    """Attend with every query over the keys whose eviction time has not come."""
    sets, shared = q.shape[:2]
    for job in numba.prange(sets * shared):
        u, m = job // shared, job % shared
        _visible_head(q[u, m], k[u, m], v[u, m], evicted_at[u], scale, out[u, m], lse[u, m])


def _array(x: torch.Tensor) -> np.ndarray:
    return x.detach().float().contiguous().numpy()


def _probability_rows(
    q: torch.Tensor, k: torch.Tensor, start: int, stop: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return causal probabilities of queries start..stop, (U, M, N, T, stop), and log-sum-exp."""
    logits = q[..., start:stop, :] @ k[..., :stop, :].unsqueeze(2).transpose(-1, -2)
    logits *= q.shape[-1] ** -0.5
    future = torch.ones(stop - start, stop, dtype=torch.bool).triu(start + 1)
    lse = logits.masked_fill_(future, float("-inf")).logsumexp(-1)
    return logits.sub_(lse[..., None]).exp_(), lse


def _read_prompt(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor | None, policy: Policy, prompt: int,
    evicted_at: torch.Tensor, out: torch.Tensor | None, lse: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Return full attention over the prompt, in blocks of queries, and the one cut at its end.

    Fills ``evicted_at``, ``out`` and ``lse`` up to ``prompt``.

    Returns:
        Positions (U, min(prompt, budget)) kept after the cut, ascending, and their scores.
    """
    sets = q.shape[0]
    score = torch.zeros(sets, prompt)
    for start in range(0, prompt, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, prompt)
        p, row_lse = _probability_rows(q, k, start, stop)
        fade = policy.decay ** torch.arange(stop - start - 1, -1, -1, dtype=torch.float32)
        score *= policy.decay ** (stop - start)
        score[:, :stop] += (p.sum((1, 2)) * fade[:, None]).sum(1)
        if out is not None and lse is not None and v is not None:
            out[..., start:stop, :] = p @ v[..., :stop, :].unsqueeze(2)
            lse[..., start:stop] = row_lse
    excess = prompt - policy.budget
    position = torch.arange(prompt).expand(sets, prompt)
    if excess > 0:
        protected = (position < policy.sink) | (position >= prompt - policy.recent)
        ranked = score.masked_fill(protected, float("inf")).sort(dim=-1, stable=True).indices
        evicted_at.scatter_(-1, ranked[:, :excess], prompt)
        position = ranked[:, excess:].sort(dim=-1).values
    return position, score.gather(-1, position)


def bounded_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, policy: Policy, prompt: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See :func:`pipeline.ops.reference.sequence.bounded_attention`."""
    q, k, v = q.float(), k.float(), v.float()
    evicted_at = torch.full((q.shape[0], q.shape[-2]), NEVER, dtype=torch.int32)
    out = torch.empty(q.shape, dtype=torch.float32)
    lse = torch.empty(q.shape[:-1], dtype=torch.float32)
    kept, score = _read_prompt(q, k, v, policy, prompt, evicted_at, out, lse)
    _bounded_scan(
        _array(q), _array(k), _array(v), kept.to(torch.int32).contiguous().numpy(), _array(score),
        prompt, policy.sink, policy.recent, policy.budget, np.float32(policy.decay),
        np.float32(q.shape[-1] ** -0.5), evicted_at.numpy(), out.numpy(), lse.numpy(),
    )  # fmt: skip
    return evicted_at, out, lse


def evict(
    q: torch.Tensor, k: torch.Tensor, policy: Policy, scores: str, prompt: int = 0
) -> torch.Tensor:
    """See :mod:`pipeline.ops.reference.sequence`; ``full`` holds blocks of 256 rows at a time."""
    if scores == "cached":
        return bounded_attention(q, k, k, policy, prompt)[0]
    q, k = q.float(), k.float()
    sets, length = q.shape[0], q.shape[-2]
    evicted_at = torch.full((sets, length), NEVER, dtype=torch.int32)
    kept, kept_score = _read_prompt(q, k, None, policy, prompt, evicted_at, None, None)
    slots = np.zeros((sets, policy.budget + 1), np.int32)
    scores_held = np.zeros((sets, policy.budget + 1), np.float32)
    slots[:, : kept.shape[1]] = kept.numpy()
    scores_held[:, : kept.shape[1]] = kept_score.numpy()
    counts = np.full(sets, kept.shape[1], np.int64)
    for start in range(prompt, length, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, length)
        rows = _probability_rows(q, k, start, stop)[0].sum((1, 2))
        _row_scan(
            _array(rows), start, slots, scores_held, counts, policy.sink, policy.recent,
            policy.budget, np.float32(policy.decay), evicted_at.numpy(),
        )  # fmt: skip
    return evicted_at


def sparse_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, evicted_at: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """See :func:`pipeline.ops.reference.sequence.sparse_attention`."""
    out = torch.empty(q.shape, dtype=torch.float32)
    lse = torch.empty(q.shape[:-1], dtype=torch.float32)
    _visible_scan(
        _array(q), _array(k), _array(v), evicted_at.contiguous().numpy(),
        np.float32(q.shape[-1] ** -0.5), out.numpy(), lse.numpy(),
    )  # fmt: skip
    return out, lse
