"""Attention maps, and the spectrum of what is left out."""

import pytest
import torch
from helpers import randn, visible
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.__main__ import main
from pipeline.eviction import evicted_at
from pipeline.kernels import get_kernel
from pipeline.measure.fidelity import attention_rows, residual_spectrum
from pipeline.policies import get_policy
from pipeline.storage.files import load_table
from pipeline.storage.tensors import load_tensors, save_tensors
from pipeline.training.checkpoint import save_kernels
from pipeline.transformer.shape import Heads

HEADS, GROUPS, LENGTH, SIZE = 4, 2, 40, 8


@pytest.fixture(params=["h2o", "lambda", "tova"])
def layer(request):
    q = randn(2, HEADS, LENGTH, SIZE, seed=1, scale=2)
    k = randn(2, GROUPS, LENGTH, SIZE, seed=2)
    return q, k, evicted_at(q, k, get_policy(request.param, 6))


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
