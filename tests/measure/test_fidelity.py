import pytest
import torch
from helpers import randn, visible

from pipeline.eviction import evicted_at
from pipeline.kernels import get_kernel
from pipeline.measure.fidelity import hellinger
from pipeline.ops.times import NEVER
from pipeline.policies import get_policy

HEADS, GROUPS, LENGTH, SIZE = 4, 2, 40, 8

ALL = torch.arange(LENGTH)


def dense(q, k, times, kernel=None):
    """By S x S matrices in float64, from the definition sqrt(1 - sum sqrt(p p'))."""
    rep = q.shape[1] // k.shape[1]
    logits = q.double() @ k.double().repeat_interleave(rep, 1).mT * q.shape[-1] ** -0.5
    causal = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).tril()
    seen = visible(times).repeat_interleave(rep, 1)
    true = logits.masked_fill(~causal, -torch.inf).softmax(-1)
    mass = logits.exp() * seen
    if kernel is not None:
        low_rank = kernel.phi(q).double() @ kernel.psi(k).double().repeat_interleave(rep, 1).mT
        mass = mass + low_rank * (causal & ~seen)
    approximate = mass / mass.sum(-1, keepdim=True)
    return (1 - (true * approximate).sqrt().sum(-1)).clamp(min=0).sqrt().float()


@pytest.fixture(params=["h2o", "lambda", "tova"])
def layer(request):
    q = randn(2, HEADS, LENGTH, SIZE, seed=1, scale=2)
    k = randn(2, GROUPS, LENGTH, SIZE, seed=2)
    return q, k, evicted_at(q, k, get_policy(request.param, 6))


def strong(seed=0):
    kernel = get_kernel("less", num_heads=HEADS, num_kv_heads=GROUPS, head_dim=SIZE,
                        kernel_size=4, hidden_size=16, seed=seed).eval()  # fmt: skip
    with torch.no_grad():
        kernel.s1.fill_(1.0)
        kernel.s2.fill_(0.5)
    return kernel


@torch.no_grad()
@pytest.mark.parametrize("with_kernel", [False, True])
def test_distance_is_the_dense_one(layer, with_kernel):
    kernel = strong() if with_kernel else None
    found = hellinger(*layer, ALL, kernel)
    expected = dense(*layer, kernel)
    assert found.shape == (2, HEADS, LENGTH)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=2e-4)
    assert expected[..., 10:].mean() > 0.1
    assert found.max() <= 1


@torch.no_grad()
def test_some_rows_are_those_of_all(layer):
    rows = torch.tensor([39, 7, 20])
    kernel = strong()
    found = hellinger(*layer, rows, kernel)
    torch.testing.assert_close(found, hellinger(*layer, ALL, kernel)[..., rows])


def test_nothing_evicted_is_no_distance(layer):
    q, k, times = layer
    kept = torch.full_like(times, NEVER)
    assert hellinger(q, k, kept, ALL).max() < 1e-3
    assert hellinger(q, k, kept, ALL, strong()).max() < 1e-3
    assert hellinger(q, k, times, ALL)[..., :6].max() < 1e-3, "rows before the first eviction"


def test_chunks_of_rows_make_no_difference(layer, monkeypatch):
    whole = hellinger(*layer, ALL, strong())
    monkeypatch.setattr("pipeline.measure.fidelity.ROWS", 7)
    torch.testing.assert_close(hellinger(*layer, ALL, strong()), whole)


def test_by_hand():
    """Two keys of equal weight, one evicted: p = (1/2, 1/2), p' = (0, 1), H^2 = 1 - sqrt(1/2)."""
    q, k = torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4)
    times = torch.tensor([[[1, NEVER]]])
    found = hellinger(q, k, times, torch.arange(2))
    assert found[0, 0].tolist() == pytest.approx([0, (1 - 0.5**0.5) ** 0.5], abs=1e-6)


@pytest.mark.parametrize("gap", [5.0, 20.0, 60.0])
def test_attention_on_what_is_gone(gap):
    """The evicted key has nearly all weight: disjoint, a distance of 1, however sharp the row."""
    q = torch.ones(1, 1, 2, 1)
    k = torch.tensor([gap, 0.0]).view(1, 1, 2, 1)
    times = torch.tensor([[[1, NEVER]]])
    found = hellinger(q, k, times, torch.tensor([1])).item()
    assert found == pytest.approx(dense(q, k, times)[0, 0, 1].item(), abs=1e-4)


@pytest.mark.parametrize("shift", [0.0, -9.0, 9.0])
def test_logits_do_not_overflow(shift):
    """All far above 0, all far below, or both."""
    q = torch.full((1, 1, 3, 1), 100.0)
    k = torch.tensor([9.0, 8.0, -9.0]).view(1, 1, 3, 1) + 2 * shift
    times = torch.tensor([[[1, NEVER, NEVER]]])
    kernel = get_kernel("less", num_heads=1, num_kv_heads=1, head_dim=1, kernel_size=2,
                        hidden_size=4).eval()  # fmt: skip
    for chosen in (None, kernel):
        found = hellinger(q, k, times, torch.arange(3), chosen)
        assert found.isfinite().all()
        assert (found <= 1).all()
