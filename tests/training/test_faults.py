"""Trainings that go wrong: found, told, and the layer left to the sparse policy."""

import importlib
import json
from dataclasses import replace
from unittest import mock

import pytest
import torch
from helpers import randn
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline import __main__, cache
from pipeline.cache import LessCache
from pipeline.eviction import evicted_at
from pipeline.kernels import get_kernel
from pipeline.policies import get_policy
from pipeline.storage.features import layer_file
from pipeline.storage.files import load_table
from pipeline.storage.seals import discard_marked
from pipeline.storage.tensors import load_tensors, save_tensors
from pipeline.synthesis import sparse_part, synthesize
from pipeline.training import layers
from pipeline.training.checkpoint import load_kernels
from pipeline.training.faults import Fault
from pipeline.training.loop import Epoch, Recipe, train_layer
from pipeline.training.prepare import prepare
from pipeline.transformer.interface import enable
from pipeline.transformer.shape import Heads

HEADS, BUILD = Heads(4, 2, 8), {"kernel_size": 4, "hidden_size": 16}


def kernel(seed=0):
    return get_kernel("less", **vars(HEADS), **BUILD, seed=seed)


# --- trainings -------------------------------------------------------------------------------

LENGTH, BUDGET = 24, 4
RECIPE = Recipe(epochs=3, batch_size=2, learning_rate=3e-3, validation=0.25)


def sequences(count=8, scale=1.0, length=LENGTH):
    for i in range(count):
        yield tuple(
            randn(1, heads, length, 8, seed=3 * i + j) * scale for j, heads in enumerate((4, 2, 2))
        )


def prepared(policy="h2o", scale=1.0):
    return prepare(sequences(scale=scale), randn(12, 32, seed=99), get_policy(policy, BUDGET),
                   "cached")  # fmt: skip


@pytest.mark.parametrize("rate", [1e6, 1e30], ids=["explodes", "overflows"])
def test_a_training_that_diverges_ends_and_keeps_its_best_epoch(rate):
    untrained = kernel()
    before = {name: value.clone() for name, value in untrained.state_dict().items()}
    curve = train_layer(prepared(), untrained, replace(RECIPE, learning_rate=rate, epochs=6))
    best = min((e for e in curve if e.finite), key=lambda epoch: epoch.validation_loss)
    assert best.epoch == 0
    assert all(torch.equal(value, before[name]) for name, value in untrained.state_dict().items())
    assert all(epoch.finite for epoch in curve[:-1])
    assert (len(curve) < 7) == (not curve[-1].finite)
    if rate == 1e30:
        assert not curve[-1].finite


def curve_of(*losses):
    return [Epoch(i, loss, loss, 0.1, 1.0) for i, loss in enumerate(losses)]


@pytest.mark.parametrize(
    ("losses", "sparse", "expected"),
    [
        ([1.0, 0.9, 1.2], 1.0, None),
        ([1.0, 1.1, 1.2], 1.0, Fault("does not beat the sparse policy", True)),
        ([1.0, 1e9, 1e12], 0.5, Fault("does not beat the sparse policy", True)),
        ([1.0, 0.9, float("nan")], 1.0, Fault("diverged in epoch 2", False)),
        ([1.0, float("inf")], 1.0, Fault("diverged in epoch 1", True)),
        ([float("nan")], float("nan"),
         Fault("has features that are no finite half-precision numbers", True)),
    ],
)  # fmt: skip
def test_faults_of_loss_curves(losses, sparse, expected):
    assert Fault.of(curve_of(*losses), sparse) == expected


def train_words(folder, features, *more):
    save_tensors(layer_file(folder / "features", 0), features, "features", layer=0)
    return [
        "train", "--features", str(folder / "features"), "--layers", "0", "1", "--policy", "h2o",
        "--budget", str(BUDGET), "--sizes", json.dumps(BUILD), "--resume", str(folder / "resume"),
        "--out", str(folder / "k"), "--curves", str(folder / "curves"), *more,
    ]  # fmt: skip


def features(scale=1.0):
    q, k, v = (torch.cat(column) for column in zip(*sequences(scale=scale), strict=True))
    return {"q": q.half(), "k": k.half(), "v": v.half(), "o_weight": randn(12, 32, seed=99)}


BAD = ["--recipe", '{"epochs": 3, "learning_rate": 1e30, "validation": 0.25}']


def test_a_layer_that_is_harmed_becomes_sparse(tmp_path, monkeypatch, capsys):
    """Adam at 1e30 leaves nothing but the untrained kernel, here told to be no better than none."""
    monkeypatch.setattr(layers, "evaluate", lambda *args: 1e-9)
    assert __main__.main(train_words(tmp_path, features(), *BAD)) == 0
    assert "layer 0 diverged in epoch 1" in capsys.readouterr().err
    (found,) = load_kernels(tmp_path / "k", HEADS, 1)
    assert not found.s1.any()
    assert not found.psi(randn(1, 2, 5, 8)).any()
    curves = load_table(tmp_path / "curves")
    assert set(curves["fault"]) == {"diverged in epoch 1"}
    assert set(curves["became"]) == {"sparse"}
    _, header = load_tensors(tmp_path / "k", "kernels")
    assert header["losses"]["0"]["fault"] == "diverged in epoch 1"


def test_a_harmed_layer_is_kept_or_stops_the_job_if_told_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(layers, "evaluate", lambda *args: 1e-9)
    assert __main__.main([*train_words(tmp_path, features(), *BAD), "--on-harm", "keep"]) == 0
    assert (load_kernels(tmp_path / "k")[0].s1 == 1e-4).all()
    assert set(load_table(tmp_path / "curves")["became"]) == {"keep"}
    (tmp_path / "k").unlink()
    assert __main__.main([*train_words(tmp_path, features(), *BAD), "--on-harm", "stop"]) == 1
    assert "error: layer 0 diverged in epoch 1, and `train.on_harm` is `stop`" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "k").exists()


def test_features_beyond_half_precision_make_the_layer_sparse(tmp_path):
    recipe = ["--recipe", '{"epochs": 2, "validation": 0.25}']
    content = features()
    content["v"][:, :, 3] = float("inf")
    assert __main__.main(train_words(tmp_path, content, *recipe)) == 0
    assert not load_kernels(tmp_path / "k")[0].s1.any()
    curves = load_table(tmp_path / "curves")
    assert curves["fault"].str.contains("half-precision").all()
    assert len(curves) == 1


def test_a_layer_that_gains_says_nothing(tmp_path, capsys):
    recipe = ["--recipe", '{"epochs": 2, "learning_rate": 0.003, "validation": 0.25}']
    assert __main__.main(train_words(tmp_path, features(), *recipe)) == 0
    assert load_table(tmp_path / "curves")[["fault", "became"]].isna().all(axis=None)
    assert load_kernels(tmp_path / "k")[0].s1.all()


def test_a_diverged_training_that_is_started_again_does_not_go_on(tmp_path):
    recipe = replace(RECIPE, learning_rate=1e30)
    first = train_layer(prepared(), kernel(), recipe, tmp_path / "state")
    again = train_layer(prepared(), kernel(), recipe, tmp_path / "state")
    assert len(first) == len(again) < 4


def test_a_damaged_state_is_named_and_then_made_again(tmp_path, monkeypatch, capsys):
    """Killed at its end, the state damaged: the third start has the numbers of a quiet one."""
    words = train_words(tmp_path, features(), "--recipe", '{"epochs": 4, "validation": 0.25}')
    assert __main__.main(words) == 0
    quiet = (tmp_path / "k").read_bytes()

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(layers, "save_kernels", stop)
        with pytest.raises(KeyboardInterrupt):
            __main__.main(words)
    (state,) = (tmp_path / "resume").iterdir()
    content = state.read_bytes()
    state.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert __main__.main(words) == 1
    assert f"{state} is damaged" in capsys.readouterr().err
    discard_marked(tmp_path)
    assert __main__.main(words) == 0
    assert "epoch 1/4" in capsys.readouterr().err
    assert (tmp_path / "k").read_bytes() == quiet


def test_a_state_of_other_features_or_code_is_not_resumed(tmp_path, monkeypatch, capsys):
    """Even if their header says the same, as after other weights in the same folder."""
    recipe = ["--recipe", '{"epochs": 2, "validation": 0.25}']

    def epochs(made, code="one"):
        words = train_words(tmp_path, made, *recipe)
        with monkeypatch.context() as patched:
            patched.setattr(layers, "save_kernels", mock.Mock(side_effect=KeyboardInterrupt))
            patched.setattr(layers, "code_of", lambda step: code)
            with pytest.raises(KeyboardInterrupt):
                __main__.main(words)
        return capsys.readouterr().err.count("epoch")

    first = epochs(features())
    assert first > 0
    assert epochs(features()) == 0, "it goes on where it was"
    assert epochs(features(scale=1.1)) == first
    assert epochs(features(), "another") == first


# --- s1 = 0 is the sparse policy -------------------------------------------------------------


def sparse_kernel():
    made = kernel().eval()
    made.silence()
    return made


@pytest.mark.parametrize("policy", ["h2o", "lambda", "tova"])
@pytest.mark.parametrize("scale", [1.0, 20.0], ids=["small logits", "logits of hundreds"])
def test_the_parallel_form_without_a_memory_is_the_sparse_policy(policy, scale):
    for q, k, v in sequences(2, scale):
        times = evicted_at(q, k, get_policy(policy, BUDGET), "cached")
        assert torch.equal(
            synthesize(q, k, v, times, sparse_kernel()), sparse_part(q, k, v, times)[0]
        )


@pytest.mark.parametrize("ops", ["cpu", "reference"])
@pytest.mark.parametrize("prefill", ["full", "policy"])
def test_the_cache_without_a_memory_is_the_baselines(ops, prefill, monkeypatch):
    """Token by token and in pieces, compiled and plain."""
    monkeypatch.setattr(
        cache,
        "decode_backend",
        lambda device: importlib.import_module(f"pipeline.ops.{ops}.decode"),
    )
    config = AutoConfig.for_model(
        "llama", hidden_size=32, intermediate_size=16, num_hidden_layers=2, vocab_size=50,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = enable(AutoModelForCausalLM.from_config(config)).eval()
    with torch.no_grad():
        for layer in model.model.layers:  # logits far from zero on either side
            layer.self_attn.q_proj.weight *= 60
    tokens = torch.randint(0, 50, (2, 30), generator=torch.Generator().manual_seed(1))

    def logits(kernels):
        held, out = LessCache(config, get_policy("h2o", BUDGET), kernels, prefill), []
        pieces = [12, *[1] * 12, *([6] if prefill == "policy" else [1] * 6)]
        with torch.inference_mode():
            for piece in tokens.split(pieces, 1):
                out.append(model(piece, past_key_values=held).logits)
        return torch.cat(out, 1)

    assert torch.equal(logits([sparse_kernel(), sparse_kernel()]), logits(None))
