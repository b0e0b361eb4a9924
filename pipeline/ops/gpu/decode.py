"""A decode step of one layer, for the whole batch.

A step has three stages, each a function of its own below: the query heads of a key/value head read
the slots (:func:`_attend`), what they read is put together and joined with the low-rank state
(:func:`_merge`), and the index set updates its scores, evicts, and hands the evicted pair to the
state (:func:`_choose`). One launch runs them all, a program an index set; where that would leave
few programs with much to read, each stage is a launch and the slots are split between programs.

Nothing here waits for the GPU, and neither grids nor compiled variants depend on how many tokens a
cache has read.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ...policies import Policy
from ..low_rank import EPSILON, LowRankState
from ..packed import PackedKernel, PlainKernel
from ..slots import Decoded, Slots
from ..times import NEVER
from .maps import features
from .tiles import NOTHING, SMALLEST, dot, padded, rows, weigh

TILES = {1: (8192, 4), 16: (4096, 4)}
"""By padded query heads of a key/value head: numbers in a tile of keys (slots times padded head
size), and warps."""
MANY_HEADS = (2048, 8)
"""The same for more query heads, and for float32, whose products are not for tensor cores."""
SPAN = 512
"""Slots that one program reads; more are split between programs."""
PLACES = 1024
"""Slots whose scores are looked at together."""
LAST = tl.constexpr(NEVER)


class Tokens(NamedTuple):
    """The new tokens: q (B, H, T, D), k, v (B, G, T, D), phi (B, H, T, R), psi (B, G, T, R).

    ``first`` (B,): the position of the first; negative ones are padding.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    phi: torch.Tensor | None
    psi: torch.Tensor | None
    first: torch.Tensor


class Held(NamedTuple):
    """What a layer holds: the fields of Slots, psi of each slot (B, G, C + 1, R), H and z."""

    key: torch.Tensor | None
    value: torch.Tensor | None
    position: torch.Tensor
    score: torch.Tensor
    free: torch.Tensor
    feature: torch.Tensor | None
    H: torch.Tensor | None
    z: torch.Tensor | None


class Scratch(NamedTuple):
    """Between stages, float32: logits (B, H, C + 1), or given probabilities (B U, T, width); of
    each part (B, G, parts, N) its greatest logit, the sum of the exponentials and what it read
    (..., D); the first two put together (B, H).
    """

    logits: torch.Tensor | None
    part_top: torch.Tensor | None
    part_sum: torch.Tensor | None
    part_out: torch.Tensor | None
    top: torch.Tensor | None
    sum: torch.Tensor | None


class Results(NamedTuple):
    """Fields of :class:`~pipeline.ops.decode.Decoded`; the pairs where no state takes them in."""

    out: torch.Tensor
    lse: torch.Tensor
    key: torch.Tensor | None
    value: torch.Tensor | None
    position: torch.Tensor


class Rule(NamedTuple):
    """A policy's numbers."""

    sink: int
    recent: int
    budget: int
    decay: float


class Sizes(NamedTuple):
    """Compile-time sizes: query heads N, head size D and features R of a key/value head, key/value
    heads M of an index set; tile sides NP, DP, RP; slots at once BLOCK (keys) and PLACES (scores);
    whether probabilities are SCORED at all, and GIVEN, and whether there is a STATE.
    """

    N: tl.constexpr
    D: tl.constexpr
    R: tl.constexpr
    M: tl.constexpr
    NP: tl.constexpr
    DP: tl.constexpr
    RP: tl.constexpr
    BLOCK: tl.constexpr
    PLACES: tl.constexpr
    SCORED: tl.constexpr
    GIVEN: tl.constexpr
    STATE: tl.constexpr


@triton.jit
def read_state(out, lse, phi, H, z, row, head, epsilon, S):
    """Do :func:`pipeline.ops.low_rank.merge` for one key/value head's queries and its state.

    out (N, D), lse (N,), float32; features of query n at phi + row[n] R; state ``head`` of H, z.
    """
    n, d, r = tl.arange(0, S.NP), tl.arange(0, S.DP), tl.arange(0, S.RP)
    some = r < S.R
    features = tl.load(
        phi + row[:, None] * S.R + r[None, :], (n < S.N)[:, None] & some[None, :], 0.0
    )
    at = (head * S.R + r)[:, None] * S.D + d[None, :]
    memory = tl.load(H + at, some[:, None] & (d < S.D)[None, :], 0.0)
    mass = tl.load(z + head * S.R + r, some, 0.0)
    held = tl.sum(features * mass[None, :], 1) + epsilon
    low = tl.where(held <= epsilon, NOTHING, tl.log(held))
    top = tl.maximum(lse, low)
    total = top + tl.log(tl.exp(lse - top) + tl.exp(low - top))
    unit = tl.exp(tl.where(held <= epsilon, NOTHING, -total))
    return out * tl.exp(lse - total)[:, None] + dot(features, memory) * unit[:, None]


@triton.jit
def absorb(H, z, psi, v, head, S):
    """Add psi v^T to H and psi to z of key/value head ``head``, in memory; psi (R,), v (D,)."""
    r, d = tl.arange(0, S.RP), tl.arange(0, S.DP)
    at = (head * S.R + r)[:, None] * S.D + d[None, :]
    inside = (r < S.R)[:, None] & (d < S.D)[None, :]
    tl.store(H + at, tl.load(H + at, inside, 0.0) + psi[:, None] * v[None, :], inside)
    at = head * S.R + r
    tl.store(z + at, tl.load(z + at, r < S.R, 0.0) + psi, r < S.R)


@triton.jit
def _attend(new, held, scratch, head, part, now, t, length, places, span, parts, scale, S):
    """Attend with queries of one key/value head over slots ``part * span``..; the pair enters."""
    n, d, r = tl.arange(0, S.NP), tl.arange(0, S.DP), tl.arange(0, S.RP)
    wanted, unit, real = (n < S.N)[:, None] & (d < S.D)[None, :], head // S.M, now >= 0
    row, token = (head * S.N + n) * length + t, head * length + t
    query = tl.load(new.q + row[:, None] * S.D + d[None, :], wanted, 0.0)
    key = tl.load(new.k + token * S.D + d, d < S.D, 0.0)
    value = tl.load(new.v + token * S.D + d, d < S.D, 0.0)
    slot = tl.load(held.free + unit)
    top = tl.full([S.NP], float("-inf"), tl.float32)
    total = tl.zeros([S.NP], tl.float32)
    out = tl.zeros([S.NP, S.DP], tl.float32)
    for start in range(part * span, tl.minimum(part * span + span, places), S.BLOCK):
        c = start + tl.arange(0, S.BLOCK)
        own = (c == slot) & real
        old = (tl.load(held.position + unit * places + c, c < places, -1) >= 0) & real & (c != slot)
        at = (head * places + c)[:, None] * S.D + d[None, :]
        inside = old[:, None] & (d < S.D)[None, :]
        # The new pair is read from where it comes, not from the slot it is being written to.
        tile = tl.where(own[:, None], key[None, :], tl.load(held.key + at, inside, 0.0))
        logit = dot(query, tl.trans(tile)) * scale
        logit = tl.where((old | own)[None, :], logit, float("-inf"))
        if S.SCORED:
            at_logit = (head * S.N + n)[:, None] * places + c[None, :]
            tl.store(scratch.logits + at_logit, logit, (n < S.N)[:, None] & (c < places)[None, :])
        highest = tl.maximum(top, tl.max(logit, 1))
        shift = tl.where(highest == float("-inf"), 0.0, highest)  # nothing visible so far
        fade = tl.exp(top - shift)
        p = tl.exp(logit - shift[:, None])
        tile = tl.where(own[:, None], value[None, :], tl.load(held.value + at, inside, 0.0))
        total = total * fade + tl.sum(p, 1)
        out = out * fade[:, None] + weigh(p, tile)
        top = highest
    row = (head * parts + part) * S.N + n
    tl.store(scratch.part_top + row, top, n < S.N)
    tl.store(scratch.part_sum + row, total, n < S.N)
    tl.store(scratch.part_out + row[:, None] * S.D + d[None, :], out, wanted)
    if part == 0:
        at = head * places + slot
        tl.store(held.key + at * S.D + d, key, (d < S.D) & real)
        tl.store(held.value + at * S.D + d, value, (d < S.D) & real)
        if S.STATE:
            psi = tl.load(new.psi + token * S.R + r, r < S.R, 0.0)
            tl.store(held.feature + at * S.R + r, psi, (r < S.R) & real)


@triton.jit
def _merge(new, held, scratch, results, head, now, t, length, parts, budget, epsilon, S):
    """Join what the parts of one head's queries read, with the state if there is one."""
    n, d = tl.arange(0, S.NP), tl.arange(0, S.DP)
    wanted = (n < S.N)[:, None] & (d < S.D)[None, :]
    top = tl.full([S.NP], float("-inf"), tl.float32)
    total = tl.zeros([S.NP], tl.float32)
    out = tl.zeros([S.NP, S.DP], tl.float32)
    for part in range(0, parts):
        row = (head * parts + part) * S.N + n
        part_top = tl.load(scratch.part_top + row, n < S.N, float("-inf"))
        highest = tl.maximum(top, part_top)
        shift = tl.where(highest == float("-inf"), 0.0, highest)
        fade, share = tl.exp(top - shift), tl.exp(part_top - shift)
        part_out = tl.load(scratch.part_out + row[:, None] * S.D + d[None, :], wanted, 0.0)
        total = total * fade + tl.load(scratch.part_sum + row, n < S.N, 0.0) * share
        out = out * fade[:, None] + part_out * share[:, None]
        top = highest
    total = tl.where(total == 0.0, 1.0, total)  # padding: nothing was visible
    out = out / total[:, None]
    lse = top + tl.log(total)
    row = head * S.N + n
    tl.store(scratch.top + row, tl.where(top == float("-inf"), 0.0, top), n < S.N)
    tl.store(scratch.sum + row, total, n < S.N)
    row = row * length + t
    if S.STATE:  # noqa: SIM102 (at compile time)
        if now > budget:
            out = read_state(out, lse, new.phi, held.H, held.z, row, head, epsilon, S)
    tl.store(results.out + row[:, None] * S.D + d[None, :], out, wanted)
    tl.store(results.lse + row, lse, n < S.N)


@triton.jit
def evict(held, scratch, unit, now, t, length, places, width, rule, S):
    """Update the scores of one index set and, where the budget is full, free a slot.

    ``width``: keys in a row of given probabilities.

    Returns:
        Whether a pair was evicted, its slot and its position.
    """
    real, full = now >= 0, now >= rule.budget
    slot = tl.load(held.free + unit)
    lowest = tl.full([], float("inf"), tl.float32)
    oldest = tl.full([], LAST, tl.int32)
    victim = tl.full([], 0, tl.int32)
    for start in range(0, places, S.PLACES):
        c = start + tl.arange(0, S.PLACES)
        position = tl.load(held.position + unit * places + c, c < places, -1)
        position = tl.where((c == slot) & real, now, position)
        score = tl.zeros([S.PLACES], tl.float32)
        if S.SCORED:
            at = unit * places + c
            score = tl.load(held.score + at, (c < places) & (c != slot), 0.0) * rule.decay
            if S.GIVEN:
                row = (unit * length + t) * width
                score += tl.load(scratch.logits + row + position, position >= 0, 0.0)
            else:
                for m in range(0, S.M * S.N):
                    row = unit * S.M * S.N + m
                    logit = scratch.logits + row * places + c
                    logit = tl.load(logit, position >= 0, float("-inf")) - tl.load(
                        scratch.top + row
                    )
                    score += tl.exp(logit) / tl.load(scratch.sum + row)
            tl.debug_barrier()  # threads may share an element: all must have read the old score
            tl.store(held.score + at, score, (c < places) & real)
            score = tl.where(score == score, score, 3e38)  # among NaN too a slot must be found
        allowed = (position >= 0) & (position >= rule.sink) & (position <= now - rule.recent)
        score = tl.where(allowed, score, float("inf"))
        low = tl.min(score, 0)
        tied = tl.where(allowed & (score == low), position, LAST)
        first = tl.min(tied, 0)
        better = (low < lowest) | ((low == lowest) & (first < oldest))
        lowest = tl.where(better, low, lowest)
        oldest = tl.where(better, first, oldest)
        victim = tl.where(better, tl.max(tl.where(tied == first, c, 0), 0), victim)
    evicts = full & (oldest < LAST)
    at = unit * places
    tl.debug_barrier()  # as above, before positions and the free slot change
    tl.store(held.position + at + slot, tl.where(evicts & (victim == slot), -1, now), real)
    tl.store(held.position + at + victim, -1, evicts & (victim != slot))
    tl.store(held.free + unit, tl.where(evicts, victim, tl.maximum(now + 1, 0)))
    return evicts, victim, oldest


@triton.jit
def _choose(held, scratch, results, unit, now, t, length, places, rule, S):
    """Evict from one index set, and hand the evicted pair on."""
    d, r = tl.arange(0, S.DP), tl.arange(0, S.RP)
    evicts, victim, oldest = evict(held, scratch, unit, now, t, length, places, 0, rule, S)
    tl.store(results.position + unit * length + t, tl.where(evicts, oldest, -1))
    for m in range(0, S.M):
        head = unit * S.M + m
        at = head * places + victim
        key = tl.load(held.key + at * S.D + d, (d < S.D) & evicts, 0.0)
        value = tl.load(held.value + at * S.D + d, (d < S.D) & evicts, 0.0)
        if S.STATE:
            psi = tl.load(held.feature + at * S.R + r, (r < S.R) & evicts, 0.0)
            absorb(held.H, held.z, psi, value.to(tl.float32), head, S)
        else:
            at = head * length + t
            tl.store(results.key + at * S.D + d, key, d < S.D)
            tl.store(results.value + at * S.D + d, value, d < S.D)


RUNTIME = ["length", "places", "groups", "parts", "span", "t", "rule", "budget"]
"""Arguments whose values must not make compiled variants."""


@triton.jit(do_not_specialize=RUNTIME)
def _read_kernel(new, held, scratch, results, length, places, groups, rule, scale, epsilon, S):
    """Run all stages of all tokens, one after another: a program an index set (B U)."""
    unit = tl.program_id(0).to(tl.int64)
    first = tl.load(new.first + unit * S.M // groups).to(tl.int32)
    for t in range(0, length):
        for m in range(0, S.M):
            head = unit * S.M + m
            _attend(new, held, scratch, head, 0, first + t, t, length, places, places, 1, scale, S)
        tl.debug_barrier()  # what one thread has written, others read
        for m in range(0, S.M):
            head = unit * S.M + m
            _merge(
                new, held, scratch, results, head, first + t, t, length, 1, rule.budget, epsilon, S
            )
        tl.debug_barrier()
        _choose(held, scratch, results, unit, first + t, t, length, places, rule, S)
        tl.debug_barrier()


@triton.jit(do_not_specialize=RUNTIME)
def _attend_kernel(new, held, scratch, t, length, places, groups, parts, span, scale, S):
    """Run :func:`_attend` in programs (B G, parts)."""
    head = tl.program_id(0).to(tl.int64)
    now = tl.load(new.first + head // groups).to(tl.int32) + t
    part = tl.program_id(1)
    _attend(new, held, scratch, head, part, now, t, length, places, span, parts, scale, S)


@triton.jit(do_not_specialize=RUNTIME)
def _merge_kernel(new, held, scratch, results, t, length, groups, parts, rule, epsilon, S):
    """Run :func:`_merge` in programs (B G)."""
    head = tl.program_id(0).to(tl.int64)
    now = tl.load(new.first + head // groups).to(tl.int32) + t
    _merge(new, held, scratch, results, head, now, t, length, parts, rule.budget, epsilon, S)


@triton.jit(do_not_specialize=RUNTIME)
def _choose_kernel(new, held, scratch, results, t, length, places, groups, rule, S):
    """Run :func:`_choose` in programs (B U)."""
    unit = tl.program_id(0).to(tl.int64)
    now = tl.load(new.first + unit * S.M // groups).to(tl.int32) + t
    _choose(held, scratch, results, unit, now, t, length, places, rule, S)


def _sizes(
    q: torch.Tensor, slots: Slots, scored: bool, state: LowRankState | None
) -> tuple[Sizes, int]:
    """Return the compile-time sizes, and warps, for queries (B, H, T, D) of these slots."""
    groups, places, size = slots.keys.shape[1:]
    rep, rank = q.shape[1] // groups, 1 if state is None else state.z.shape[-1]
    exact = q.dtype == torch.float32 and rep > 1
    tile, warps = MANY_HEADS if exact else TILES.get(rows(rep), MANY_HEADS)
    block = max(SMALLEST, min(tile // padded(size), padded(places), SPAN))
    sizes = (
        rep, size, rank, groups // slots.positions.shape[1], rows(rep), padded(size), padded(rank),
        block, min(PLACES, padded(places)), scored, False, state is not None,
    )  # fmt: skip
    return Sizes(*map(tl.constexpr, sizes)), warps


def _read(
    slots: Slots, new: Tokens, policy: Policy, results: Results,
    kept: torch.Tensor | None = None, state: LowRankState | None = None,
) -> None:  # fmt: skip
    """Run the kernels over all tokens of ``new``; slots, state and ``results`` change in place.

    One launch, or for a single token three beyond :data:`SPAN` slots or where heads share an
    index set.
    """
    batch, heads, length, size = new.q.shape
    groups, places = slots.keys.shape[1:3]
    shared, shape = groups // slots.positions.shape[1], (batch, heads)
    together = length > 1 or (shared == 1 and places <= SPAN)
    parts = 1 if together else triton.cdiv(places, SPAN)
    S, warps = _sizes(new.q, slots, policy.needs_scores, state)

    def floats(*shape: int) -> torch.Tensor:
        return new.q.new_empty(shape, dtype=torch.float32)

    scratch = Scratch(
        floats(*shape, places) if policy.needs_scores else None,
        floats(*shape, parts), floats(*shape, parts), floats(*shape, parts, size),
        floats(*shape), floats(*shape),
    )  # fmt: skip
    held = Held(
        slots.keys, slots.values, slots.positions, slots.scores, slots.free,
        kept, *((None, None) if state is None else (state.H, state.z)),
    )  # fmt: skip
    rule = Rule(policy.sink, policy.recent, policy.budget, float(policy.decay))
    scale, units, sets = size**-0.5, batch * groups, batch * groups // shared
    if together:
        _read_kernel[(sets,)](
            new, held, scratch, results, length, places, groups, rule, scale, EPSILON, S,
            num_warps=warps,
        )  # fmt: skip
        return
    _attend_kernel[(units, parts)](
        new, held, scratch, 0, length, places, groups, parts, SPAN, scale, S, num_warps=warps
    )
    _merge_kernel[(units,)](new, held, scratch, results, 0, length, groups, parts, rule, EPSILON, S)
    _choose_kernel[(sets,)](new, held, scratch, results, 0, length, places, groups, rule, S)


KEEPS_FEATURES = True


def decode(
    slots: Slots, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, position: torch.Tensor,
    policy: Policy,
) -> Decoded:  # fmt: skip
    """See :func:`pipeline.ops.reference.decode.decode`; launches as :func:`_read` says."""
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    decoded = Decoded(
        out=q.new_empty(q.shape, dtype=torch.float32),
        lse=q.new_empty(q.shape[:-1], dtype=torch.float32),
        keys=torch.empty_like(k),
        values=torch.empty_like(v),
        positions=slots.positions.new_empty(*slots.free.shape, q.shape[2]),
    )
    pairs = (decoded.keys, decoded.values, decoded.positions)
    results = Results(decoded.out, decoded.lse, *pairs)
    _read(slots, Tokens(q, k, v, None, None, position), policy, results)
    return decoded


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
    """Read tokens and correct what they read at once, after one launch for the features.

    psi of a pair is formed when it enters and kept beside its slot, so nothing has to be computed
    between the choice of the evicted pair and the state that takes it in.

    Args:
        kept: psi of the pair in each slot, float32 (B, G, C + 1, R); changes in place, as slots
            and state do.
        q: (B, H, T, D). k, v: (B, G, T, D), of the slots' dtype.
        position: (B,) of the first token.

    Returns:
        The output (B, H, T, D), float32, and evicted positions (B, U, T), -1 for none.
    """
    assert kept is not None
    phi, psi = features(kernel, q, k)
    return step_with_features(slots, kept, state, Tokens(q, k, v, phi, psi, position), policy)


def step_with_features(
    slots: Slots, kept: torch.Tensor, state: LowRankState, new: Tokens, policy: Policy
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return :func:`step` of tokens whose features are known: what follows the features."""
    new = Tokens(*(None if x is None else x.contiguous() for x in new))  # type: ignore[arg-type]
    q = new.q
    out = q.new_empty(q.shape, dtype=torch.float32)
    gone = slots.positions.new_empty(*slots.free.shape, q.shape[2])
    results = Results(out, q.new_empty(q.shape[:-1], dtype=torch.float32), None, None, gone)
    _read(slots, new, policy, results, kept, state)
    return out, gone
