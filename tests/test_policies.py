import pytest

from pipeline.errors import ConfigError
from pipeline.policies import FAMILIES, Policy, budget_tokens, get_policy


@pytest.mark.parametrize(
    ("name", "budget", "sink", "recent", "heavy"),
    [
        ("h2o", 40, 0, 20, 20),
        ("h2o", 41, 0, 21, 20),  # the odd token is recent
        ("h2o", 1, 0, 1, 0),
        ("lambda", 40, 4, 36, 0),
        ("lambda", 4, 4, 0, 0),
        ("lambda", 3, 3, 0, 0),  # sinks first
        ("tova", 40, 0, 0, 40),
        ("decayed", 40, 0, 20, 20),
    ],
)
def test_families_split_the_budget(name, budget, sink, recent, heavy):
    policy = get_policy(name, budget)
    assert (policy.sink, policy.recent, policy.heavy) == (sink, recent, heavy)
    assert policy.budget == budget
    assert policy.needs_scores == (heavy > 0)


def test_families_score_as_published():
    rules = {n: (get_policy(n, 8).decay, get_policy(n, 8).pooling) for n in ("h2o", "tova")}
    assert rules == {"h2o": (1.0, "group"), "tova": (0.0, "layer")}
    assert 0 < get_policy("decayed", 8).decay < 1


@pytest.mark.parametrize("name", sorted(FAMILIES))
@pytest.mark.parametrize("budget", range(1, 20))
def test_every_family_spends_exactly_its_budget(name, budget):
    assert get_policy(name, budget).budget == budget


def test_baseline_plus_splits_half_the_kernel_size_like_the_policy():
    """R = 8 buys 4 more tokens."""
    more = {n: get_policy(n, 44) for n in ("h2o", "lambda", "tova")}
    assert (more["h2o"].recent, more["h2o"].heavy) == (22, 22)
    assert more["lambda"].recent == 40
    assert more["tova"].heavy == 44


@pytest.mark.parametrize(
    ("context", "budgets"),
    [(4096, [80, 204, 408]), (2048, [40, 102, 204])],
    ids=["llama", "falcon"],
)
def test_budget_tokens_match_table_1(context, budgets):
    assert [budget_tokens(s, context) for s in (0.02, 0.05, 0.1)] == budgets


def test_budget_tokens_survives_decimal_fractions():
    assert 0.29 * 200 < 58  # what floor alone would turn into 56
    assert budget_tokens(0.29, 200) == 58


@pytest.mark.parametrize("sparsity", [0.0, 1.0, -0.1, 2.0, float("nan"), 0.001])
def test_budget_tokens_refuses(sparsity):
    with pytest.raises(ConfigError, match="sparsity"):
        budget_tokens(sparsity, 1000)


def test_unknown_policy_suggests_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown policy 'tovva'; did you mean 'tova'\?"):
        get_policy("tovva", 8)


@pytest.mark.parametrize("budget", [0, -3])
def test_budget_must_be_positive(budget):
    with pytest.raises(ConfigError, match="budget must be at least 1"):
        get_policy("lambda", budget)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [((-1, 2, 2, 1.0), "non-negative"), ((0, 0, 0, 1.0), "at least 1"), ((0, 1, 1, 1.1), "decay")],
)
def test_impossible_policies_are_refused(numbers, message):
    with pytest.raises(ConfigError, match=message):
        Policy("odd", *numbers, "group")
