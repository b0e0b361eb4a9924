import warnings
from math import exp, log

import numpy as np
import pytest

from pipeline.report import statistics
from pipeline.report.statistics import (
    estimate,
    estimate_share,
    mean,
    mean_difference,
    perplexity,
    resamples,
)


def test_perplexity():
    """exp((ln 8 + ln 2) / 4) = 2; documents weigh by their length, not each the same."""
    assert perplexity(np.log([8.0, 2.0]), np.array([2, 2])) == pytest.approx(2)
    assert perplexity(np.log([16.0, 1.0]), np.array([4, 0])) == pytest.approx(2)
    assert perplexity(np.array([3 * log(2), log(16)]), np.array([3, 1])) == pytest.approx(exp(
        7 * log(2) / 4))  # fmt: skip
    rows = np.log([[8.0, 2.0], [1.0, 1.0]])
    assert perplexity(rows, np.array([2, 2])).tolist() == pytest.approx([2, 1])


@pytest.mark.parametrize(
    ("method", "gap"), [(4, 0), (2, 1), (3, 0.5), (6, -1), (1, 1.5), (3.5, 0.25)]
)
def test_recovered_gap(method, gap):
    """Baseline 4, full cache 2: linear in perplexity, not in its logarithm."""
    one, draws = np.array([1]), resamples(1, 10, 0)
    found = estimate_share(
        perplexity, np.log([method]), np.log([4.0]), np.log([2.0]), one, draws=draws
    )
    assert found.value == pytest.approx(gap, abs=1e-12)


@pytest.mark.parametrize(
    ("method", "gap"), [([0.5, 0.7], 0.75), ([0.2, 0.4], 0), ([0.6, 0.6], 0.75)]
)
def test_recovered_share_of_a_mean(method, gap):
    base, full = np.array([0.2, 0.4]), np.array([0.8, 0.6])
    found = estimate_share(mean, np.array(method), base, full, draws=resamples(2, 50, 0))
    assert found.value == pytest.approx(gap)


def test_mean_difference():
    units = np.array([10, 30])
    assert mean_difference(np.array([5.0, 9.0]), np.array([3.0, 3.0]), units) == pytest.approx(0.2)


def test_blocks_of_resamples_are_as_all_at_once(monkeypatch):
    rng = np.random.default_rng(0)
    method, base, full = (x + rng.random(7) for x in (1.0, 2.0, 0.0))
    units, draws = np.arange(1, 8), resamples(7, 100, 0)

    def found():
        share = estimate_share(perplexity, method, base, full, units, draws=draws)
        return estimate(perplexity, method, units, draws=draws), share

    whole = found()
    monkeypatch.setattr(statistics, "BLOCK", 7 * 33)
    assert found() == whole


def test_resamples():
    draws = resamples(5, 1000, seed=1)
    assert draws.shape == (1000, 5)
    assert set(draws.flatten()) == set(range(5))
    assert (draws == resamples(5, 1000, seed=1)).all()
    assert (draws != resamples(5, 1000, seed=2)).any()


def test_one_document_has_no_spread():
    found = estimate(perplexity, np.log([4.0]), np.array([2]), draws=resamples(1, 100, 0))
    assert (found.value, found.low, found.high, found.n) == (2, 2, 2, 1)


def test_differences_are_paired():
    """Documents differ by far more than methods: only pairing sees the difference."""
    rng = np.random.default_rng(0)
    units = np.full(30, 100)
    base = rng.uniform(100, 500, 30)
    draws = resamples(30, 500, 0)
    found = estimate(mean_difference, base + 1, base, units, draws=draws)
    assert (found.value, found.low, found.high) == pytest.approx((0.01, 0.01, 0.01))
    alone = estimate(lambda a, n: a.sum(-1) / n.sum(-1), base, units, draws=draws)
    assert alone.high - alone.low > 0.5


def test_gap_is_paired():
    """A method half way in every document has half the gap, whatever documents are drawn."""
    rng = np.random.default_rng(1)
    one = np.ones(25)
    full, base = rng.uniform(1, 2, 25), rng.uniform(3, 5, 25)
    draws = resamples(25, 300, 0)
    found = estimate_share(perplexity, base, base, full, one, draws=draws)
    assert (found.value, found.low, found.high) == (0, 0, 0)
    found = estimate_share(perplexity, full, base, full, one, draws=draws)
    assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1))


def test_intervals_cover_the_truth():
    rng = np.random.default_rng(0)
    one = np.ones(40)
    draws = resamples(40, 400, 0)
    truth, trials = exp(2.0), 400
    inside = 0
    for _ in range(trials):
        found = estimate(perplexity, rng.normal(2.0, 0.5, 40), one, draws=draws)
        assert found.low <= found.value <= found.high
        inside += found.low <= truth <= found.high
    assert 0.90 <= inside / trials <= 0.975


def test_a_gap_that_does_not_exist_is_nan():
    one, same = np.ones(5), np.arange(1.0, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = estimate_share(perplexity, same, same, same, one, draws=resamples(5, 100, 0))
    assert np.isnan([found.value, found.low, found.high]).all()


@pytest.mark.parametrize(("lost", "defined"), [(0.1, False), (1.0, True)])
def test_a_gap_of_a_loss_that_may_be_none_is_nan(lost, defined):
    """The baseline is worse on average, but by less than documents differ: a share of what?"""
    noise = np.random.default_rng(0).normal(0, 1, 40)
    full = np.zeros(40)
    found = estimate_share(
        mean, (full - noise - lost) / 2, full - noise - lost, full, draws=resamples(40, 500, 0)
    )
    assert np.isfinite([found.value, found.low, found.high]).all() == defined


def test_the_commit_of_a_run(monkeypatch):
    from pipeline.runtime import code as revision

    for commit, changed, short in (("a" * 40, False, "a" * 12), ("b" * 40, True, "b" * 12 + "+"),
                                   (None, None, "unknown")):  # fmt: skip
        monkeypatch.setattr(revision, "commit", lambda c=commit, d=changed: {
            "commit": c, "changed": d})  # fmt: skip
        assert revision.short_commit() == short
