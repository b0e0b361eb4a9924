import math

import pytest
import torch
from helpers import Case, assert_same_evictions, cases, randn, visible
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.eviction import evict_and_attend, evicted_at
from pipeline.ops.cpu import sequence as cpu
from pipeline.ops.reference import sequence as reference
from pipeline.ops.times import NEVER, by_index_set, evictions_seen
from pipeline.policies import Policy, get_policy

N = NEVER
TOLERANCE = {"rtol": 1e-4, "atol": 2e-5}


def from_weights(*heads, groups=1):
    """q, k whose attention weights are proportional to given rows, one table a query head.

    Row t lists the weights of keys 0..t. With k_j = e_j the logit of (t, j) is log of the weight.
    """
    length = len(heads[0])
    weights = torch.ones(1, len(heads), length, length)
    for h, rows in enumerate(heads):
        for t, row in enumerate(rows):
            weights[0, h, t, : t + 1] = torch.tensor(row)
    return weights.log() * math.sqrt(length), torch.eye(length).expand(1, groups, -1, -1)


def times_by(ops, q, k, policy, scores="cached", prompt=0):
    """Eviction times (U, S) as lists."""
    return ops.evict(*by_index_set(q, k, policy), policy, scores, prompt).tolist()


# --- worked by hand -------------------------------------------------------------------------

H2O_ROWS = [[1], [1, 9], [1, 1, 8], [1, 10, 8, 1], [1, 10, 1, 8, 1]]


def test_h2o_cached(ops):
    # C = 2: one heavy, one recent. Scores after each query, candidates in [ ]:
    # t0  s0 = 1
    # t1  s0 = 1 + .1, s1 = .9             two keys fit: the first eviction follows query C = 2
    # t2  [s0 = 1.2, s1 = 1.0], s2 = .8    evict 1, first missed by query 3
    # t3  cached 0 2 3, weights 1 8 1 of 10:    [s0 = 1.3, s2 = 1.6], s3 = .1     evict 0
    # t4  cached 2 3 4, weights 1 8 1 of 10:    [s2 = 1.7, s3 = .9], s4 = .1      evict 3
    q, k = from_weights(H2O_ROWS)
    assert times_by(ops, q, k, get_policy("h2o", 2)) == [[4, 3, N, 5, N]]


def test_h2o_full(ops):
    # As above to t2; then the evicted keys still take their share of the row:
    # t3  weights 1 10 8 1 of 20:       [s0 = 1.25, s2 = 1.2], s3 = .05           evict 2
    # t4  weights 1 10 1 8 1 of 21:     [s0 = 1.30, s3 = .05 + .38], s4           evict 3
    q, k = from_weights(H2O_ROWS)
    assert times_by(ops, q, k, get_policy("h2o", 2), "full") == [[N, 3, 4, 5, N]]


def test_decayed_scores(ops):
    # gamma = 1/2, one heavy, one recent:
    # t1  s0 = .5 + .1 = .6, s1 = .9
    # t2  [s0 = .3 + .1 = .4, s1 = .45 + .1 = .55], s2 = .8                       evict 0
    # t3  cached 1 2 3, weights 1 8 1 of 10: [s1 = .275 + .1, s2 = .4 + .8], s3   evict 1
    q, k = from_weights([[1], [1, 9], [1, 1, 8], [7, 1, 8, 1]])
    assert times_by(ops, q, k, Policy("half", 0, 1, 1, 0.5, "group")) == [[3, 4, N, N]]


def test_lambda(ops):
    # Sinks 0-3 and the two latest stay; after query 6 the oldest other key is 4, and so on.
    q, k = randn(1, 1, 9, 4), randn(1, 1, 9, 4, seed=1)
    assert times_by(ops, q, k, get_policy("lambda", 6)) == [[N, N, N, N, 7, 8, 9, N, N]]


def test_lambda_of_sinks_only(ops):
    # Three sinks, nothing else: every later key serves its own query only.
    q, k = randn(1, 1, 6, 4), randn(1, 1, 6, 4, seed=1)
    assert times_by(ops, q, k, get_policy("lambda", 3)) == [[N, N, N, 4, 5, 6]]


def test_tova_looks_at_the_newest_query_and_spares_no_token(ops):
    # C = 2, recent = 0:
    # t2  weights 3 1 2                 evict 1
    # t3  cached 0 2 3, weights 3 2 1   evict 3, the newest token itself
    # t4  cached 0 2 4, weights 1 1 1   a tie: evict the lowest position, 0
    q, k = from_weights([[1], [1, 1], [3, 1, 2], [3, 9, 2, 1], [1, 9, 1, 9, 1]])
    assert times_by(ops, q, k, get_policy("tova", 2)) == [[5, 3, N, 4, N]]


def test_ties_evict_the_lowest_position(ops):
    # q = 0: every cached key has the same probability at every query.
    q, k = torch.zeros(1, 1, 7, 4), randn(1, 1, 7, 4)
    assert times_by(ops, q, k, get_policy("tova", 3)) == [[4, 5, 6, 7, N, N, N]]


def test_ties_evict_the_lowest_position_wherever_its_slot_is(ops):
    # t2  weights 2 1 3            evict 1; a new key takes its slot
    # t3  cached 0 2 3: 1 3 3      evict 0; and its
    # t4  cached 2 3 4: 1 1 1      a tie of keys that lie in any order: evict 2
    # t5  cached 3 4 5: 1 1 1      evict 3
    q, k = from_weights([[1], [1, 1], [2, 1, 3], [1, 9, 3, 3], [9, 9, 1, 1, 1], [9, 9, 9, 1, 1, 1]])
    assert times_by(ops, q, k, get_policy("tova", 2)) == [[4, 3, 5, 6, N, N]]


def test_first_probability_of_a_key_counts(ops):
    # Two heavy, one recent. After t3 s1 = .1 + .1 + .25 = .45 and s2 = .8 + .25 = 1.05: evict 1.
    # Without own first probabilities s1 = .1 + .25 = .35 and s2 = .25 would evict 2.
    q, k = from_weights([[1], [9, 1], [1, 1, 8], [1, 1, 1, 1]])
    assert times_by(ops, q, k, Policy("p", 0, 1, 2, 1.0, "group")) == [[N, 4, N, N]]


def test_sink_is_spared_whatever_its_score(ops):
    # One of each kind, newest scores only. t3: weights 1 2 3 4: candidates 1 and 2, evict 1.
    q, k = from_weights([[1], [1, 9], [1, 9, 9], [1, 2, 3, 4]])
    assert times_by(ops, q, k, Policy("p", 1, 1, 1, 0.0, "group")) == [[N, 4, N, N]]


A = [[1], [1, 1], [1, 6, 3]]  # alone evicts 0
B = [[1], [1, 1], [6, 1, 3]]  # alone evicts 1; together weights 7 7 6 of 10: evict 2
NEWEST = {p: Policy("newest", 0, 0, 2, 0.0, p) for p in ("group", "layer")}


@pytest.mark.parametrize(
    ("heads", "groups", "pooling", "expected"),
    [
        ([A], 1, "group", [[3, N, N]]),
        ([B], 1, "group", [[N, 3, N]]),
        ([A, B], 1, "group", [[N, N, 3]]),  # MQA: summed over the query heads of the key head
        ([A, B], 2, "group", [[3, N, N], [N, 3, N]]),  # MHA: each its own
        ([A, B, A, A], 2, "group", [[N, N, 3], [3, N, N]]),  # GQA: heads 0 1 and heads 2 3
        ([A, B], 2, "layer", [[N, N, 3]]),  # one index set
        ([A, B, A, A], 2, "layer", [[3, N, N]]),  # weights 9 19 12 of 10
    ],
)
def test_pooling(ops, heads, groups, pooling, expected):
    q, k = from_weights(*heads, groups=groups)
    assert times_by(ops, q, k, NEWEST[pooling]) == expected


def test_heads_that_share_an_index_set_share_its_times():
    q, k = from_weights(A, B, A, A, groups=2)
    assert evicted_at(q, k, NEWEST["layer"]).tolist() == [[[3, N, N], [3, N, N]]]


def test_prompt_is_cut_once_at_its_end(ops):
    # H2O, C = 2, P = 4. Full rows: s = 1.25, .1*0 + .9 + .1 + .5 = 1.5, .8 + .4 = 1.2, .05.
    # After query 3 recent keeps 3 and heavy keeps 1: 0 and 2 go at 4.
    # t4  cached 1 3 4, weights 1 8 1 of 10: [s1 = 1.6, s3 = .85], s4 = .1    evict 3
    # t5  cached 1 4 5, weights 1 8 1 of 10: [s1 = 1.7, s4 = .9], s5 = .1     evict 4
    q, k = from_weights([*H2O_ROWS[:4], [5, 1, 5, 8, 1], [5, 1, 5, 5, 8, 1]])
    assert times_by(ops, q, k, get_policy("h2o", 2), prompt=4) == [[4, N, 4, 5, 6, N]]


# --- properties -----------------------------------------------------------------------------


@pytest.fixture(params=[3, 256], ids=lambda rows: f"block{rows}")
def query_block(request, monkeypatch):
    monkeypatch.setattr(cpu, "QUERY_BLOCK", request.param)


@settings(max_examples=2 * settings.default.max_examples)
@given(cases())
def test_compiled_evictions_equal_the_loop(query_block, case):
    q, k, _ = case.sets
    expected, actual = (
        ops.evict(q, k, case.policy, case.scores, case.prompt) for ops in (reference, cpu)
    )
    assert actual.dtype == torch.int32
    assert_same_evictions(case, expected, actual)


@given(cases())
def test_compiled_bounded_attention_equals_the_loop(query_block, case):
    q, k, v = case.sets
    case = case.but(scores="cached")
    times, out, lse = cpu.bounded_attention(q, k, v, case.policy, case.prompt)
    assert_same_evictions(case, reference.evict(q, k, case.policy, "cached", case.prompt), times)
    # Under the compiled times, whichever way near ties went; queries of the prompt see all.
    expected = reference.sparse_attention(q, k, v, times)
    torch.testing.assert_close((out, lse), expected, **TOLERANCE)


@given(cases(), st.randoms(use_true_random=False))
def test_compiled_sparse_attention_equals_the_mask(case, random):
    """Any times, not only those a policy makes."""
    q, k, v = case.sets
    times = torch.tensor(
        [
            [random.choice([NEVER, random.randint(j + 1, case.length)]) for j in range(case.length)]
            for _ in range(q.shape[0])
        ],
        dtype=torch.int32,
    )
    actual = cpu.sparse_attention(q, k, v, times)
    torch.testing.assert_close(actual, reference.sparse_attention(q, k, v, times), **TOLERANCE)


def test_reference_sparse_attention_is_masked_softmax():
    """Key 0 leaves before query 2: query 2 sees keys 1 and 2 with weights 1 and 3."""
    q, k = from_weights([[1], [1, 1], [7, 1, 3]])
    v = torch.tensor([100.0, 4.0, 8.0]).expand(1, 1, 3).mT[None]
    times = torch.tensor([[2, N, N]], dtype=torch.int32)
    out, lse = reference.sparse_attention(q[:, None], k, v, times)
    torch.testing.assert_close(out.flatten(), torch.tensor([100.0, 52.0, 7.0]))
    torch.testing.assert_close(lse.flatten().exp(), torch.tensor([1.0, 2.0, 4.0]))


@given(cases())
def test_a_policy_fills_its_budget_and_spares_sinks_and_recent(case):
    q, k, _ = case.qkv
    times = evicted_at(q, k, case.policy, case.scores, case.prompt)
    assert times.shape == k.shape[:3]
    position = torch.arange(case.length)
    # What query t sees: everything in the prompt, then the cache and itself.
    seen = visible(times).sum(-1)
    full = position + 1
    bounded = torch.minimum(full, torch.tensor(case.policy.budget + 1))
    assert (seen == torch.where(position < case.prompt, full, bounded)).all()
    kept = (times == NEVER).sum(-1)
    assert (kept == min(case.length, case.policy.budget)).all()
    assert (times[..., : case.policy.sink] == NEVER).all()
    assert (times > position + case.policy.recent).all()


@given(cases(), st.data())
def test_evictions_never_look_ahead(case, data):
    """The times of a prefix are those of the whole, as far as it goes."""
    stop = data.draw(st.integers(max(case.prompt, 1), case.length), label="stop")
    q, k, _ = case.sets
    whole = cpu.evict(q, k, case.policy, case.scores, case.prompt)[:, :stop]
    part = cpu.evict(q[..., :stop, :], k[..., :stop, :], case.policy, case.scores, case.prompt)
    shorter = case.but(length=stop)
    object.__setattr__(shorter, "qkv", tuple(x[:, :, :stop] for x in case.qkv))
    assert_same_evictions(shorter, whole.masked_fill(whole > stop, NEVER), part)


@given(cases(), st.data())
def test_a_prompt_within_the_budget_changes_nothing(case, data):
    case = case.but(prompt=data.draw(st.integers(0, min(case.policy.budget, case.length))))
    q, k, _ = case.sets
    plain, prompted = (cpu.evict(q, k, case.policy, case.scores, p) for p in (0, case.prompt))
    assert_same_evictions(case, plain, prompted)


@given(cases())
def test_public_functions_agree_and_report_when_evictions_start(case):
    q, k, v = case.qkv
    times, out, lse = evict_and_attend(q, k, v, case.policy, prompt=case.prompt)
    assert (out.shape, lse.shape) == (q.shape, q.shape[:3])
    torch.testing.assert_close(times, evicted_at(q, k, case.policy, "cached", case.prompt))
    first, count = evictions_seen(times)
    missed = torch.arange(case.length) + 1 - visible(times).sum(-1)[0, 0]
    expected = [max(0, t - first + count) if t >= first else 0 for t in range(case.length)]
    assert missed.tolist() == expected
    assert (first == case.length) == (count == 0)


def test_long_sequences_cross_query_blocks():
    """The real block of 256 rows, prompt and scan."""
    for scores, prompt in (("full", 0), ("full", 300), ("cached", 300)):
        policy = get_policy("decayed", 17)
        case = Case(policy, 1, 1, 2, 600, 8, prompt, torch.float32, scores, 1.0, 5)
        q, k, _ = case.sets
        expected, actual = (o.evict(q, k, policy, scores, prompt) for o in (reference, cpu))
        assert_same_evictions(case, expected, actual)


def test_near_tie_rule_rejects_a_wrong_eviction():
    """The comparison above must itself be able to fail."""
    case = Case(get_policy("h2o", 2), 1, 1, 1, 5, 5, 0, torch.float32, "cached", 1.0, 0)
    object.__setattr__(case, "qkv", (*from_weights(H2O_ROWS), torch.zeros(1, 1, 5, 5)))
    right = torch.tensor([[4, 3, N, 5, N]])
    assert_same_evictions(case, right, right.clone())
    for wrong in ([3, 4, N, 5, N], [4, 3, 5, N, N], [4, 3, N, N, N], [4, 3, N, N, 5]):
        with pytest.raises(AssertionError):
            assert_same_evictions(case, right, torch.tensor([wrong]))


def test_unknown_scores_suggest_the_nearest():
    q = torch.zeros(1, 1, 2, 2)
    with pytest.raises(ConfigError, match="did you mean 'cached'"):
        evicted_at(q, q, get_policy("h2o", 2), "cache")


def test_uneven_heads_are_refused():
    with pytest.raises(ValueError, match="3 query heads cannot share 2"):
        evicted_at(torch.zeros(1, 3, 4, 2), torch.zeros(1, 2, 4, 2), get_policy("h2o", 2))


@pytest.mark.parametrize("prompt", [-1, 9])
def test_a_prompt_outside_the_sequence_is_refused(prompt: int) -> None:
    q = torch.zeros(1, 2, 8, 4)
    policy = get_policy("h2o", 4)
    with pytest.raises(ConfigError, match="does not lie within 8 tokens"):
        evicted_at(q, q, policy, prompt=prompt)
    with pytest.raises(ConfigError, match="does not lie within 8 tokens"):
        evict_and_attend(q, q, q, policy, prompt=prompt)
