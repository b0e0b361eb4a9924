"""A decode step: what a backend offers, and which one serves a device.

Apart from the operators over sequences, so that training and teacher-forced evaluation do not
depend on how a bounded cache steps.
"""

from __future__ import annotations

from typing import Protocol

import torch

from ..policies import Policy
from .low_rank import LowRankState
from .packed import PackedKernel, PlainKernel
from .slots import Decoded, Slots


class DecodeBackend(Protocol):
    """A module that reads tokens through the slots of a bounded cache.

    Attributes:
        KEEPS_FEATURES: whether :meth:`step` wants psi of the pair in each slot kept beside it.
    """

    KEEPS_FEATURES: bool

    def decode(
        self,
        slots: Slots,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        position: torch.Tensor,
        policy: Policy,
    ) -> Decoded:
        """Read tokens; see :func:`pipeline.ops.reference.decode.decode`."""

    def step(
        self,
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
        """Read tokens with a state; see :func:`pipeline.ops.reference.decode.step`."""


def decode_backend(device: torch.device) -> DecodeBackend:
    """Return the module that serves a bounded cache on ``device``."""
    if device.type == "cpu":
        from .cpu import decode as cpu

        return cpu
    if device.type == "cuda":
        from .gpu import compiled, decode

        return compiled if torch.compiler.is_compiling() else decode
    from .reference import decode as reference

    return reference
