"""Intervals: the document is the unit, and methods are compared on the same documents.

Every bootstrap draws the same documents for all methods, so that an interval of a difference is
that of paired differences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
QUANTILES = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
BLOCK = 2**21
"""Numbers of a column that are resampled at once."""


@dataclass(frozen=True)
class Estimate:
    """A value with its interval (percentile bootstrap, 95 %) over n documents."""

    value: float
    low: float
    high: float
    n: int


def resamples(n: int, count: int, seed: int) -> np.ndarray:
    """Return (count, n) document indices, drawn with replacement."""
    return np.random.default_rng(seed).integers(0, n, size=(count, n))


def _resampled(
    statistic: Callable[..., np.ndarray], columns: Sequence[np.ndarray], draws: np.ndarray
) -> np.ndarray:
    """Return ``statistic`` of each of ``draws``, (..., count), by blocks that bound memory."""
    size = max(1, BLOCK // draws.shape[1])
    blocks = (draws[start : start + size] for start in range(0, len(draws), size))
    values = [statistic(*(column[block] for column in columns)) for block in blocks]
    return np.concatenate(values, axis=-1)


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
    low, high = np.quantile(_resampled(statistic, columns, draws), QUANTILES)
    return Estimate(value, float(low), float(high), len(columns[0]))


def estimate_share(
    statistic: Callable[..., np.ndarray],
    method: np.ndarray,
    baseline: np.ndarray,
    full: np.ndarray,
    *others: np.ndarray,
    draws: np.ndarray,
) -> Estimate:
    """Return recovered gap, (baseline - method) / (baseline - full) of a statistic of each.

    0 is the baseline, 1 the full cache. Undefined (nan) where the documents do not tell on which
    side of the full cache the baseline is: there is no loss to recover a share of.

    Args:
        statistic: of a column and ``others`` (:func:`perplexity` and its units, or a mean).
        method, baseline, full: per-document numbers (n,).
        draws: from :func:`resamples`.
    """

    def ways(*columns: np.ndarray) -> np.ndarray:
        own, base, reference = (statistic(column, *columns[3:]) for column in columns[:3])
        return np.stack([base - own, base - reference])

    columns = (method, baseline, full, *others)
    (part, way), (parts, all_ways) = ways(*columns), _resampled(ways, columns, draws)
    if np.mean(np.sign(all_ways) * np.sign(way) <= 0) > (1 - LEVEL) / 2:
        return Estimate(float("nan"), float("nan"), float("nan"), len(method))
    shares = parts / np.where(all_ways == 0, np.nan, all_ways)
    low, high = np.nanquantile(shares, QUANTILES)
    return Estimate(float(part / way), float(low), float(high), len(method))


def perplexity(nll: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Return exp of summed loss over summed units (tokens or words), along the last axis."""
    return np.asarray(np.exp(nll.sum(-1) / units.sum(-1)))


def mean(scores: np.ndarray) -> np.ndarray:
    """Return mean over documents, along the last axis."""
    return np.asarray(scores.mean(-1))


def mean_difference(a: np.ndarray, b: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Return difference of losses per unit, a - b."""
    return np.asarray((a - b).sum(-1) / units.sum(-1))
