"""Files from elsewhere: nothing of theirs runs, and what lies is refused."""

import os
import pickle

import pytest
import torch

from pipeline import __main__
from pipeline.errors import DataError
from pipeline.kernels import get_kernel
from pipeline.storage.tensors import load_tensors, save_tensors
from pipeline.training.checkpoint import load_kernels, save_kernels
from pipeline.transformer.shape import Heads

HEADS, BUILD = Heads(4, 2, 8), {"kernel_size": 4, "hidden_size": 16}


def kernel(seed=0):
    return get_kernel("less", **vars(HEADS), **BUILD, seed=seed)


class Trap:
    def __reduce__(self):
        return os.mkdir, (os.environ["LESS_KV_TRAP"],)


def test_a_pickle_is_refused_and_does_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LESS_KV_TRAP", str(tmp_path / "sprung"))
    for name, save in (("pickle", pickle.dump), ("torch", torch.save)):
        path = tmp_path / f"{name}.safetensors"
        with path.open("wb") as file:
            save({"layers.0.s1": Trap()}, file)
        with pytest.raises(DataError, match="is no file that this project wrote"):
            load_kernels(path, HEADS, 1)
        parts = [str(path), "--curves", str(path), "--out", str(tmp_path / "k")]
        words = ["collect", "--kernels", *parts, "--curves-out", str(tmp_path / "c")]
        assert __main__.main(words) == 1
        assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"heads": {"num_heads": 4, "num_kv_heads": 10**9, "head_dim": 8}},
        {"heads": {"num_heads": 4, "num_kv_heads": 2}},
        {"heads": "many"},
        {"build": BUILD | {"hidden_size": 10**12}},
        {"build": BUILD | {"kernel_size": 10**6}},
        {"build": BUILD | {"unknown": 1}},
        {"build": [1]},
    ],
    ids=str,
)
def test_headers_that_lie_are_refused_before_anything_is_built(tmp_path, change):
    path = tmp_path / "k.safetensors"
    save_kernels(path, {0: kernel()}, "less", HEADS, BUILD)
    tensors, header = load_tensors(path, "kernels")
    header.pop("kind")
    save_tensors(path, tensors, "kernels", **(header | change))
    with pytest.raises(DataError, match="layer 0 does not fit its header"):
        load_kernels(path)


def test_headers_that_say_nothing_are_refused(tmp_path):
    save_tensors(tmp_path / "k", {"x": torch.ones(1)}, "kernels")
    with pytest.raises(DataError, match="does not say in its header"):
        load_kernels(tmp_path / "k")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_kernels_that_are_not_finite_are_neither_written_nor_read(tmp_path, value):
    broken, path = kernel(), tmp_path / "k"
    with torch.no_grad():
        broken.psi_w3[0, 0, 0] = value
    with pytest.raises(DataError, match=r"kernel of layer 0.* not finite; train it again"):
        save_kernels(path, {0: broken}, "less", HEADS, BUILD)
    assert not path.exists()
    save_kernels(path, {0: kernel()}, "less", HEADS, BUILD)
    tensors, header = load_tensors(path, "kernels")
    tensors["layers.0.s2"][0] = value
    header.pop("kind")
    save_tensors(path, tensors, "kernels", **header)
    with pytest.raises(DataError, match="layer 0 holds numbers that are not finite"):
        load_kernels(path)
