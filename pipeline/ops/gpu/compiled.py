"""The decode step as operators of torch that say what they change and what they return.

`torch.compile` cannot look into launches; under it a bounded cache takes these instead of
:mod:`pipeline.ops.gpu.decode`, to which they lead. Outside of it they would only cost time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...policies import Policy
from ..low_rank import LowRankState
from ..packed import PackedKernel, PlainKernel
from ..slots import Decoded, Slots
from . import decode as decoding
from . import maps

KEEPS_FEATURES = True
SLOTS = ("keys", "values", "positions", "scores", "free")


def _numbers(policy: Policy) -> tuple[int, int, int, float]:
    return policy.sink, policy.recent, policy.heavy, float(policy.decay)


def _held(slots: Slots) -> tuple[Tensor, ...]:
    return tuple(getattr(slots, name) for name in SLOTS)


@torch.library.custom_op("less::decode", mutates_args=SLOTS)
def _decode(
    keys: Tensor, values: Tensor, positions: Tensor, scores: Tensor, free: Tensor,
    q: Tensor, k: Tensor, v: Tensor, position: Tensor,
    sink: int, recent: int, heavy: int, decay: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    slots = Slots(keys, values, positions, scores, free)
    policy = Policy("", sink, recent, heavy, decay, "group")  # sets are as the slots have them
    decoded = decoding.decode(slots, q, k, v, position, policy)
    return decoded.out, decoded.lse, decoded.keys, decoded.values, decoded.positions


@_decode.register_fake
def _(
    keys: Tensor, values: Tensor, positions: Tensor, scores: Tensor, free: Tensor,
    q: Tensor, k: Tensor, v: Tensor, *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return (
        q.new_empty(q.shape, dtype=torch.float32), q.new_empty(q.shape[:-1], dtype=torch.float32),
        k.new_empty(k.shape), v.new_empty(v.shape),
        positions.new_empty(*free.shape, q.shape[2]),
    )  # fmt: skip


@torch.library.custom_op("less::step", mutates_args=(*SLOTS, "kept", "H", "z"))
def _step(
    keys: Tensor, values: Tensor, positions: Tensor, scores: Tensor, free: Tensor,
    kept: Tensor, H: Tensor, z: Tensor, q: Tensor, k: Tensor, v: Tensor, phi: Tensor, psi: Tensor,
    position: Tensor, sink: int, recent: int, heavy: int, decay: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    slots = Slots(keys, values, positions, scores, free)
    policy = Policy("", sink, recent, heavy, decay, "group")
    tokens = decoding.Tokens(q, k, v, phi, psi, position)
    return decoding.step_with_features(slots, kept, LowRankState(H, z), tokens, policy)


@_step.register_fake
def _(
    keys: Tensor, values: Tensor, positions: Tensor, scores: Tensor, free: Tensor,
    kept: Tensor, H: Tensor, z: Tensor, q: Tensor, *rest: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    out = q.new_empty(q.shape, dtype=torch.float32)
    return out, positions.new_empty(*free.shape, q.shape[2])


@torch.library.custom_op("less::maps", mutates_args=())
def _maps(w1: Tensor, w2: Tensor, last: Tensor, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    return maps.packed_features(w1, w2, last, q, k)


@_maps.register_fake
def _(w1: Tensor, w2: Tensor, last: Tensor, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    phi, psi = (
        x.new_empty(*x.shape[:-1], w2.shape[-1], dtype=torch.float32) for x in (q, k)
    )  # fmt: skip
    return phi, psi


def decode(
    slots: Slots, q: Tensor, k: Tensor, v: Tensor, position: Tensor, policy: Policy
) -> Decoded:
    """See :func:`pipeline.ops.gpu.decode.decode`."""
    return Decoded(*_decode(*_held(slots), q, k, v, position, *_numbers(policy)))


def step(
    slots: Slots,
    kept: Tensor | None,
    state: LowRankState,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kernel: PackedKernel | PlainKernel,
    position: Tensor,
    policy: Policy,
) -> tuple[Tensor, Tensor]:
    """See :func:`pipeline.ops.gpu.decode.step`."""
    if isinstance(kernel, PackedKernel):
        phi, psi = _maps(kernel.w1, kernel.w2, kernel.last, q, k)
    else:
        phi, psi = kernel.phi(q), kernel.psi(k)
    assert kept is not None
    held = (*_held(slots), kept, state.H, state.z)
    out, gone = _step(*held, q, k, v, phi, psi, position, *_numbers(policy))
    return out, gone
