"""What a decode step gives, and the one place that picks its backend.

Apart from the operators over sequences, so that training and teacher-forced evaluation do not
depend on how a bounded cache steps.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import torch


class Decoded(NamedTuple):
    """What reading T tokens through a bounded cache gives.

    Attributes:
        out: attention over what is cached, float32 (B, H, T, D); 0 for padding.
        lse: log-sum-exp of its logits, float32 (B, H, T); of padding it means nothing.
        keys, values: the pair evicted after each token, (B, G, T, D), where there is one.
        positions: its position, int32 (B, U, T), -1 where there is none.
        rows: (H + G, B * T, D), queries and evicted keys head by head, as feature maps read them.
    """

    out: torch.Tensor
    lse: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    positions: torch.Tensor
    rows: torch.Tensor


def decode_backend(device: torch.device) -> ModuleType:
    """The module whose ``decode`` and ``correct`` serve a bounded cache on ``device``."""
    if device.type == "cpu":
        from .cpu import decode as decode_cpu

        return decode_cpu
    if device.type == "cuda":
        from .gpu import compiled as opaque
        from .gpu import decode as decoding

        return opaque if torch.compiler.is_compiling() else decoding
    from .reference import decode as decode_reference

    return decode_reference


def fused_step(device: torch.device) -> Callable[..., Any] | None:
    """``step`` of the backend for ``device``, which does what ``decode`` and ``correct`` do in one.

    None where it has none. It asks for psi of the pair in each slot to be kept with the slots.
    """
    return getattr(decode_backend(device), "step", None)
