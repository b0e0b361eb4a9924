"""Say what went wrong in a layer's training, and what becomes of its kernel."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..errors import DataError
from ..kernels import TrainableKernel
from .loop import Epoch


@dataclass(frozen=True)
class Fault:
    """What went wrong in the training of a layer.

    Attributes:
        what: for people, as in "layer 3 <what>".
        harmful: no epoch's kernel beats the sparse policy, so the layer is better off without.
    """

    what: str
    harmful: bool

    @classmethod
    def of(cls, curve: Sequence[Epoch], sparse: float) -> Fault | None:
        """Return the fault of a loss curve, or None; ``sparse`` is the sparse policy's loss."""
        # Epoch 0 is no training: its scalars are nearly 0, and so is what it can be better by.
        beaten = any(epoch.validation_loss < sparse for epoch in curve[1:])
        last = curve[-1]
        if not math.isfinite(sparse):
            return cls("has features that are no finite half-precision numbers", True)
        if not last.finite:
            return cls(f"diverged in epoch {last.epoch}", not beaten)
        return None if beaten else cls("does not beat the sparse policy", True)


def _stop(kernel: TrainableKernel, why: str) -> None:
    """Refuse to go on.

    Raises:
        DataError: always.
    """
    raise DataError(
        f"{why}, and `train.on_harm` is `stop`: train it on more text or with a lower learning "
        "rate, or choose `sparse`, which leaves the layer without a kernel."
    )


ON_HARM: dict[str, Callable[[TrainableKernel, str], None]] = {
    "sparse": lambda kernel, why: kernel.silence(),
    "keep": lambda kernel, why: None,
    "stop": _stop,
}
"""What becomes of a kernel that is no better than none; it is at its best epoch."""
