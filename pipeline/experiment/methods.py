"""The methods every table compares: which budget they hold and which kernels correct them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..policies import FAMILIES, state_tokens


def policy_title(name: str) -> str:
    """The policy's name as printed."""
    return FAMILIES[name].title


def label_of(method: str, train_sparsity: float | None) -> str:
    """The method's name as printed, with the sparsity it was trained at."""
    if method == FULL:
        return "Full cache"
    title = METHODS[method].title
    if train_sparsity is None or math.isnan(train_sparsity):
        return title
    return f"{title} ({100 * train_sparsity:g} %)"


FULL = "full"
"""The method of the full cache."""
GRID = "grid"
"""The study of what the grid itself measures, beside which the ablations stand."""

SCORES = ("cached", "full")
"""Which tokens' attention a policy's scores count; of the study of scores, by its setting."""


@dataclass(frozen=True)
class Method:
    """One column of the paper's tables.

    Attributes:
        title: for tables and figures.
        extra_tokens: whether the budget grows by what the low-rank state takes.
        kernel: name of the kernel in :data:`pipeline.kernels.KERNELS`, or None.
        trained: whether the kernel comes from a checkpoint (one for every train sparsity).
    """

    title: str
    extra_tokens: bool = False
    kernel: str | None = None
    trained: bool = False

    def budget(self, tokens: int, kernel_size: int) -> int:
        """Return what the method's policy keeps where a sparsity means ``tokens``."""
        return tokens + (state_tokens(kernel_size) if self.extra_tokens else 0)


METHODS: dict[str, Method] = {
    "baseline": Method("Baseline"),
    "baseline_plus": Method("Baseline+", extra_tokens=True),
    "performer": Method("+Performer", kernel="performer"),
    "less": Method("LESS", kernel="less", trained=True),
}
"""What a policy at a sparsity is evaluated as; the full cache stands beside the grid."""
