"""The operators written plainly: step by step over dense rows, on any device.

These are the truth the compiled forms are tested against. They cost O(S^2) memory and a small
tensor operation per step.
"""

from __future__ import annotations

import torch

from pipeline.ops import NEVER, Decoded
from pipeline.policies import Policy
from pipeline.slots import Slots, by_head
from pipeline.synthesis import LowRankState, linear_attention, merge


def causal_logits(q: torch.Tensor, k: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """q k^T / sqrt(d) in float32 with -inf where not visible.

    Args:
        q: (U, M, N, S, D). k: (U, M, S, D). visible: broadcastable to (U, M, N, S, S), bool.
    """
    logits: torch.Tensor = (
        q.float() @ k.float().unsqueeze(2).transpose(-1, -2) * q.shape[-1] ** -0.5
    )
    return logits.masked_fill(~visible, float("-inf"))


def visible_mask(evicted_at: torch.Tensor) -> torch.Tensor:
    """(U, S) eviction times to the (U, S, S) boolean mask: key j visible to i iff j <= i < e_j."""
    position = torch.arange(evicted_at.shape[-1], device=evicted_at.device)
    causal = position[None, :] <= position[:, None]
    return causal & (position[:, None] < evicted_at[:, None, :])


def keep(score: torch.Tensor, cached: torch.Tensor, query: int, policy: Policy) -> torch.Tensor:
    """Which cached keys stay after ``query``: (U, S) bool from (U, S) scores and (U, S) bool.

    Evicts the candidates (neither sink nor recent) of lowest score, lowest position first among
    equals, until the budget holds.
    """
    position = torch.arange(score.shape[-1], device=score.device)
    candidate = cached & (position >= policy.sink) & (position <= query - policy.recent)
    excess = int(cached[0].sum()) - policy.budget
    ranked = torch.where(candidate, score, float("inf")).sort(dim=-1, stable=True).indices
    kept = cached.clone()
    if excess > 0:
        kept.scatter_(-1, ranked[:, :excess], False)
    return kept


def evict(
    q: torch.Tensor, k: torch.Tensor, policy: Policy, scores: str, prompt: int = 0
) -> torch.Tensor:
    """Eviction times (U, S), int32, by the policy's definition, one query at a time.

    Args:
        q: (U, M, N, S, D). k: (U, M, S, D).
        scores: ``full`` (probabilities over the causal row) or ``cached`` (over what is cached).
        prompt: queries before it see everything; one cut follows the last of them.
    """
    sets, length = q.shape[0], q.shape[-2]
    cached = torch.zeros(sets, length, dtype=torch.bool, device=q.device)
    score = torch.zeros(sets, length, device=q.device)
    evicted_at = torch.full((sets, length), NEVER, dtype=torch.int32, device=q.device)
    position = torch.arange(length, device=q.device)
    for t in range(length):
        cached[:, t] = True
        row = cached if scores == "cached" else (position <= t).expand(sets, length)
        row = row if t >= prompt else (position <= t).expand(sets, length)
        logits = causal_logits(q[..., t : t + 1, :], k, row[:, None, None, None, :])
        p = logits.softmax(-1).sum((1, 2, 3))
        score = policy.decay * score + p
        if t + 1 >= prompt:
            kept = keep(score, cached, t, policy)
            evicted_at[cached & ~kept] = t + 1
            cached = kept
    return evicted_at


def sparse_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, evicted_at: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over what is visible, by an S x S mask.

    Args:
        q: (U, M, N, S, D). k, v: (U, M, S, D). evicted_at: (U, S).

    Returns:
        The output (U, M, N, S, D) and the log-sum-exp of the visible logits (U, M, N, S), float32.
    """
    logits = causal_logits(q, k, visible_mask(evicted_at)[:, None, None])
    return logits.softmax(-1) @ v.float().unsqueeze(2), logits.logsumexp(-1)


def bounded_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, policy: Policy, prompt: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Eviction by cached scores and the attention that goes with it: (evicted_at, out, lse)."""
    evicted_at = evict(q, k, policy, "cached", prompt)
    return evicted_at, *sparse_attention(q, k, v, evicted_at)


def decode(
    slots: Slots, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, position: torch.Tensor,
    policy: Policy,
) -> Decoded:  # fmt: skip
    """Tokens read one after another through the slots of a bounded cache, which change in place.

    Each token's pair takes the free slot, its query attends to all that is cached, scores are
    updated, and if more than the budget is held the policy frees a slot.

    Args:
        q: (B, H, T, D). k, v: (B, G, T, D), of the slots' dtype.
        position: (B,) of the first token; tokens at negative positions are padding and leave no
            trace.
    """
    batch, heads, length, size = q.shape
    groups, sets = k.shape[1], slots.positions.shape[1]
    out = q.new_zeros(batch, heads, length, size, dtype=torch.float32)
    lse = q.new_zeros(batch, heads, length, dtype=torch.float32)
    keys, values = torch.zeros_like(k), torch.zeros_like(v)
    evicted = slots.positions.new_full((batch, sets, length), -1)
    for t in range(length):
        now = (position + t)[:, None]
        real, full = now >= 0, now >= policy.budget
        slot = slots.free.long()[..., None]
        row = by_head(slot, groups)[..., None].expand(-1, -1, -1, size)
        slots.keys.scatter_(2, row, k[:, :, t : t + 1])
        slots.values.scatter_(2, row, v[:, :, t : t + 1])
        new = now.clamp(min=-1)[..., None].expand(-1, sets, -1).to(slots.positions.dtype)
        slots.positions.scatter_(2, slot, new)
        cached = slots.positions >= 0
        logits = q[:, :, t].float().view(batch, groups, -1, size)
        logits = logits @ slots.keys.float().transpose(-1, -2) * size**-0.5
        logits = logits.masked_fill(~by_head(cached, groups)[:, :, None], float("-inf"))
        p = logits.softmax(-1).masked_fill(~real[..., None, None], 0)
        out[:, :, t] = (p @ slots.values.float()).view(batch, heads, size)
        lse[:, :, t] = logits.logsumexp(-1).view(batch, heads)
        score = slots.scores
        if policy.needs_scores:
            score.scatter_(2, slot, 0)
            mass = p.sum(2).view(batch, sets, -1, p.shape[-1]).sum(2)
            score.mul_(policy.decay).add_(mass)
        else:
            score = torch.zeros_like(cached, dtype=torch.float32)
        free = (slots.positions >= policy.sink) & (
            slots.positions <= now[..., None] - policy.recent
        )
        lowest = score.masked_fill(~(cached & free), float("inf"))
        tied = lowest == lowest.amin(-1, keepdim=True)
        victim = slots.positions.masked_fill(~tied, NEVER).argmin(-1, keepdim=True)
        gone = slots.positions.gather(2, victim)
        row = by_head(victim, groups)[..., None].expand(-1, -1, -1, size)
        keys[:, :, t : t + 1] = slots.keys.gather(2, row)
        values[:, :, t : t + 1] = slots.values.gather(2, row)
        evicted[..., t] = torch.where(full, gone[..., 0], -1)
        slots.positions.scatter_(2, victim, torch.where(full[..., None], -1, gone))
        slots.free.copy_(torch.where(full, victim[..., 0], (now + 1).clamp(min=0)))
    return Decoded(out, lse, keys, values, evicted)


def absorb_and_merge(
    decoded: Decoded, phi: torch.Tensor, psi: torch.Tensor, state: LowRankState,
    position: torch.Tensor, budget: int,
) -> torch.Tensor:  # fmt: skip
    """Add the low-rank part to what :func:`decode` gave, and take its evicted pairs in, in place.

    Args:
        phi: features of the queries, (B, H, T, R). psi: of the evicted keys, (B, G, T, R).
        position: (B,) of the first token. budget: queries after it miss something.

    Returns:
        (B, H, T, D), float32.
    """
    groups, length = psi.shape[1], psi.shape[2]
    psi = psi * by_head(decoded.positions >= 0, groups)[..., None]
    values = decoded.values.float()
    numerator, denominator = state.read(phi)
    if length > 1:  # query t also reads what queries before it evicted
        more, mass = linear_attention(phi[:, :, 1:], psi[:, :, :-1], values[:, :, :-1])
        numerator[:, :, 1:] += more
        denominator[:, :, 1:] += mass
    merged = merge(decoded.out, decoded.lse, numerator, denominator)
    misses = position[:, None] + torch.arange(length, device=psi.device) > budget
    state.absorb(psi, values)
    return torch.where(misses[:, None, :, None], merged, decoded.out)
