"""How policies and methods are written in tables and figures."""

from __future__ import annotations

import math

from pipeline.methods import FULL, METHODS
from pipeline.policies import FAMILIES

SCORES: dict[str, str] = {
    "acc": "Accuracy",
    "acc_norm": "Accuracy, per character",
    "acc_bytes": "Accuracy, per byte",
    "exact_match": "Exact match",
    "r@1": "R@1",
    "r@2": "R@2",
    "mrr": "MRR",
}
"""Metrics of lm-evaluation-harness that are tabulated, and their titles."""


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
