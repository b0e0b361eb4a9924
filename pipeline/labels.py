"""How policies and methods are written in tables and figures."""

from __future__ import annotations

import math

from pipeline.methods import FULL, METHODS
from pipeline.policies import FAMILIES


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
