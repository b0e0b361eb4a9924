import copy
import gc
from unittest import mock

import numba
import psutil
import pytest
import torch
from helpers import Case, assert_same_evictions, cases, randn, strong_kernel
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    DynamicCache,
    FalconConfig,
    FalconForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    StaticCache,
)

from pipeline import cache as cache_module
from pipeline.attention import attach
from pipeline.cache import LessCache, LessLayer
from pipeline.decoding.memory import expected_memory, full_cache_bytes
from pipeline.errors import ConfigError
from pipeline.eviction import evict_and_attend
from pipeline.kernels import get_kernel
from pipeline.ops.cpu import decode as decode_cpu
from pipeline.ops.cpu import maps as cpu_maps
from pipeline.ops.packed import pack
from pipeline.ops.reference import decode as decode_reference
from pipeline.ops.times import NEVER
from pipeline.policies import get_policy
from pipeline.synthesis import correct
from pipeline.transformer.interface import enable, handled
from pipeline.transformer.shape import model_shape
from pipeline.transformer.weights import load_model, load_tokenizer

SMALL = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 256,
}  # fmt: skip
MODELS = {
    "llama_mha": (LlamaForCausalLM, LlamaConfig, {}),
    "llama_gqa": (LlamaForCausalLM, LlamaConfig, {"num_key_value_heads": 2}),
    "llama_mqa": (LlamaForCausalLM, LlamaConfig, {"num_key_value_heads": 1}),
    "mistral": (MistralForCausalLM, MistralConfig, {"num_key_value_heads": 2}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"num_key_value_heads": 2}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"num_key_value_heads": 2, "head_dim": 12}),
    "gpt_neox": (GPTNeoXForCausalLM, GPTNeoXConfig, {}),
    "falcon": (FalconForCausalLM, FalconConfig, {"multi_query": True, "alibi": False}),
    "falcon_new": (
        FalconForCausalLM, FalconConfig,
        {"new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False},
    ),
}  # fmt: skip
POLICIES = [get_policy("h2o", 6), get_policy("lambda", 6), get_policy("tova", 6)]
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def make_model(name="llama_gqa", dtype=torch.float32, **changes):
    model_class, config_class, options = MODELS[name]
    torch.manual_seed(0)
    config = config_class(**{**SMALL, **options, **changes})
    # Weights large enough that attention is far from uniform.
    config.initializer_range = 0.3
    return model_class(config).to(dtype).eval()


def make_kernels(config, **options):
    shape = model_shape(config)
    groups = shape.num_kv_heads
    rep = shape.num_heads // groups
    case = Case(None, 1, groups, rep, 1, shape.head_dim, 0, None, "", 1.0, 0)
    return [strong_kernel(case, seed=i, **options) for i in range(config.num_hidden_layers)]


def make_ids(batch, length, seed=0):
    return torch.randint(3, 61, (batch, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def parallel_logits(model, ids, policy, kernels, prompt):
    """Teacher-forced logits by the parallel form, the truth of a cache that reads a prompt."""

    def handler(kernel):
        def run(q, k, v):
            times, out, lse = evict_and_attend(q, k, v, policy, prompt=prompt)
            return out if kernel is None else correct(q, k, v, times, kernel, out, lse)

        return run

    with handled(model, [handler(k) for k in kernels or [None] * model.config.num_hidden_layers]):
        return model(ids, use_cache=False).logits


@torch.no_grad()
def cached_logits(model, ids, cache, prompt, mask=None):
    """Teacher-forced logits token by token after a prompt read at once."""
    mask = torch.ones_like(ids) if mask is None else mask
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    pieces = [
        slice(0, max(prompt, 1)),
        *(slice(t, t + 1) for t in range(max(prompt, 1), ids.shape[1])),
    ]
    logits = []
    for piece in pieces:
        logits.append(
            model(
                ids[:, piece], attention_mask=mask[:, : piece.stop],
                position_ids=positions[:, piece], past_key_values=cache,
            ).logits
        )  # fmt: skip
    return torch.cat(logits, 1)


# --- one layer: the cache and the parallel form are one truth --------------------------------


class Recorder:
    """Collects what an observer gets as eviction times (B, U, S)."""

    def __init__(self, batch, sets, length):
        self.times = torch.full((batch, sets, length + 1), NEVER, dtype=torch.int32)

    def __call__(self, positions, times):
        at = times[:, None].expand(-1, positions.shape[1], -1).to(torch.int32)
        index = torch.where(positions < 0, self.times.shape[-1] - 1, positions).long()
        self.times.scatter_(2, index, at)


def read(case, padding, kernel, mode, pieces, ops):
    """Feed a layer left-padded q, k, v in pieces: outputs and eviction times a sequence."""
    q, k, v = (
        torch.cat([x, randn(*x.shape[:2], max(padding), x.shape[3], seed=9).to(x)], 2)
        for x in case.qkv
    )
    shift = (torch.arange(q.shape[2]) - torch.tensor(padding)[:, None]) % q.shape[2]
    q, k, v = (
        x.gather(2, shift[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))
        for x in (q, k, v)
    )
    # Sequences end together; the less padded ones read some of the noise that was appended.
    total = case.length + max(padding)
    real = torch.arange(total) >= torch.tensor(padding)[:, None]
    layer = LessLayer(case.policy, None if kernel is None else pack(kernel), mode)
    outs = []
    with mock.patch.object(cache_module, "decode_backend", return_value=ops):
        start = 0
        for stop in [*pieces, total]:
            piece = slice(start, stop)
            mask = None if bool(real[:, :stop].all()) else real[:, None, None, :stop]
            keys, values = layer.update(k[:, :, piece], v[:, :, piece])
            if layer.observer is None:
                layer.observer = Recorder(len(padding), layer.slots.positions.shape[1], total)
            outs.append(layer.attend(q[:, :, piece], keys, values, mask).float())
            start = stop
    return q, k, v, torch.cat(outs, 2), layer.observer.times, layer


@st.composite
def streams(draw):
    case = draw(cases(max_length=20))
    padding = [draw(st.integers(0, 4)) for _ in range(case.batch)]
    total = case.length + max(padding)
    mode = draw(st.sampled_from(["full", "policy"]))
    first = draw(st.integers(max(padding) + 1, total))
    if mode == "full":
        pieces = list(range(first, total))
    else:
        pieces = sorted(draw(st.sets(st.integers(1, total - 1))) if total > 1 else [])
    return case, padding, mode, pieces, draw(st.booleans())


@pytest.mark.parametrize("ops", [decode_reference, decode_cpu], ids=["reference", "cpu"])
@given(streams())
def test_layer_equals_parallel_form(ops, stream):
    case, padding, mode, pieces, with_kernel = stream
    kernel = strong_kernel(case) if with_kernel else None
    q, k, v, out, times, layer = read(case, padding, kernel, mode, pieces, ops)
    sets = layer.slots.positions.shape[1]
    for b, pad in enumerate(padding):
        one = [x[b : b + 1, :, pad:] for x in (q, k, v)]
        length = one[0].shape[2]
        prompt = max((pieces or [length + pad])[0] - pad, 0) if mode == "full" else 0
        alone = case.but(batch=1, length=length, prompt=prompt, scores="cached")
        alone.__dict__["qkv"] = one
        expected, sparse, lse = evict_and_attend(*one, case.policy, prompt=prompt)
        full = sparse if kernel is None else correct(*one, expected, kernel, sparse, lse)
        mine, truth = times[b, :, :length], expected[0, :: case.groups // sets]
        assert_same_evictions(alone, truth, mine)
        if bool((mine == truth).all()):  # else a near tie was broken the other way
            got = out[b : b + 1, :, pad:]
            torch.testing.assert_close(got[:, :, prompt:], full[:, :, prompt:], **CLOSE)
            # The prompt's attention is the library's, in the library's precision.
            near = CLOSE if case.dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
            torch.testing.assert_close(got[:, :, :prompt], full[:, :, :prompt], **near)


@pytest.mark.parametrize("ops", [decode_reference, decode_cpu], ids=["reference", "cpu"])
def test_layer_holds_exactly_the_budget(ops):
    case = Case(get_policy("h2o", 6), 2, 2, 2, 30, 8, 0, torch.float32, "cached", 1.0, 0)
    *_, layer = read(case, [0, 3], strong_kernel(case), "full", list(range(10, 33)), ops)
    held = (layer.slots.positions >= 0).sum(-1)
    assert layer.slots.keys.shape == (2, 2, 7, 8)
    assert (held == 6).all()


@pytest.mark.parametrize("ops", [decode_reference, decode_cpu], ids=["reference", "cpu"])
def test_decode_replaces_in_place(ops):
    case = Case(get_policy("h2o", 6), 2, 2, 2, 40, 8, 0, torch.bfloat16, "cached", 1.0, 0)
    layer = LessLayer(case.policy, pack(strong_kernel(case)), "full")
    q, k, v = case.qkv

    def feed(piece):
        keys, values = layer.update(k[:, :, piece], v[:, :, piece])
        layer.attend(q[:, :, piece], keys, values, None)

    def tensors():
        slots, state = layer.slots, layer.state
        return [slots.keys, slots.values, slots.positions, slots.scores, state.H, state.z]

    with mock.patch.object(cache_module, "decode_backend", return_value=ops):
        feed(slice(0, 20))
        before = [x.data_ptr() for x in tensors()]
        for t in range(20, 40):
            held, size = layer.slots.keys.clone(), layer.memory()
            feed(slice(t, t + 1))
            changed = (layer.slots.keys != held).any(-1).sum(-1)
            assert (changed == 1).all()  # one slot a head took the new pair, none moved
            assert layer.memory() == size
    assert [x.data_ptr() for x in tensors()] == before
    assert layer.state.H.dtype == layer.slots.scores.dtype == torch.float32


def test_key_features_are_computed_once():
    case = Case(get_policy("h2o", 4), 1, 1, 1, 30, 4, 0, torch.float32, "cached", 1.0, 0)
    layer = LessLayer(case.policy, pack(strong_kernel(case)), "full")
    read = {"prompt": 0, "decode": 0}
    psi, compiled = layer.kernel.psi, decode_cpu.correct_token
    layer.kernel.psi = lambda k: (read.update(prompt=read["prompt"] + k.shape[2]), psi(k))[1]

    def counted(out, lse, rows, *rest):
        read["decode"] += rows.shape[0] - case.groups * case.rep  # one evicted key a map of keys
        return compiled(out, lse, rows, *rest)

    q, k, v = case.qkv
    with mock.patch.object(decode_cpu, "correct_token", counted):
        for piece in (slice(0, 12), *(slice(t, t + 1) for t in range(12, 30))):
            keys, values = layer.update(k[:, :, piece], v[:, :, piece])
            layer.attend(q[:, :, piece], keys, values, None)
    assert read == {"prompt": 12 - 4, "decode": 30 - 12}


def test_features_alone_are_those_of_a_step():
    case = Case(get_policy("h2o", 4), 3, 2, 2, 1, 16, 0, torch.float32, "cached", 1.0, 0)
    kernel, (q, k, _) = pack(strong_kernel(case)), case.qkv
    rows = torch.cat([q, k], 1)[:, :, 0].transpose(0, 1).contiguous()
    found = cpu_maps.features(kernel, rows).transpose(0, 1)
    torch.testing.assert_close(found, torch.cat([kernel.phi(q), kernel.psi(k)], 1)[:, :, 0])


def test_stored_halves_are_widened_exactly():
    @numba.njit
    def widen(x, out):
        for i in range(x.shape[0]):
            out[i] = cpu_maps.widen(x[i])

    for dtype in (torch.bfloat16, torch.float16):
        every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
        every = every[every.isfinite()].contiguous()
        out = torch.empty(every.shape)
        widen(cpu_maps.as_bits(every), out.numpy())
        assert torch.equal(out, every.float())


# --- whole models ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: p.name)
def test_model_equals_parallel_form(name, policy):
    model = make_model(name)
    kernels = make_kernels(model.config)
    ids = make_ids(2, 24)
    for prompt in (0, 9):
        expected = parallel_logits(model, ids, policy, kernels, prompt)
        cache = LessCache(enable(model).config, policy, kernels)
        torch.testing.assert_close(cached_logits(model, ids, cache, prompt), expected, **CLOSE)


@pytest.mark.parametrize("piece", [1, 4, 24])
@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: p.name)
def test_prompt_read_under_the_policy(policy, piece):
    model = enable(make_model())
    kernels = make_kernels(model.config)
    ids = make_ids(2, 24)
    cache = LessCache(model.config, policy, kernels, prefill="policy")
    with torch.no_grad():
        parts = [model(part, past_key_values=cache).logits for part in ids.split(piece, 1)]
    expected = parallel_logits(model, ids, policy, kernels, prompt=0)
    torch.testing.assert_close(torch.cat(parts, 1), expected, **CLOSE)


@pytest.mark.parametrize("name", ["llama_gqa", "gpt_neox", "falcon"])
def test_original_positions_and_visible_keys(name):
    # The full model, shown by an explicit mask just what the policy has kept, agrees: evicted keys
    # are gone, kept ones stand at their original positions. One layer, since masks are a model's.
    policy = get_policy("h2o", 6)
    model = make_model(name, num_hidden_layers=1)
    ids = make_ids(1, 30)
    full = copy.deepcopy(model)
    cache = LessCache(enable(model).config, policy)
    shape = model_shape(model.config)
    recorder = cache.layers[0].observer = Recorder(1, shape.num_kv_heads, 30)
    logits = cached_logits(model, ids, cache, prompt=10)
    i = torch.arange(30)[:, None]
    seen = (i >= i.T) & (i < recorder.times[..., None, :30])
    assert not seen[0, 0, -1].all()
    mask = seen.repeat_interleave(shape.num_heads // shape.num_kv_heads, 1)
    with torch.no_grad():
        expected = full(ids, attention_mask=mask, use_cache=False).logits
    torch.testing.assert_close(logits, expected, **CLOSE)


@pytest.mark.parametrize("name", MODELS)
def test_budget_beyond_the_length_is_the_full_cache(name):
    model = make_model(name)
    ids = make_ids(2, 20)
    dynamic = cached_logits(model, ids, DynamicCache(), 8)
    static = cached_logits(model, ids, StaticCache(model.config, max_cache_len=24), 8)
    tolerance = max(2 * float((dynamic - static).abs().max()), 2e-5)
    enable(model)
    for policy in (get_policy("h2o", 20), get_policy("lambda", 50), get_policy("tova", 30)):
        for kernels in (None, make_kernels(model.config)):
            mine = cached_logits(model, ids, LessCache(model.config, policy, kernels), 8)
            torch.testing.assert_close(mine, dynamic, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_models_keep_a_float32_state(dtype):
    model = enable(make_model(dtype=dtype))
    cache = LessCache(model.config, get_policy("h2o", 6), make_kernels(model.config))
    logits = cached_logits(model, make_ids(2, 24), cache, 9)
    layer = cache.layers[0]
    assert logits.isfinite().all()
    assert layer.slots.keys.dtype == dtype
    assert layer.state.z.dtype == layer.slots.scores.dtype == torch.float32


@pytest.mark.parametrize("prefill", ["full", "policy"])
@pytest.mark.parametrize("name", ["llama_gqa", "qwen3", "gpt_neox", "falcon"])
@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: p.name)
def test_left_padding_leaves_no_trace(name, prefill, policy):
    model = enable(make_model(name))
    kernels = make_kernels(model.config)
    prompts = [make_ids(1, n, seed=n) for n in (4, 11, 15)]
    ids = torch.cat([torch.nn.functional.pad(p, (15 - p.shape[1], 0), value=1) for p in prompts])
    mask = torch.arange(15) >= torch.tensor([[11], [4], [0]])
    options = {"do_sample": False, "max_new_tokens": 12, "eos_token_id": None, "pad_token_id": 1}
    if prefill == "policy":
        options["prefill_chunk_size"] = 6
    cache = LessCache(model.config, policy, kernels, prefill)
    together = model.generate(ids, attention_mask=mask.long(), past_key_values=cache, **options)
    for row, prompt in zip(together, prompts, strict=True):
        alone = LessCache(model.config, policy, kernels, prefill)
        out = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), past_key_values=alone, **options
        )
        assert row[15:].tolist() == out[0, prompt.shape[1] :].tolist()


def test_generate_samples_and_searches_beams():
    model = enable(make_model())
    ids = make_ids(2, 10)
    common = {
        "attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "eos_token_id": None,
        "pad_token_id": 1,
    }  # fmt: skip

    def run(cache, **options):
        torch.manual_seed(0)
        return model.generate(ids, past_key_values=cache, **common, **options)

    ample = get_policy("h2o", 40)
    for options in ({"num_beams": 3, "do_sample": False}, {"do_sample": True}):
        assert torch.equal(run(LessCache(model.config, ample), **options), run(None, **options))
    tight = LessCache(model.config, get_policy("h2o", 4), make_kernels(model.config))
    assert run(tight, num_beams=3, do_sample=False).shape == (2, 18)


@pytest.mark.parametrize("prefill", ["full", "policy"])
def test_forked_sequences_go_their_own_way(prefill):
    model = enable(make_model())
    policy, kernels = get_policy("h2o", 5), make_kernels(model.config)
    ids, more = make_ids(3, 12), make_ids(6, 9, seed=1)

    def start(ids):
        cache = LessCache(model.config, policy, kernels, prefill)
        with torch.no_grad():
            model(ids, past_key_values=cache)
        return cache

    def go_on(cache, ids):
        return torch.cat([model(part, past_key_values=cache).logits for part in ids.split(1, 1)], 1)

    cache = start(ids)
    with torch.no_grad():
        cache.reorder_cache(torch.tensor([2, 0, 0]))
        expected = go_on(start(ids[[2, 0, 0]]), more[:3])
        torch.testing.assert_close(go_on(cache, more[:3]), expected, **CLOSE)
        cache.batch_select_indices(torch.tensor([0, 2]))
        cache.batch_repeat_interleave(3)
        history = torch.cat([ids[[2, 0, 0]], more[:3]], 1)[[0, 0, 0, 2, 2, 2]]
        other = start(history[:, :12])
        go_on(other, history[:, 12:])
        torch.testing.assert_close(go_on(cache, more), go_on(other, more), **CLOSE)


def test_crop_where_nothing_followed():
    model = enable(make_model())
    ids = make_ids(2, 12)
    with torch.no_grad():
        cache = LessCache(model.config, get_policy("lambda", 16))
        first = model(ids, past_key_values=cache).logits
        model(ids[:, :1], past_key_values=cache)
        expected = model(ids[:, 1:2], past_key_values=cache).logits
        cache.crop(-2)
        cache.crop(0)
        assert cache.get_seq_length() == 12
        model(ids[:, :1], past_key_values=cache)
        torch.testing.assert_close(model(ids[:, 1:2], past_key_values=cache).logits, expected)
        for policy in (get_policy("lambda", 6), get_policy("h2o", 16)):
            other = LessCache(model.config, policy)
            model(ids, past_key_values=other)
            with pytest.raises(ConfigError, match="take tokens back"):
                other.crop(-1)
        with pytest.raises(ConfigError, match="negative"):
            other.crop(4)
        cache.reset()
        again = model(ids, past_key_values=cache).logits
        torch.testing.assert_close(again, first)


# --- memory ----------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: p.name)
@pytest.mark.parametrize("rank", [None, 8])
def test_memory_is_what_is_expected(policy, rank):
    model = enable(make_model(dtype=torch.bfloat16))
    kernels = None if rank is None else make_kernels(model.config, kernel_size=rank)
    cache = LessCache(model.config, policy, kernels)
    assert sum(cache.memory().values()) == 0
    cached_logits(model, make_ids(3, 20), cache, 9)
    expected = expected_memory(model.config, policy, 3, torch.bfloat16, rank)
    assert cache.memory() == expected
    pair = full_cache_bytes(model.config, 1, 1, torch.bfloat16)
    assert expected["slots"] == 3 * (policy.budget + 1) * pair


def test_no_mask_grows_with_the_square_of_the_prompt():
    model = enable(make_model(max_position_embeddings=4096))
    ids = make_ids(2, 3000)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    seen = []
    attend = LessLayer.attend

    def spy(layer, q, k, v, given):
        seen.append(given.shape)
        return attend(layer, q, k, v, given)

    cache = LessCache(model.config, get_policy("h2o", 16), make_kernels(model.config))
    with mock.patch.object(LessLayer, "attend", spy), torch.no_grad():
        model(ids, attention_mask=mask, past_key_values=cache, logits_to_keep=1)
    assert set(seen) == {(2, 1, 1, 3000)}


@pytest.mark.slow
def test_process_memory_stays_flat_over_20000_tokens():
    model = enable(make_model(num_hidden_layers=1, max_position_embeddings=32768))
    kernels = make_kernels(model.config)
    cache = LessCache(model.config, get_policy("h2o", 32), kernels, prefill="policy")
    token, held = make_ids(8, 1), []
    with torch.no_grad():
        model(make_ids(8, 64), past_key_values=cache)
        for _ in range(20):  # most of them in pieces, which take as much memory and less time
            for _ in range(200):
                token = model(token, past_key_values=cache).logits.argmax(-1)
            for _ in range(50):
                model(make_ids(8, 16), past_key_values=cache)
            gc.collect()
            held.append(psutil.Process().memory_info().rss)
    assert cache.get_seq_length() == 20_064
    # A full cache of this model would have grown by 41 MB.
    assert max(held) - held[1] < 4 * 2**20


# --- other caches and wrong use --------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_an_enabled_model_is_unchanged_with_other_caches(name):
    model = make_model(name)
    ids = make_ids(2, 14)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0

    def run():
        outs = [cached_logits(model, ids, DynamicCache(), 6, mask)[mask.bool()]]
        static = StaticCache(model.config, max_cache_len=20)
        outs.append(cached_logits(model, ids, static, 6, mask)[mask.bool()])
        with torch.no_grad():
            outs.append(model(ids, use_cache=False).logits)
            cache = DynamicCache()  # read in two pieces
            outs += [model(part, past_key_values=cache).logits for part in ids.split(9, 1)]
        return outs

    before = run()
    enable(model)
    for mine, theirs in zip(run(), before, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_sliding_window_shorter_than_the_sequence_is_refused():
    model = make_model("mistral", sliding_window=8)
    ids = make_ids(1, 12)
    with torch.no_grad():
        expected = model(ids).logits
        enable(model)
        torch.testing.assert_close(model(ids).logits, expected)
        cache = LessCache(model.config, get_policy("h2o", 4))
        model(ids[:, :8], past_key_values=cache)
        with pytest.raises(ConfigError, match="sliding window of 8"):
            model(ids[:, 8:9], past_key_values=cache)


def test_a_model_that_was_not_enabled_is_refused():
    for name in ("llama_gqa", "falcon"):
        model = make_model(name)
        cache = LessCache(model.config, get_policy("lambda", 6))
        with pytest.raises(ConfigError, match="enable"):
            model(make_ids(1, 4), past_key_values=cache)
    layer = LessLayer(get_policy("h2o", 6), None, "full")
    pair = torch.zeros(1, 1, 1, 4)
    layer.update(pair, pair)  # and no attention follows
    with pytest.raises(ConfigError, match="enable"):
        layer.update(pair, pair)
    with pytest.raises(ConfigError, match="ALiBi"):
        enable(make_model("falcon", alibi=True))


def test_kernels_that_do_not_fit_are_refused():
    config = make_model().config
    policy, good = get_policy("h2o", 6), make_kernels(config)
    with pytest.raises(ConfigError, match="2 layers, but there are 1"):
        LessCache(config, policy, good[:1])
    for heads, groups, size in ((8, 2, 8), (4, 4, 8), (4, 2, 16)):
        kernel = get_kernel("less", num_heads=heads, num_kv_heads=groups, head_dim=size)
        with pytest.raises(ConfigError, match="another model"):
            LessCache(config, policy, [good[0], kernel])
    performer = get_kernel("performer", num_heads=4, num_kv_heads=2, head_dim=16)
    with pytest.raises(ConfigError, match="another model"):
        LessCache(config, policy, [performer] * 2)
    good[1].kernel_size += 1
    with pytest.raises(ConfigError, match="another model"):
        LessCache(config, policy, good)
    with pytest.raises(ConfigError, match="unknown prefill 'ful'; did you mean 'full'"):
        LessCache(config, policy, prefill="ful")


def test_reuse_without_reset_is_refused():
    model = enable(make_model())
    cache = LessCache(model.config, get_policy("h2o", 6))
    options = {"max_new_tokens": 3, "pad_token_id": 1, "do_sample": False}
    ids = make_ids(1, 5)
    first = model.generate(ids, past_key_values=cache, **options)
    with pytest.raises(ConfigError, match="reset"):
        model.generate(ids, past_key_values=cache, **options)
    with pytest.raises(ConfigError, match="already read a prompt"):
        model(ids, past_key_values=cache)
    with pytest.raises(ConfigError, match="holds 1 sequences, not 2"):
        model(make_ids(2, 1), past_key_values=cache)
    cache.reset()
    assert torch.equal(model.generate(ids, past_key_values=cache, **options), first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_being_tracked_change_nothing(dtype):
    """Whoever loads a model by the library alone has parameters that ask for them."""
    model = enable(make_model(dtype=dtype))
    assert next(model.parameters()).requires_grad
    ids, outs = make_ids(2, 12), []
    for tracked in (False, True):
        cache = LessCache(model.config, get_policy("h2o", 6), make_kernels(model.config))
        with torch.set_grad_enabled(tracked):
            model(ids[:, :9], past_key_values=cache)
            steps = [model(ids[:, t : t + 1], past_key_values=cache) for t in range(9, 12)]
        outs.append(torch.cat([step.logits for step in steps], 1))
    assert torch.equal(*outs)


def test_rewinding_begins_anew():
    """Also a cache that read nothing yet, or whose reading failed halfway."""
    model = enable(make_model("mistral", sliding_window=8))
    cache = LessCache(model.config, get_policy("h2o", 4))
    cache.rewind()
    ids = make_ids(1, 6)
    with torch.no_grad():
        first = model(ids, past_key_values=cache).logits
        cache.rewind()
        with pytest.raises(ConfigError, match="sliding window of 8"):
            model(make_ids(1, 9), past_key_values=cache)
        cache.rewind()
        assert torch.equal(model(ids, past_key_values=cache).logits, first)


def test_masks_that_are_more_than_left_padding_are_refused():
    model = enable(make_model())
    ids = make_ids(2, 6)
    right = torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6])
    custom = torch.ones(2, 1, 6, 6, dtype=torch.bool).tril()
    nothing = torch.tensor([[0] * 6, [1] * 6])
    for mask, text in ((right, "on the left"), (custom, "custom"), (nothing, "padding only")):
        cache = LessCache(model.config, get_policy("h2o", 4))
        with pytest.raises(ConfigError, match=text):
            model(ids, attention_mask=mask, past_key_values=cache)


def test_an_attached_policy_refuses_left_padding():
    model = make_model()
    ids = make_ids(2, 6)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    with attach(model, get_policy("h2o", 4)):
        model(ids, attention_mask=mask.flip(1), use_cache=False)
        with pytest.raises(ConfigError, match="left-padded"):
            model(ids, attention_mask=mask, use_cache=False)


# --- a real model on real text ---------------------------------------------------------------

TEXT = (
    "The river rises in the hills above the town and runs for forty miles to the sea. In spring it "
    "floods the meadows, and the farmers move their cattle to the higher fields. A bridge of seven "
    "arches, built by the monks, carries the old road across it; the mill below the bridge still "
    "grinds flour for the bakers of the valley, who sell their bread at the market every Thursday."
)


@pytest.fixture(scope="module")
def real_model(smollm2):
    model = enable(load_model(smollm2))
    return model, load_tokenizer(smollm2)(TEXT, return_tensors="pt").input_ids[:, :48]


@pytest.mark.download
@pytest.mark.parametrize("policy", [get_policy(p.name, 16) for p in POLICIES], ids=lambda p: p.name)
@pytest.mark.parametrize("prompt", [0, 24])
def test_real_model_equals_parallel_form(real_model, policy, prompt):
    model, ids = real_model
    kernels = make_kernels(model.config)
    expected = parallel_logits(model, ids, policy, kernels, prompt)
    cache = LessCache(model.config, policy, kernels)
    torch.testing.assert_close(cached_logits(model, ids, cache, prompt), expected, **CLOSE)
