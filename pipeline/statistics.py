"""Intervals: the document is the unit, and methods are compared on the same documents.

Every bootstrap draws the same documents for all methods, so that an interval of a difference is
that of paired differences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A value with its interval (percentile bootstrap, 95 %) over n documents."""

    value: float
    low: float
    high: float
    n: int


def resamples(n: int, count: int, seed: int) -> np.ndarray:
    """(count, n) document indices, drawn with replacement."""
    return np.random.default_rng(seed).integers(0, n, size=(count, n))


def estimate(
    statistic: Callable[..., np.ndarray], *columns: np.ndarray, draws: np.ndarray
) -> Estimate:
    """Estimate ``statistic`` of per-document columns.

    Args:
        statistic: takes each column as (..., n) and reduces the last axis.
        columns: per-document numbers (n,), all in the same order of documents.
        draws: from :func:`resamples`.
    """
    value = float(statistic(*columns))
    drawn = statistic(*(column[draws] for column in columns))
    if np.isnan(drawn).all():  # a ratio that is undefined whatever documents are drawn
        return Estimate(value, float("nan"), float("nan"), len(columns[0]))
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high), len(columns[0]))


def perplexity(nll: np.ndarray, units: np.ndarray) -> np.ndarray:
    """exp of the summed loss over the summed units (tokens or words), along the last axis."""
    return np.asarray(np.exp(nll.sum(-1) / units.sum(-1)))


def recovered_gap(
    nll: np.ndarray, baseline: np.ndarray, full: np.ndarray, units: np.ndarray
) -> np.ndarray:
    """(baseline - method) / (baseline - full) in perplexity: 0 the baseline, 1 the full cache."""
    return _share(*(perplexity(column, units) for column in (nll, baseline, full)))


def recovered_mean(scores: np.ndarray, baseline: np.ndarray, full: np.ndarray) -> np.ndarray:
    """(baseline - method) / (baseline - full) in mean scores, along the last axis."""
    return _share(scores.mean(-1), baseline.mean(-1), full.mean(-1))


def _share(value: np.ndarray, baseline: np.ndarray, full: np.ndarray) -> np.ndarray:
    """How far ``value`` is on the way from ``baseline`` to ``full``; nan where there is none."""
    way = np.asarray(baseline - full)
    return np.asarray((baseline - value) / np.where(way == 0, np.nan, way))


def mean_difference(a: np.ndarray, b: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Difference of losses per unit, a - b."""
    return np.asarray((a - b).sum(-1) / units.sum(-1))
