import pytest
import torch
from helpers import cases, dense_synthesis, randn, strong_kernel, visible
from hypothesis import given
from hypothesis import strategies as st

from pipeline.eviction import evict_and_attend, evicted_at
from pipeline.kernels import get_kernel
from pipeline.ops.low_rank import LowRankState, linear_attention, merge
from pipeline.ops.reference import sequence as reference
from pipeline.ops.times import NEVER, EvictedOrder
from pipeline.synthesis import correct, low_rank_part, sparse_part, synthesize

TOLERANCE = {"rtol": 2e-4, "atol": 2e-4}


def times_of(case):
    q, k, _ = case.qkv
    return evicted_at(q, k, case.policy, case.scores, case.prompt)


# --- masks and re-ordered linear form ---------------------------------------------------------


@given(cases(), st.sampled_from(["less", "performer", None]))
def test_synthesis_equals_the_masked_form(case, name):
    q, k, v = case.qkv
    kernel = {
        "less": lambda: strong_kernel(case),
        "performer": lambda: get_kernel(
            "performer", num_heads=q.shape[1], num_kv_heads=k.shape[1], head_dim=case.size
        ),
        None: lambda: None,
    }[name]()
    with torch.no_grad():
        out = synthesize(q, k, v, times_of(case), kernel)
        expected = dense_synthesis(q, k, v, times_of(case), kernel)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), expected, **TOLERANCE)


def gradients(kernel, out, toward):
    """Of a squared error, by parameter name."""
    kernel.zero_grad()
    (out - toward).square().sum().backward()
    return {name: p.grad.clone() for name, p in kernel.named_parameters()}


@given(cases(dtypes=[torch.float32]))
def test_gradients_equal_those_of_the_masked_form(case):
    q, k, v = case.qkv
    times, kernel = times_of(case), strong_kernel(case)
    if EvictedOrder.of(times).index.shape[-1] == 0:
        assert synthesize(q, k, v, times, kernel).grad_fn is None
        return
    toward = randn(*q.shape, seed=case.seed + 3)
    expected = gradients(kernel, dense_synthesis(q, k, v, times, kernel), toward.double())
    actual = gradients(kernel, synthesize(q, k, v, times, kernel), toward)
    assert set(actual) == {"phi_w1", "phi_w2", "psi_w1", "psi_w2", "psi_w3", "s1", "s2"}
    for name, gradient in expected.items():
        largest = gradient.abs().max().item()
        torch.testing.assert_close(actual[name], gradient, rtol=1e-3, atol=1e-3 * largest + 1e-6)


@given(cases())
def test_correcting_a_sparse_output_is_synthesis(case):
    q, k, v = case.qkv
    times, out, lse = evict_and_attend(q, k, v, case.policy, prompt=case.prompt)
    kernel = strong_kernel(case)
    with torch.no_grad():
        torch.testing.assert_close(
            correct(q, k, v, times, kernel, out, lse),
            synthesize(q, k, v, times, kernel),
            **TOLERANCE,
        )


# --- single-step form -------------------------------------------------------------------------


def step_by_step(q, k, v, times, kernel):
    """What a cache does: read the memory, attend, join; then absorb what this step evicts."""
    batch, groups, length, size = k.shape
    rep = q.shape[1] // groups
    state = LowRankState.zeros(batch, groups, kernel.kernel_size, size)
    rows = []
    for t in range(length):
        query = q[:, :, t : t + 1].float()
        seen = visible(times)[:, :, t].repeat_interleave(rep, 1)
        keys, values = (x.float().repeat_interleave(rep, 1) for x in (k, v))
        logits = (query @ keys.mT * size**-0.5).masked_fill(~seen[:, :, None], -torch.inf)
        row, lse = logits.softmax(-1) @ values, logits.logsumexp(-1)
        if (times <= t).any():
            row = merge(row, lse, *state.read(kernel.phi(query)))
        rows.append(row)
        leaving = times == t + 1
        if leaving.any():  # as many of every head
            pick = leaving.nonzero()[:, 2].view(batch, groups, -1, 1).expand(-1, -1, -1, size)
            state.absorb(kernel.psi(k.gather(2, pick)), v.gather(2, pick))
    return torch.cat(rows, 2), state


@given(cases())
def test_single_step_form_equals_the_parallel_form(case):
    """Prompts too: the one cut at their end enters the memory at once."""
    q, k, v = case.qkv
    times, kernel = times_of(case), strong_kernel(case)
    with torch.no_grad():
        stepped, state = step_by_step(q, k, v, times, kernel)
        torch.testing.assert_close(synthesize(q, k, v, times, kernel), stepped, **TOLERANCE)
        gone = (times < NEVER)[..., None]
        psi = kernel.psi(k) * gone
    torch.testing.assert_close(state.z, psi.sum(2), **TOLERANCE)
    torch.testing.assert_close(state.H, psi.mT @ v.float(), **TOLERANCE)


def test_memory_is_absorbed_piecewise_as_at_once():
    psi, v = randn(2, 3, 7, 4).abs(), randn(2, 3, 7, 5, seed=1)
    once, twice = LowRankState.zeros(2, 3, 4, 5), LowRankState.zeros(2, 3, 4, 5)
    once.absorb(psi, v)
    twice.absorb(psi[:, :, :3], v[:, :, :3])
    twice.absorb(psi[:, :, 3:], v[:, :, 3:])
    torch.testing.assert_close(once.H, twice.H)
    torch.testing.assert_close(once.z, twice.z)
    # One query head, by hand: numerator sum_j (phi psi_j) v_j.
    phi = randn(2, 6, 1, 4, seed=2).abs()
    numerator, denominator = once.read(phi)
    weights = phi[0, 3, 0] @ psi[0, 1].mT  # query head 3 reads key head 1 of 3
    torch.testing.assert_close(numerator[0, 3, 0], weights @ v[0, 1])
    torch.testing.assert_close(denominator[0, 3, 0], weights.sum())


# --- linear attention and merge ---------------------------------------------------------------


@given(
    heads=st.sampled_from([(1, 1), (2, 1), (2, 3)]),
    length=st.integers(1, 70),
    chunk=st.sampled_from([1, 2, 7, 64, 100]),
    seed=st.integers(0, 1000),
)
def test_linear_attention_does_not_depend_on_its_chunks(heads, length, chunk, seed):
    groups, rep = heads
    phi = randn(2, groups * rep, length, 4, seed=seed).abs()
    psi = randn(2, groups, length, 4, seed=seed + 1).abs()
    v = randn(2, groups, length, 3, seed=seed + 2)
    weights = (phi @ psi.repeat_interleave(rep, 1).mT).tril()
    expected = weights @ v.repeat_interleave(rep, 1), weights.sum(-1)
    torch.testing.assert_close(linear_attention(phi, psi, v, chunk), expected, **TOLERANCE)
    torch.testing.assert_close(linear_attention(phi, psi, v), expected, **TOLERANCE)


@given(
    heads=st.sampled_from([(1, 1), (2, 1), (2, 3)]),
    length=st.integers(1, 9),
    stride=st.integers(1, 5),
    initial=st.integers(0, 4),
    seed=st.integers(0, 1000),
)
def test_every_so_many_th_query_gives_what_all_give(heads, length, stride, initial, seed):
    groups, rep = heads
    every = (length - 1) * stride + 1
    phi = randn(2, groups * rep, every, 4, seed=seed).abs()
    psi = randn(2, groups, initial + every, 4, seed=seed + 1).abs()
    v = randn(2, groups, initial + every, 3, seed=seed + 2)
    expected = tuple(x[:, :, ::stride] for x in low_rank_part(phi, psi, v, initial))
    some = low_rank_part(phi[:, :, ::stride], psi, v, initial, stride)
    torch.testing.assert_close(some, expected, **TOLERANCE)


@pytest.mark.parametrize("initial", [0, 1, 5])
def test_low_rank_part_starts_from_what_was_cut_at_once(initial):
    phi = randn(1, 4, 6, 3).abs()
    psi, v = randn(1, 2, initial + 6, 3, seed=1).abs(), randn(1, 2, initial + 6, 5, seed=2)
    weights = (phi @ psi.repeat_interleave(2, 1).mT).tril(initial)
    expected = weights @ v.repeat_interleave(2, 1), weights.sum(-1)
    torch.testing.assert_close(low_rank_part(phi, psi, v, initial), expected)


def test_merge_by_hand():
    # Cached weights 3 of mean 10; memory adds 4 to the numerator and 1 to the denominator.
    out = merge(torch.tensor([10.0]), torch.tensor(3.0).log(), torch.tensor([4.0]), torch.ones(()))
    torch.testing.assert_close(out, torch.tensor([34 / 4]))


@pytest.mark.parametrize("lse", [-200.0, 0.0, 200.0, 5000.0])
def test_merge_survives_any_logit_and_an_empty_memory(lse):
    sparse = torch.tensor([1.5, -2.0])
    empty = merge(sparse, torch.tensor(lse), torch.zeros(2), torch.zeros(()))
    full = merge(sparse, torch.tensor(lse), torch.tensor([8.0, 8.0]), torch.tensor(2.0))
    assert full.isfinite().all()
    assert torch.equal(empty, sparse)
    torch.testing.assert_close(full, sparse if lse > 100 else full)
    if lse < -100:
        torch.testing.assert_close(full, torch.tensor([4.0, 4.0]))


# --- order and shapes -------------------------------------------------------------------------


def test_evicted_order_by_hand():
    # Prompt 4 cut to 2 (keys 0 and 2 at 4), then one a query, the last after the last query.
    times = torch.tensor([[[4, NEVER, 4, 5, 6, NEVER]]])
    order = EvictedOrder.of(times)
    assert (order.first, order.initial, order.index.tolist()) == (4, 1, [[[0, 2, 3]]])
    # No prompt: key 1 leaves after query 2; the eviction after the last query is not needed.
    order = EvictedOrder.of(torch.tensor([[[4, 3, NEVER, 5, NEVER]]]))
    assert (order.first, order.initial, order.index.tolist()) == (3, 0, [[[1, 0]]])


def test_nothing_evicted_is_plain_attention():
    q, k, v = randn(1, 4, 9, 8), randn(1, 2, 9, 8, seed=1), randn(1, 2, 9, 8, seed=2)
    times = torch.full((1, 2, 9), NEVER, dtype=torch.int32)
    full = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, is_causal=True, enable_gqa=True
    )
    kernel = get_kernel("performer", num_heads=4, num_kv_heads=2, head_dim=8)
    torch.testing.assert_close(synthesize(q, k, v, times, kernel), full)


def test_queries_match_keys():
    """One head's rows would pass for another's where the numbers happen to fit."""
    k = randn(1, 1, 8, 8)
    with pytest.raises(ValueError, match="4 queries do not match 8 keys"):
        synthesize(randn(1, 2, 4, 8), k, k, torch.full((1, 1, 8), NEVER, dtype=torch.int32))


@given(cases())
def test_sparse_part_is_the_reference_per_head(case):
    q, k, v = case.qkv
    times = times_of(case)
    out, lse = sparse_part(q, k, v, times)
    for b in range(case.batch):
        for h in range(q.shape[1]):
            g = h // case.rep
            expected = reference.sparse_attention(
                q[b, h][None, None, None], k[b, g][None, None], v[b, g][None, None],
                times[b, g][None],
            )  # fmt: skip
            torch.testing.assert_close(out[b, h], expected[0][0, 0, 0], **TOLERANCE)
            torch.testing.assert_close(lse[b, h], expected[1][0, 0, 0], **TOLERANCE)
