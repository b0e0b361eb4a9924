"""The decode loop against the library's `generate`."""

from unittest import mock

import pytest
import torch

from pipeline.cache import LessCache
from pipeline.decoding import full_cache
from pipeline.decoding.engine import Engine
from pipeline.decoding.full_cache import FullCache
from pipeline.errors import ConfigError
from pipeline.kernels import get_kernel
from pipeline.policies import get_policy
from pipeline.transformer.interface import enable
from pipeline.transformer.shape import model_shape
from pipeline.transformer.weights import load_model

SHAPES = {
    "llama": {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48},
    "falcon": {"num_attention_heads": 4, "alibi": False, "bias": False},
}


def make_model(architecture="llama", device="cpu"):
    fields = {"hidden_size": 32, "num_hidden_layers": 2, **SHAPES[architecture]}
    return enable(load_model({"random": {"architecture": architecture, **fields}}, device=device))


def make_kernels(model):
    shape = model_shape(model.config)
    kernels = []
    for seed in range(shape.num_layers):
        kernel = get_kernel(
            "less", num_heads=shape.num_heads, num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim, kernel_size=4, hidden_size=8, seed=seed,
        )  # fmt: skip
        torch.nn.init.ones_(kernel.s1)
        torch.nn.init.ones_(kernel.s2)
        kernels.append(kernel.to(model.device))
    return kernels


def make_cache(model, method, room=64):
    if method == "full":
        return FullCache(model.config, room, model.device)
    kernels = make_kernels(model) if method == "less" else None
    return LessCache(model.config, get_policy("h2o", 8), kernels)


def prompt_of(model, length=20, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, model.config.vocab_size, (batch, length), generator=generator)


def generated(model, method, prompt, new_tokens):
    """What the library's `generate` gives with the same cache, or its own full one."""
    cache = None if method == "full" else make_cache(model, method)
    whole = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), past_key_values=cache,
        max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False,
    )  # fmt: skip
    return whole[:, prompt.shape[1] :]


@pytest.mark.parametrize("architecture", SHAPES)
@pytest.mark.parametrize("method", ["full", "baseline", "less"])
def test_greedy_equals_generate(architecture, method):
    model = make_model(architecture)
    engine = Engine(model, make_cache(model, method), batch=2)
    for seed in (0, 1):  # the second prompt finds the tensors of the first
        prompt = prompt_of(model, seed=seed)
        assert torch.equal(engine.generate(prompt, 30), generated(model, method, prompt, 30))
        assert min(engine.seconds) > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("architecture", SHAPES)
@pytest.mark.parametrize("method", ["full", "baseline", "less"])
def test_replayed_graphs_equal_generate(monkeypatch, architecture, method):
    """Every step is a replay, and the second prompt finds the graphs of the first."""
    monkeypatch.setattr(full_cache, "BUCKET", 32)  # the full cache goes from one graph to the next
    model = make_model(architecture, "cuda")
    loop = Engine(model, make_cache(model, method), batch=2)
    loop.warm_up(prompt_of(model, seed=5).cuda(), 30)
    assert len(loop.graphs) == (2 if method == "full" else 1)
    monkeypatch.setattr(loop, "_step", None)
    for seed in (0, 1):
        prompt = prompt_of(model, seed=seed).cuda()
        assert torch.equal(loop.generate(prompt, 30), generated(model, method, prompt, 30))


@pytest.mark.parametrize("method", ["full", "less"])
def test_steps_equal_a_forward_pass_without_the_loop(method):
    """A full cache read under the mask of a GPU's buckets gives what it gives without."""
    model = make_model()
    prompt = prompt_of(model)
    plain = Engine(model, make_cache(model, method), batch=2).generate(prompt, 12)
    cache = make_cache(model, method)
    if method == "full":
        cache.masked = True
        cache.plan = lambda length: setattr(cache, "reads", 64)
    assert torch.equal(Engine(model, cache, batch=2).generate(prompt, 12), plain)


@pytest.mark.parametrize("method", ["full", "less"])
def test_a_prompt_of_one_token(method):
    model = make_model()
    loop = Engine(model, make_cache(model, method), batch=2)
    loop.generate(prompt_of(model), 5)  # what it held before is not seen
    prompt = prompt_of(model, length=1)
    assert torch.equal(loop.generate(prompt, 12), generated(model, method, prompt, 12))


def test_reading_begins_anew_after_a_failure(monkeypatch):
    model = make_model()
    loop, prompt = Engine(model, make_cache(model, "full"), batch=2), prompt_of(model)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "sample", mock.Mock(side_effect=RuntimeError("out of memory")))
        with pytest.raises(RuntimeError, match="out of memory"):
            loop.read(prompt_of(model, length=9))
    assert torch.equal(loop.generate(prompt, 12), generated(model, "full", prompt, 12))


def test_a_full_cache_fills_a_sliding_window():
    fields = {"hidden_size": 32, "num_hidden_layers": 2, **SHAPES["llama"], "sliding_window": 24}
    model = enable(load_model({"random": {"architecture": "mistral", **fields}}))
    loop, prompt = Engine(model, make_cache(model, "full"), batch=2), prompt_of(model)
    assert torch.equal(loop.generate(prompt, 5), generated(model, "full", prompt, 5))
    with pytest.raises(ConfigError, match="sliding window of 24"):
        loop.generate(prompt, 6)


def test_a_second_prompt_is_refused():
    model = make_model()
    cache = make_cache(model, "full")
    model(prompt_of(model), past_key_values=cache)
    with pytest.raises(ConfigError, match=r"already read a prompt \(20 tokens\)"):
        model(prompt_of(model), past_key_values=cache)


def test_warming_up_leaves_no_trace():
    model = make_model()
    prompt = prompt_of(model)
    engine = Engine(model, make_cache(model, "less"), batch=2)
    engine.warm_up(prompt_of(model, seed=5), 10)
    fresh = Engine(model, make_cache(model, "less"), batch=2)
    assert torch.equal(engine.generate(prompt, 20), fresh.generate(prompt, 20))


def test_sampling_follows_the_logits():
    model = make_model()
    engine = Engine(model, make_cache(model, "full"), batch=2000, temperature=0.5)
    torch.manual_seed(0)
    logits = torch.tensor([0.0, 0.5, 1.0]).expand(2000, 1, 3)
    share = torch.bincount(engine.sample(logits)[:, 0], minlength=3) / 2000
    torch.testing.assert_close(share, (logits[0, 0] / 0.5).softmax(-1), rtol=0, atol=0.04)


def test_a_full_cache_says_when_it_is_full():
    model = make_model()
    with pytest.raises(ConfigError, match="room for 22 tokens"):
        Engine(model, make_cache(model, "full", room=22), batch=2).generate(prompt_of(model), 5)
