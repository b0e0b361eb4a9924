from types import SimpleNamespace

import pytest
import torch
from helpers import randn
from transformers import LlamaConfig

from pipeline.errors import ConfigError, DataError
from pipeline.experiment.methods import METHODS
from pipeline.kernels import get_kernel
from pipeline.measure.variants import Compared
from pipeline.storage.tensors import load_tensors, save_tensors
from pipeline.training.checkpoint import join_kernels, load_kernels, save_kernels
from pipeline.transformer.shape import Heads

HEADS = Heads(4, 2, 8)
BUILD = {"kernel_size": 4, "hidden_size": 16}
HEADER = {"policy": {"name": "h2o"}, "scores": "cached"}


def kernel(layer):
    made = get_kernel("less", **vars(HEADS), **BUILD, seed=layer)
    with torch.no_grad():
        made.s1.fill_(1.0 + layer)
        made.s2.fill_(0.5)
    return made


def write(path, layers, **header):
    losses = {str(layer): {"best": float(layer)} for layer in layers}
    kernels = {layer: kernel(layer) for layer in layers}
    save_kernels(path, kernels, "less", HEADS, BUILD, losses=losses, **(HEADER | header))
    return path


def test_kernels_come_back_in_order_and_in_evaluation_mode(tmp_path):
    path = write(tmp_path / "k.safetensors", [1, 0, 2])
    found = load_kernels(path, HEADS, 3)
    q, k = randn(1, 4, 5, 8, seed=1), randn(1, 2, 5, 8, seed=2)
    for layer, loaded in enumerate(found):
        expected = kernel(layer).eval()
        assert not loaded.training
        assert torch.equal(loaded.phi(q), expected.phi(q))
        assert torch.equal(loaded.psi(k), expected.psi(k))
    assert len(load_kernels(path)) == 3
    assert load_kernels(path, compute_dtype=torch.bfloat16)[0].compute_dtype == torch.bfloat16


def test_what_a_cell_compares_is_where_the_model_is(tmp_path):
    """On a GPU; a model that only says where it is stands in for one."""
    path = write(tmp_path / "k.safetensors", [0, 1, 2])
    config = LlamaConfig(
        num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, hidden_size=32
    )
    model = SimpleNamespace(config=config, dtype=torch.bfloat16, device=torch.device("meta"))
    compared = Compared(
        policy="h2o",
        budget=8,
        methods=list(METHODS),
        kernel_size=4,
        kernels=[path],
        train_sparsities=[0.05],
    )
    variants = {variant.method: variant for variant in compared.variants(model)}
    assert variants.keys() == METHODS.keys()
    for kernel in [*variants["less"].kernels, *variants["performer"].kernels]:
        assert {x.device.type for x in kernel.state_dict().values()} == {"meta"}
    assert all(kernel.compute_dtype == torch.bfloat16 for kernel in variants["less"].kernels)
    budgets = {method: variant.policy.budget for method, variant in variants.items()}
    assert budgets == {"baseline": 8, "baseline_plus": 10, "performer": 8, "less": 8}
    assert {variant.train_sparsity for variant in variants.values()} == {None, 0.05}


def test_kernels_of_no_method_are_refused(tmp_path):
    """Left out in silence, they would have been measured by nobody's knowledge."""
    config = LlamaConfig(num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2)
    model = SimpleNamespace(config=config, dtype=torch.float32, device=torch.device("cpu"))
    path = write(tmp_path / "k.safetensors", [0])
    given = Compared("h2o", 8, methods=["baseline"], kernels=[path], train_sparsities=[0.05])
    with pytest.raises(ConfigError, match="none of --methods is trained with"):
        given.variants(model)
    tensors, header = load_tensors(path, "kernels")
    del header["kernel"], header["kind"]
    save_tensors(path, tensors, "kernels", **header)
    with pytest.raises(DataError, match="does not say in its header"):
        given.variants(model)


def test_parts_join_into_what_one_job_writes(tmp_path):
    parts = [write(tmp_path / "a", [0, 1]), write(tmp_path / "b", [2])]
    whole = write(tmp_path / "whole", [0, 1, 2])
    for name, order in (("ab", parts), ("ba", parts[::-1])):
        join_kernels(order, tmp_path / name)
        assert (tmp_path / name).read_bytes() == whole.read_bytes()
    _, header = load_tensors(whole, "kernels")
    assert header["policy"] == {"name": "h2o"}
    assert header["layers"] == [0, 1, 2]
    assert header["losses"]["2"] == {"best": 2.0}


def test_parts_of_other_trainings_do_not_join(tmp_path):
    parts = [write(tmp_path / "a", [0]), write(tmp_path / "b", [1], scores="full")]
    with pytest.raises(DataError, match=r"b belongs to another training than .*a\."):
        join_kernels(parts, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match="nothing to join"):
        join_kernels([], tmp_path / "out")


def test_layers_that_are_missing(tmp_path):
    path = write(tmp_path / "k", [0, 2])
    with pytest.raises(DataError, match=r"holds kernels of layers 0\.\.2 \(2\), not of all 3"):
        load_kernels(path, HEADS, 3)
    with pytest.raises(DataError, match="not of all 2"):
        load_kernels(path)


def test_kernels_of_another_model(tmp_path):
    path = write(tmp_path / "k", [0])
    with pytest.raises(DataError, match=r"trained for 4 query heads on 2 of 8, .* 4 .* on 4 of 8"):
        load_kernels(path, Heads(4, 4, 8))
    with pytest.raises(DataError, match="not of all 2"):
        load_kernels(path, HEADS, 2)


def test_files_that_hold_no_kernels(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        load_kernels(tmp_path / "none")
    save_tensors(tmp_path / "samples", {"x": torch.ones(1)}, "samples")
    with pytest.raises(DataError, match="should hold kernels, but is samples"):
        load_kernels(tmp_path / "samples")
    path = write(tmp_path / "k", [0])
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DataError, match="damaged"):
        load_kernels(path)


def test_tensors_that_do_not_fit_their_header(tmp_path):
    path = write(tmp_path / "k", [0])
    tensors, header = load_tensors(path, "kernels")
    header.pop("kind")
    save_tensors(path, tensors, "kernels", **(header | {"build": BUILD | {"hidden_size": 8}}))
    with pytest.raises(DataError, match="layer 0 does not fit its header"):
        load_kernels(path)
