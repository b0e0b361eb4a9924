"""A decode step written plainly, on any device: the truth the compiled forms are tested against."""

from __future__ import annotations

import torch

from ...policies import Policy
from ..low_rank import LowRankState, linear_attention, merge
from ..packed import PackedKernel, PlainKernel
from ..slots import Decoded, Slots, by_head
from ..times import NEVER

KEEPS_FEATURES = False


def decode(
    slots: Slots,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    position: torch.Tensor,
    policy: Policy,
) -> Decoded:
    """Read tokens one after another through the slots of a bounded cache, which change in place.

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


def correct(
    decoded: Decoded,
    q: torch.Tensor,
    kernel: PackedKernel | PlainKernel,
    state: LowRankState,
    position: torch.Tensor,
    policy: Policy,
) -> torch.Tensor:
    """Add the low-rank part to what :func:`decode` gave, and take its evicted pairs in, in place.

    Args:
        q: (B, H, T, D), the queries. kernel: its features of them, and of the evicted keys.
        position: (B,) of the first token. Queries beyond the policy's budget miss something.

    Returns:
        (B, H, T, D), float32.
    """
    phi, psi = kernel.phi(q), kernel.psi(decoded.keys)
    groups, length = psi.shape[1], psi.shape[2]
    psi = psi * by_head(decoded.positions >= 0, groups)[..., None]
    values = decoded.values.float()
    numerator, denominator = state.read(phi)
    if length > 1:  # query t also reads what queries before it evicted
        more, mass = linear_attention(phi[:, :, 1:], psi[:, :, :-1], values[:, :, :-1])
        numerator[:, :, 1:] += more
        denominator[:, :, 1:] += mass
    merged = merge(decoded.out, decoded.lse, numerator, denominator)
    misses = position[:, None] + torch.arange(length, device=psi.device) > policy.budget
    state.absorb(psi, values)
    return torch.where(misses[:, None, :, None], merged, decoded.out)


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
    """Read tokens as :func:`decode` does, and correct what it gave; slots and state change.

    Args:
        kept: psi of the pair in each slot, float32 (B, G, C + 1, R), where a backend keeps it.

    Returns:
        The output (B, H, T, D), float32, and evicted positions (B, U, T), -1 for none.
    """
    decoded = decode(slots, q, k, v, position, policy)
    return correct(decoded, q, kernel, state, position, policy), decoded.positions
