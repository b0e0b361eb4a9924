"""The methods every table compares: which budget they hold and which kernels correct them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..policies import FAMILIES, state_tokens


def policy_title(name: str) -> str:
    """Return the policy's name as printed."""
    return FAMILIES[name].title


def label_of(method: str, train_sparsity: float | None) -> str:
    """Return the method's name as printed, with the sparsity it was trained at."""
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
        colors: in figures, one for each train sparsity in turn.
    """

    title: str
    extra_tokens: bool = False
    kernel: str | None = None
    trained: bool = False
    colors: tuple[str, ...] = ("#D55E00", "#F0E442", "#8C3B00", "#999900")

    def budget(self, tokens: int, kernel_size: int) -> int:
        """Return what the method's policy keeps where a sparsity means ``tokens``."""
        return tokens + (state_tokens(kernel_size) if self.extra_tokens else 0)


# Colours that stay apart for colour-blind readers (Okabe and Ito).
METHODS: dict[str, Method] = {
    "baseline": Method(title="Baseline", colors=("#999999",)),
    "baseline_plus": Method(title="Baseline+", extra_tokens=True, colors=("#E69F00",)),
    "performer": Method(title="+Performer", kernel="performer", colors=("#CC79A7",)),
    "less": Method(
        title="LESS",
        kernel="less",
        trained=True,
        colors=("#0072B2", "#56B4E9", "#009E73", "#004D73"),
    ),
}
"""What a policy at a sparsity is evaluated as; the full cache stands beside the grid."""


def trained_methods() -> list[str]:
    """Return the methods whose kernels are trained."""
    return [name for name, method in METHODS.items() if method.trained]
