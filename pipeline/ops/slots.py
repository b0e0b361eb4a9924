"""The slots of a bounded cache, budget + 1 of them, and what reading through them gives."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from ..policies import Policy


@dataclass
class Slots:
    """C + 1 slots for each sequence and key/value head; C are taken between steps.

    U index sets a sequence: G when the policy pools scores by group, 1 when it pools by layer.
    A slot is free where its position is -1; nothing is ever moved from slot to slot.

    Attributes:
        keys, values: (B, G, C + 1, D), in the model's dtype.
        positions: int32 (B, U, C + 1), counted from the sequence's first real token.
        scores: float32 (B, U, C + 1), or (B, U, 0) for a policy that needs none.
        free: int32 (B, U), the slot that the next pair takes.
    """

    keys: torch.Tensor
    values: torch.Tensor
    positions: torch.Tensor
    scores: torch.Tensor
    free: torch.Tensor

    @classmethod
    def empty(cls, like: torch.Tensor, policy: Policy) -> Slots:
        """Free slots for pairs of the shape (B, G, ..., D), type and device of ``like``."""
        batch, groups, size = like.shape[0], like.shape[1], like.shape[-1]
        places, device = policy.budget + 1, like.device
        sets = groups if policy.pooling == "group" else 1
        return cls(
            like.new_zeros(batch, groups, places, size),
            like.new_zeros(batch, groups, places, size),
            torch.full((batch, sets, places), -1, dtype=torch.int32, device=device),
            torch.zeros(batch, sets, places if policy.needs_scores else 0, device=device),
            torch.zeros(batch, sets, dtype=torch.int32, device=device),
        )

    def fill(
        self,
        k: torch.Tensor,
        v: torch.Tensor,
        scores: torch.Tensor,
        index: torch.Tensor,
        positions: torch.Tensor,
    ) -> None:
        """Put pairs of a prompt into the first slots, in place.

        Args:
            k, v: (B, G, P, D). scores: (B, U, P), or (B, U, 0).
            index: (B, U, K) which of the P pairs, K <= C, real ones first.
            positions: int32 (B, U, K), their positions, -1 where not a real token.
        """
        count = index.shape[-1]
        rows = by_head(index, k.shape[1])[..., None].expand(-1, -1, -1, k.shape[-1])
        self.keys[:, :, :count] = k.gather(2, rows)
        self.values[:, :, :count] = v.gather(2, rows)
        self.positions[..., :count] = positions
        if scores.shape[-1]:
            self.scores[..., :count] = scores.gather(-1, index) * (positions >= 0)
        self.free.copy_((positions >= 0).sum(-1))

    def clear(self) -> None:
        """Free every slot, in place."""
        self.positions.fill_(-1)
        self.scores.zero_()
        self.free.zero_()

    def select(self, index: torch.Tensor) -> Slots:
        """Return the slots of sequences ``index`` (B',)."""
        return Slots(*(getattr(self, f.name).index_select(0, index) for f in fields(self)))


@dataclass
class Decoded:
    """What reading T tokens through a bounded cache gives.

    Attributes:
        out: attention over what is cached, float32 (B, H, T, D); 0 for padding.
        lse: log-sum-exp of its logits, float32 (B, H, T); of padding it means nothing.
        keys, values: the pair evicted after each token, (B, G, T, D), where there is one.
        positions: its position, int32 (B, U, T), -1 where there is none.
    """

    out: torch.Tensor
    lse: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    positions: torch.Tensor


def by_head(x: torch.Tensor, groups: int) -> torch.Tensor:
    """Return (B, U, ...) to (B, G, ...): heads that share an index set share its entries."""
    return x.expand(-1, groups, *x.shape[2:])
