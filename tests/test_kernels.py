import inspect
import math

import pytest
import torch
from helpers import randn
from torch.nn import functional as F

from pipeline.errors import ConfigError
from pipeline.eviction import evicted_at
from pipeline.kernels import KERNELS, SCALAR_INIT, Dropout, LessKernel, _TwoLayers, get_kernel
from pipeline.policies import get_policy
from pipeline.synthesis import synthesize

SHAPE = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8}


def less(**options):
    return get_kernel("less", **{**SHAPE, "kernel_size": 4, "hidden_size": 16, **options})


@pytest.mark.parametrize(
    ("heads", "kv_heads", "size", "parameters"),
    [(32, 32, 128, 4_459_008), (71, 1, 64, 2_654_288)],
    ids=["llama-2-7b", "falcon-7b"],
)
def test_parameter_counts_of_the_paper(heads, kv_heads, size, parameters):
    """4.46 M and 2.65 M a layer; 142.7 M for Llama 2 7B's 32 layers."""
    kernel = get_kernel("less", num_heads=heads, num_kv_heads=kv_heads, head_dim=size)
    assert sum(p.numel() for p in kernel.parameters()) == parameters
    assert all(p.dtype == torch.float32 for p in kernel.parameters())


@pytest.mark.parametrize("name", sorted(KERNELS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_features_are_float32_non_negative_and_of_the_right_shape(name, dtype):
    kernel = get_kernel(name, **SHAPE, kernel_size=6, hidden_size=16).eval()
    phi = kernel.phi(randn(2, 4, 5, 8, dtype=dtype, scale=3))
    psi = kernel.psi(randn(2, 2, 5, 8, dtype=dtype, scale=3))
    assert (phi.shape, psi.shape) == ((2, 4, 5, 6), (2, 2, 5, 6))
    assert phi.dtype == psi.dtype == torch.float32
    assert (phi >= 0).all()
    assert (psi >= 0).all()
    assert (phi > 0).any()
    assert (psi > 0).any()


def test_features_are_the_formulas_head_by_head():
    kernel = less().eval()
    with torch.no_grad():
        kernel.s1.copy_(randn(2, 4, seed=1))
        kernel.s2.copy_(randn(2, 4, seed=2))
    q, k = randn(2, 4, 5, 8, seed=3), randn(2, 2, 5, 8, seed=4)
    phi, psi = kernel.phi(q), kernel.psi(k)
    for b in range(2):
        for h in range(4):
            expected = F.gelu(F.gelu(q[b, h] @ kernel.phi_w1[h]) @ kernel.phi_w2[h]).abs()
            torch.testing.assert_close(phi[b, h], expected)
        for g in range(2):
            u = kernel.s1[g].abs() * F.gelu(F.gelu(k[b, g] @ kernel.psi_w1[g]) @ kernel.psi_w2[g])
            expected = (u + (u @ kernel.psi_w3[g]) * kernel.s2[g]).abs()
            torch.testing.assert_close(psi[b, g], expected)


def test_weights_start_xavier_uniform_and_scalars_at_1e_4():
    kernel = get_kernel("less", num_heads=8, num_kv_heads=8, head_dim=64, hidden_size=256)
    for name, fan_in, fan_out in [
        ("phi_w1", 64, 256), ("phi_w2", 256, 8), ("psi_w1", 64, 256), ("psi_w2", 256, 8),
        ("psi_w3", 8, 8),
    ]:  # fmt: skip
        weights = kernel.get_parameter(name)
        bound = math.sqrt(6 / (fan_in + fan_out))
        assert weights.abs().max() <= bound
        assert weights.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    assert (kernel.s1 == SCALAR_INIT).all()
    assert (kernel.s2 == SCALAR_INIT).all()
    assert SCALAR_INIT == 1e-4


def test_untrained_kernel_leaves_the_sparse_policy_almost_as_it_is():
    q, k, v = randn(1, 4, 40, 8), randn(1, 2, 40, 8, seed=1), randn(1, 2, 40, 8, seed=2)
    times = evicted_at(q, k, get_policy("h2o", 8))
    sparse, out = (synthesize(q, k, v, times, kernel) for kernel in (None, less().eval()))
    assert not torch.equal(out, sparse)
    torch.testing.assert_close(out, sparse, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_initial_weights_are_a_function_of_the_seed(name):
    def state(seed):
        torch.manual_seed(torch.seed())  # the global generator plays no part
        return get_kernel(name, **SHAPE, seed=seed).state_dict()

    first, again, other = state(3), state(3), state(4)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_half_precision_products_stay_close(name):
    exact, quick = (
        get_kernel(name, **SHAPE, compute_dtype=dtype).eval()
        for dtype in (torch.float32, torch.bfloat16)
    )
    q, k = randn(1, 4, 9, 8), randn(1, 2, 9, 8, seed=1)
    torch.testing.assert_close(quick.phi(q), exact.phi(q), rtol=0.05, atol=0.05)
    torch.testing.assert_close(quick.psi(k), exact.psi(k), rtol=0.05, atol=0.05)
    assert all(p.dtype == torch.float32 for p in quick.parameters())


# --- dropout ---------------------------------------------------------------------------------


def mask(drop, count=64):
    """The next mask of ``count`` units."""
    keep, _ = drop.draw((count,), torch.device("cpu"))
    return keep


@pytest.mark.parametrize("p", [0.1, 0.3, 0.75])
def test_dropout_keeps_the_expectation(p):
    drop = Dropout(p).train()
    drop.reseed(1)
    keep, scale = drop.draw((1000, 401), torch.device("cpu"))
    assert keep.shape == (1000, 401)
    assert keep.unique().tolist() == [0, 1]
    kept = keep.float().mean().item()
    assert 1 - kept == pytest.approx(p, abs=1 / 512 + 0.003)  # p is rounded to 1/256
    assert kept * scale == pytest.approx(1, abs=0.01)


def test_dropout_masks_follow_the_seed():
    drop = Dropout(0.5).train()

    def draw(seed):
        drop.reseed(seed)
        return [mask(drop) for _ in range(3)]

    first, again, other = draw(1), draw(1), draw(2)
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other[0])


def test_dropout_resumed_from_its_seed_draws_the_same():
    whole, resumed = Dropout(0.5).train(), Dropout(0.5).train()
    drawn = [mask(whole) for _ in range(6)]
    for _ in range(3):
        mask(resumed)
    fresh = Dropout(0.5).train()
    fresh.reseed(resumed.seed)
    assert all(map(torch.equal, drawn[3:], [mask(fresh) for _ in range(3)]))


def test_dropout_acts_in_training_mode_only():
    assert mask(Dropout(0.5).eval()) is None
    assert mask(Dropout(0.0).train()) is None
    kernel, q = less(dropout=0.5), randn(1, 4, 5, 8)
    assert not torch.equal(kernel.train().phi(q), kernel.eval().phi(q))
    assert torch.equal(kernel.phi(q), kernel.phi(q))


def test_dropout_sits_before_the_first_gelu():
    """Where everything is dropped, gelu(0) = 0 and so are the features; where half is, phi is that
    of the masked and scaled hidden units."""
    kernel, q = less(dropout=0.5).train(), randn(1, 4, 5, 8)
    kernel.dropout.draw = lambda shape, device: (torch.zeros(shape, dtype=torch.uint8), 1.0)
    assert (kernel.phi(q) == 0).all()
    keep = torch.arange(4 * 5 * kernel.phi_w1.shape[-1]).view(4, 5, -1).remainder(2).byte()
    kernel.dropout.draw = lambda shape, device: (keep, 2.0)
    hidden = F.gelu(q[0] @ kernel.phi_w1 * keep * 2.0)
    torch.testing.assert_close(kernel.phi(q)[0], F.gelu(hidden @ kernel.phi_w2).abs())


@pytest.mark.parametrize("dropped", [False, True])
def test_gradients_of_the_two_layers_are_those_of_autograd(dropped):
    generator = torch.Generator().manual_seed(0)
    x, w1, w2 = (
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((3, 5, 4), (3, 4, 6), (3, 6, 2))
    )
    keep = (torch.rand(3, 5, 6, generator=generator) < 0.6).to(torch.uint8) if dropped else None
    assert torch.autograd.gradcheck(_TwoLayers.apply, (x, w1, w2, keep))


# --- performer -------------------------------------------------------------------------------


def test_performer_is_an_unbiased_estimate_of_the_exponential():
    """One feature has relative variance exp(|q' + k'|^2) - 1 with x' = x / d^(1/4)."""
    q, k = randn(1, 1, 4, 16, scale=0.5), randn(1, 1, 4, 16, seed=1, scale=0.5)
    features = 200_000
    kernel = get_kernel("performer", num_heads=1, num_kv_heads=1, head_dim=16, kernel_size=features)
    exact = (q @ k.mT / 4).exp()
    error = (kernel.phi(q) @ kernel.psi(k).mT / exact - 1).abs()
    norm = (q[:, :, :, None] + k[:, :, None]).square().sum(-1) / 4
    deviation = (norm.exp() - 1).sqrt() / features**0.5
    assert deviation.max() < 0.02  # or the test would say nothing
    assert (error < 5 * deviation).all()


def test_performer_of_few_features_is_unbiased_over_seeds():
    q, k = randn(1, 1, 1, 4), randn(1, 1, 1, 4, seed=1)
    estimates = []
    for seed in range(2000):
        kernel = get_kernel(
            "performer", num_heads=1, num_kv_heads=1, head_dim=4, kernel_size=8, seed=seed
        )
        estimates.append((kernel.phi(q) * kernel.psi(k)).sum())
    estimates = torch.stack(estimates)
    error = estimates.mean() - (q * k / 2).sum().exp()
    assert error.abs() < 4 * estimates.std() / math.sqrt(len(estimates))


def test_performer_never_overflows_nor_trains():
    kernel = get_kernel("performer", **SHAPE)
    assert not list(kernel.parameters())
    assert kernel.phi(randn(1, 4, 50, 8, scale=1e3)).isfinite().all()
    assert "w" in kernel.state_dict()


# --- registry --------------------------------------------------------------------------------


def test_unknown_kernel_suggests_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown kernel 'preformer'; did you mean 'performer'"):
        get_kernel("preformer", **SHAPE)


def test_defaults_are_the_papers_wherever_a_kernel_is_built():
    for built in (get_kernel, LessKernel):
        defaults = {k: p.default for k, p in inspect.signature(built).parameters.items()}
        wanted = {"kernel_size": 8, "hidden_size": 512, "dropout": 0.3, "seed": 0}
        assert {key: defaults[key] for key in wanted} == wanted
