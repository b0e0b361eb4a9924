import pytest
import torch
from helpers import randn, visible
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.__main__ import main
from pipeline.eviction import evicted_at
from pipeline.kernels import get_kernel
from pipeline.measure.fidelity import attention_rows, hellinger, residual_spectrum
from pipeline.ops.times import NEVER
from pipeline.policies import get_policy
from pipeline.storage.files import load_table
from pipeline.storage.tensors import load_tensors, save_tensors
from pipeline.training.checkpoint import save_kernels
from pipeline.transformer.shape import Heads

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


# --- attention maps and spectra ----------------------------------------------------------------


def test_attention_rows_sum_to_one_and_hide_what_is_evicted():
    q, k = randn(1, 4, 40, 8), randn(1, 2, 40, 8)
    times = evicted_at(q, k, get_policy("h2o", 8), "cached")
    rows = torch.arange(40)
    kernel = get_kernel("performer", num_heads=4, num_kv_heads=2, head_dim=8, kernel_size=4)
    seen = visible(times)[0][:, None]
    for each in (None, kernel):
        true, near = (
            torch.cat(x, 3) for x in zip(*attention_rows(q, k, times, rows, each), strict=True)
        )
        for x in (true, near):
            torch.testing.assert_close(x.sum(-1), torch.ones(1, 2, 2, 40))
        hidden = near[0].masked_fill(seen, 0).sum()
        assert (hidden == 0) if each is None else (hidden > 0)


def test_spectrum_of_the_residual_predicts_every_correction():
    q, k, v = (randn(30, 6, seed=seed) for seed in (1, 2, 3))
    values, left, error = residual_spectrum(q, k, v, 4)
    logits = (q @ k.T / 6**0.5).masked_fill(torch.ones(30, 30).triu(1).bool(), -torch.inf)
    full = logits.softmax(-1) @ v
    top = logits.topk(4).values[:, -1:]
    sparse = logits.masked_fill(logits < top, -torch.inf).softmax(-1) @ v
    u, s, w = torch.linalg.svd(full - sparse, full_matrices=False)
    for rank in (0, 1, 3, 6):
        corrected = sparse + u[:, :rank] @ torch.diag(s[:rank]) @ w[:rank]
        expected = (full - corrected).norm() / full.norm()
        torch.testing.assert_close(error[rank], expected, atol=1e-5, rtol=1e-4)
    assert values[0] == 1
    assert values.shape == left.shape == (6,)


def test_maps_step_writes_every_head_under_every_policy(tmp_path):
    folder, out = tmp_path / "model", tmp_path / "maps.safetensors"
    config = LlamaConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=64,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    heads = Heads(4, 2, 8)
    sizes = {"kernel_size": 4, "hidden_size": 8, "dropout": 0.0}
    kernels = {layer: get_kernel("less", **vars(heads), **sizes, seed=layer) for layer in range(2)}
    save_kernels(tmp_path / "k.safetensors", kernels, "less", heads, sizes)
    tokens = torch.randint(0, 64, (2, 40), dtype=torch.int32)
    save_tensors(tmp_path / "s.safetensors", {"tokens": tokens}, "samples", documents=["a", "b"])
    words = ["--model", str(folder), "--samples", str(tmp_path / "s.safetensors"), "--budget", "8"]
    words += ["--policies", "h2o", "lambda"]
    words += ["--out", str(out), "--spectrum", str(tmp_path / "spectrum.parquet")]
    kernels = [str(tmp_path / "k.safetensors")] * 2
    assert main(["maps", *words, "--heads", "0:1", "1:0", "--kernels", *kernels]) == 0
    maps, header = load_tensors(out, "attention maps")
    kinds = ("full", "h2o", "h2o+less", "lambda", "lambda+less")
    assert set(maps) == {f"{head}.{kind}" for head in ("l0.h1", "l1.h0") for kind in kinds}
    assert header["document"] == "a"
    assert header["tokens"] == 40
    spectrum = load_table(tmp_path / "spectrum.parquet")
    assert set(spectrum["kind"]) == {"full", "residual", "recovered"}
    assert main(["maps", *words, "--heads", "0:1"]) == 0
    bare = {f"l0.h1.{kind}" for kind in ("full", "h2o", "lambda")}
    assert set(load_tensors(out, "attention maps")[0]) == bare
    assert main(["maps", *words, "--heads", "0:1", "--kernels", kernels[0]]) == 1
    assert main(["maps", *words, "--heads", "9:0"]) == 1
