from contextlib import contextmanager

import pytest
import torch
from helpers import randn, visible
from torch.nn import functional as F
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from pipeline.attention import attach
from pipeline.errors import ConfigError
from pipeline.kernels import get_kernel
from pipeline.ops.reference import sequence as reference
from pipeline.ops.times import by_index_set
from pipeline.policies import get_policy
from pipeline.transformer.interface import attention_layers, enable, output_projection, record

LENGTH, VOCABULARY = 20, 50
COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64, "initializer_range": 0.4,
}  # fmt: skip
FALCON = {**COMMON, "alibi": False}
del FALCON["max_position_embeddings"]
GATED = {**COMMON, "num_key_value_heads": 2, "intermediate_size": 48}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**GATED)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**GATED, head_dim=8)),
    "neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**COMMON, intermediate_size=48)),
    "falcon-mqa": lambda: FalconForCausalLM(FalconConfig(**FALCON, multi_query=True)),
    "falcon-gqa": lambda: FalconForCausalLM(
        FalconConfig(**FALCON, new_decoder_architecture=True, num_kv_heads=2)
    ),
    "falcon-mha": lambda: FalconForCausalLM(FalconConfig(**FALCON, multi_query=False)),
}
KV_HEADS = {
    "llama": 2, "qwen3": 2, "neox": 4, "falcon-mqa": 1, "falcon-gqa": 2, "falcon-mha": 4
}  # fmt: skip
CLOSE = {"rtol": 1e-3, "atol": 1e-4}


@pytest.fixture(scope="module", params=sorted(MODELS))
def named(request):
    """(name, model) of random weights, large enough for attention to be far from uniform."""
    torch.manual_seed(0)
    return request.param, MODELS[request.param]().eval()


@pytest.fixture(params=sorted(MODELS))
def untouched(request):
    """A model that nothing was ever attached to."""
    torch.manual_seed(0)
    return MODELS[request.param]().eval()


@pytest.fixture
def llama():
    torch.manual_seed(0)
    return MODELS["llama"]().eval()


def tokens(batch=2, length=LENGTH, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCABULARY, (batch, length), generator=generator)


@torch.no_grad()
def logits(model, ids, **options):
    return model(ids, use_cache=False, **options).logits


def kernels_for(model, groups):
    config = model.config
    shape = {
        "num_heads": 4, "num_kv_heads": groups, "head_dim": config.hidden_size // 4,
        "kernel_size": 4, "hidden_size": 8,
    }  # fmt: skip
    kernels = [get_kernel("less", **shape, seed=i).eval() for i in range(2)]
    for kernel in kernels:
        torch.nn.init.constant_(kernel.s1, 1.0)
    return kernels


@contextmanager
def hooked_sdpa(monkeypatch, attention):
    """The library's own path with torch's attention replaced by ``attention(q, k, v)``."""
    calls = []

    def replacement(q, k, v, attn_mask=None, **_):
        calls.append(q.shape)
        return attention(q, k, v)

    with monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", replacement)
        yield calls


def dense(policy, scores, groups, kernels=None):
    """Attention by the reference loop and S x S masks, layer after layer."""
    layer = iter(range(100))

    def attention(q, k, v):
        index = next(layer)
        k, v = (x[:, :: x.shape[1] // groups] for x in (k, v))  # undo repeated heads
        rep = q.shape[1] // groups
        times = reference.evict(*by_index_set(q, k, policy), policy, scores)
        times = times.view(q.shape[0], -1, q.shape[2]).expand(-1, groups, -1)
        seen = visible(times).repeat_interleave(rep, 1)
        keys, values = (x.repeat_interleave(rep, 1) for x in (k, v))
        weights = (q @ keys.mT * q.shape[-1] ** -0.5).exp() * seen
        if kernels is not None:
            low = kernels[index].phi(q) @ kernels[index].psi(k).repeat_interleave(rep, 1).mT
            weights = weights + low * (torch.ones_like(low).tril() * ~seen)
        return weights @ values / weights.sum(-1, keepdim=True)

    return attention


# --- attach ----------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["h2o", "tova"])
@pytest.mark.parametrize("scores", ["full", "cached"])
def test_a_budget_that_covers_everything_changes_nothing(named, policy, scores):
    """For Falcon: the adapter equals the library's own attention."""
    name, model = named
    stock = logits(model, tokens())
    for budget in (LENGTH, 10 * LENGTH):
        kernels = kernels_for(model, KV_HEADS[name])
        with attach(model, get_policy(policy, budget), kernels, scores):
            torch.testing.assert_close(logits(model, tokens()), stock, **CLOSE)


@pytest.mark.parametrize("policy", ["h2o", "lambda", "tova"])
@pytest.mark.parametrize("scores", ["full", "cached"])
@pytest.mark.parametrize("corrected", [False, True], ids=["sparse", "less"])
def test_attached_policy_is_dense_masked_attention(named, monkeypatch, policy, scores, corrected):
    name, model = named
    rule = get_policy(policy, 6)
    kernels = kernels_for(model, KV_HEADS[name]) if corrected else None
    with hooked_sdpa(monkeypatch, dense(rule, scores, KV_HEADS[name], kernels)) as calls:
        expected = logits(model, tokens())
    assert len(calls) == 2  # the hook was in the way
    with attach(model, rule, kernels, scores) as attached:
        assert attached is model
        out = logits(model, tokens())
    torch.testing.assert_close(out, expected, **CLOSE)
    stock = logits(model, tokens())
    torch.testing.assert_close(out[:, :7], stock[:, :7], **CLOSE)  # queries 0..C see everything
    assert (out[:, 7:] - stock[:, 7:]).abs().amax(-1).min() > 1e-3  # and none after them does


def test_scores_default_to_the_papers(llama):
    rule, ids = get_policy("h2o", 6), tokens(length=60)
    runs = {}
    for scores in ("full", "cached"):
        with attach(llama, rule, scores=scores):
            runs[scores] = logits(llama, ids)
    with attach(llama, rule):
        default = logits(llama, ids)
    assert torch.equal(default, runs["full"])
    assert not torch.allclose(runs["cached"], runs["full"], atol=1e-3)


def test_falcon_adapter_equals_both_implementations_of_the_library():
    torch.manual_seed(0)
    model = MODELS["falcon-mqa"]().eval()
    covering = get_policy("lambda", LENGTH)
    for implementation in ("sdpa", "eager"):
        model.config._attn_implementation = implementation
        stock = logits(model, tokens())
        with attach(model, covering):
            torch.testing.assert_close(logits(model, tokens()), stock, **CLOSE)
        assert model.config._attn_implementation == implementation
        assert torch.equal(logits(model, tokens()), stock)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_in_half_precision_stay_so(dtype):
    torch.manual_seed(0)
    model = MODELS["llama"]().eval().to(dtype)
    seen = []
    with record(model, lambda layer, q, k, v: seen.append(q.dtype)):
        logits(model, tokens())
    with attach(model, get_policy("h2o", 6)):
        assert logits(model, tokens()).dtype == dtype
    assert seen == [dtype] * 2


# --- restoring -------------------------------------------------------------------------------


def state_of(model):
    return (
        model.config._attn_implementation,
        [sorted(set(layer.__dict__)) for layer in attention_layers(model)],
        [layer.forward.__func__ for layer in attention_layers(model)],
    )


def test_everything_is_restored(untouched):
    before, stock = state_of(untouched), logits(untouched, tokens())
    for context in (attach(untouched, get_policy("h2o", 4)), record(untouched, lambda *_: None)):
        with context:
            logits(untouched, tokens())
            assert state_of(untouched) != before
        assert state_of(untouched) == before
        assert torch.equal(logits(untouched, tokens()), stock)


def run_and_raise(model, error):
    with attach(model, get_policy("h2o", 4)):
        logits(model, tokens())
        raise error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_everything_is_restored_after_an_exception(untouched, error):
    before, stock = state_of(untouched), logits(untouched, tokens())
    with pytest.raises(error):
        run_and_raise(untouched, error)
    assert state_of(untouched) == before
    assert torch.equal(logits(untouched, tokens()), stock)


def test_an_inner_policy_gives_way_to_the_outer_one(untouched):
    before = state_of(untouched)
    with attach(untouched, get_policy("h2o", 4)):
        outer = logits(untouched, tokens())
        with attach(untouched, get_policy("lambda", 6)):
            assert not torch.allclose(logits(untouched, tokens()), outer, atol=1e-3)
        assert torch.equal(logits(untouched, tokens()), outer)
    assert state_of(untouched) == before


def test_the_implementation_chosen_before_comes_back(llama):
    llama.set_attn_implementation("eager")
    stock = logits(llama, tokens())
    with attach(llama, get_policy("h2o", LENGTH)):
        torch.testing.assert_close(logits(llama, tokens()), stock, **CLOSE)
    assert llama.config._attn_implementation == "eager"
    assert torch.equal(logits(llama, tokens()), stock)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_wrong_number_of_kernels_is_refused_and_touches_nothing(llama, count):
    before = state_of(llama)
    kernels = (kernels_for(llama, 2) * 2)[:count]
    with (
        pytest.raises(ConfigError, match=f"2 attention layers, not {count}"),
        attach(llama, get_policy("h2o", 4), kernels),
    ):
        pass
    assert state_of(llama) == before


def test_falcon_with_alibi_is_refused_and_touches_nothing():
    model = FalconForCausalLM(FalconConfig(**{**FALCON, "alibi": True})).eval()
    before = state_of(model)
    with pytest.raises(ConfigError, match="ALiBi"), attach(model, get_policy("h2o", 4)):
        logits(model, tokens())
    assert state_of(model) == before


# --- padding and other refusals --------------------------------------------------------------


def padded(ids, pads, side):
    """Batch of ``ids`` (1, S) whole and, in row 1, with ``pads`` tokens lost to padding."""
    short = ids[:, : ids.shape[1] - pads]
    filler, row = torch.zeros(1, pads, dtype=torch.long), torch.ones(1, ids.shape[1] - pads)
    order = (lambda x, pad: [x, pad]) if side == "right" else (lambda x, pad: [pad, x])
    batch = torch.cat([ids, torch.cat(order(short, filler), 1)])
    mask = torch.cat([torch.ones(1, ids.shape[1]), torch.cat(order(row, filler.float()), 1)])
    return batch, mask.long(), short


@pytest.mark.parametrize("policy", ["h2o", "lambda"])
def test_left_padding_is_refused(named, policy):
    _, model = named
    ids, mask, _ = padded(tokens(1), 3, "left")
    with pytest.raises(ConfigError, match=r"left-padded"), attach(model, get_policy(policy, 4)):
        logits(model, ids, attention_mask=mask)


@pytest.mark.parametrize("additive", [False, True], ids=["boolean", "additive"])
def test_padding_is_seen_in_whole_masks_too(llama, additive):
    """(B, 1, S, S) masks, which the library passes on as they are."""
    rule = get_policy("h2o", 6)
    causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril().expand(1, 1, -1, -1)
    for side in ("left", "right"):
        ids, rows, _ = padded(tokens(1), 3, side)
        mask = causal & rows.bool()[:, None, None]
        if additive:
            mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
        if side == "left":
            with pytest.raises(ConfigError, match="left-padded"), attach(llama, rule):
                logits(llama, ids, attention_mask=mask)
        else:
            with attach(llama, rule):
                out = logits(llama, ids, attention_mask=mask)
                expected = logits(llama, ids, attention_mask=rows)
            torch.testing.assert_close(out, expected)


def test_custom_masks_are_refused(llama):
    """Of keys in the middle, by rows or as a whole: a policy would see what the model does not."""
    middle = torch.ones(1, LENGTH, dtype=torch.long)
    middle[:, 5] = 0
    whole = torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool).tril()
    whole[..., 3:, 2] = False
    later = torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool).tril(1)
    for mask in (middle, whole, later):
        with pytest.raises(ConfigError, match="custom"), attach(llama, get_policy("h2o", 6)):
            logits(llama, tokens(1), attention_mask=mask)


def test_packed_sequences_within_a_window_are_seen():
    """The library lays their mask over the window's."""
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(**GATED, sliding_window=LENGTH)).eval()
    ids, places = tokens(1), torch.arange(LENGTH)[None] % (LENGTH // 2)
    stock = logits(model, ids, position_ids=places)
    assert not torch.allclose(stock, logits(model, ids), atol=1e-3)
    enable(model)
    torch.testing.assert_close(logits(model, ids, position_ids=places), stock, **CLOSE)
    with pytest.raises(ConfigError, match="custom"), attach(model, get_policy("h2o", 6)):
        logits(model, ids, position_ids=places)


@pytest.mark.parametrize("scores", ["full", "cached"])
def test_right_padding_changes_no_real_token(named, scores):
    _, model = named
    ids, mask, short = padded(tokens(1), 3, "right")
    with attach(model, get_policy("h2o", 6), scores=scores):
        out = logits(model, ids, attention_mask=mask)
        alone, whole = logits(model, short), logits(model, ids[:1])
    torch.testing.assert_close(out[:1], whole, **CLOSE)
    torch.testing.assert_close(out[1:, :-3], alone, **CLOSE)


def test_a_cache_with_an_attached_policy_is_refused(llama):
    with attach(llama, get_policy("h2o", 4)), torch.no_grad():
        cache = llama(tokens(1), use_cache=True).past_key_values
        with pytest.raises(ConfigError, match="use_cache=False"):
            llama(tokens(1, 1), past_key_values=cache)


def test_a_sliding_window_shorter_than_the_sequence_is_refused():
    torch.manual_seed(0)
    config = Qwen3Config(
        **GATED, head_dim=8, use_sliding_window=True, sliding_window=8, max_window_layers=0
    )
    model = Qwen3ForCausalLM(config).eval()
    rule = get_policy("h2o", 4)
    with pytest.raises(ConfigError, match="sliding window of 8"), attach(model, rule):
        logits(model, tokens())
    with attach(model, rule):
        logits(model, tokens(1, 8))


def test_another_logit_scale_is_refused(llama):
    attention_layers(llama)[1].scaling = 0.7
    with pytest.raises(ConfigError, match=r"scaled by 0\.7"), attach(llama, get_policy("h2o", 4)):
        logits(llama, tokens())


# --- record ----------------------------------------------------------------------------------


def test_recorded_features_reproduce_every_layers_output(named):
    name, model = named
    recorded, outputs = [], []
    hooks = [
        layer.register_forward_hook(lambda _, __, out: outputs.append(out[0]))
        for layer in attention_layers(model)
    ]
    try:
        stock = logits(model, tokens())
        with record(model, lambda *features: recorded.append(features)):
            torch.testing.assert_close(logits(model, tokens()), stock, **CLOSE)
    finally:
        for hook in hooks:
            hook.remove()
    assert [layer for layer, *_ in recorded] == [0, 1]
    groups = KV_HEADS[name]
    for layer, q, k, v in recorded:
        assert q.shape == (2, 4, LENGTH, 8)
        assert k.shape == v.shape == (2, groups, LENGTH, 8)
        keys, values = (x.repeat_interleave(4 // groups, 1) for x in (k, v))
        seen = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
        p = (q @ keys.mT * 8**-0.5).masked_fill(~seen, -torch.inf).softmax(-1)
        joined = (p @ values).transpose(1, 2).flatten(2)
        out = output_projection(attention_layers(model)[layer])(joined)
        torch.testing.assert_close(out, outputs[layer], **CLOSE)


def test_layers_come_in_order_with_their_projection(named):
    _, model = named
    layers = attention_layers(model)
    assert [layer.layer_idx for layer in layers] == [0, 1]
    for layer in layers:
        assert output_projection(layer)(randn(1, 32)).shape == (1, 32)


def test_a_layer_without_known_projection_is_refused():
    with pytest.raises(ConfigError, match="Linear has no output projection"):
        output_projection(torch.nn.Linear(2, 2))
