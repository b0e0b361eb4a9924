"""Attention features on disk."""

import torch

from pipeline.__main__ import main
from pipeline.steps import dump
from pipeline.storage.features import layer_file
from pipeline.storage.tensors import save_tensors
from pipeline.transformer.interface import attention_layers
from pipeline.transformer.weights import (
    load_model,
    materialise,
)

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def random_weights(architecture="llama", seed=0, **fields):
    return {"random": {"architecture": architecture, **SMALL, **fields}, "seed": seed}


def test_dumping_some_layers_runs_no_later_ones(tmp_path, monkeypatch):
    """And gives the bytes of dumping all."""
    model = tmp_path / "model"
    materialise(random_weights(num_hidden_layers=3), model)
    tokens = torch.arange(3 * 16, dtype=torch.int32).reshape(3, 16)
    save_tensors(tmp_path / "samples", {"tokens": tokens}, "samples")
    ran = []

    def watched(*args):
        loaded = load_model(*args)
        for index, layer in enumerate(attention_layers(loaded)):
            layer.register_forward_pre_hook(lambda *_, index=index: ran.append(index))
        return loaded

    monkeypatch.setattr(dump, "load_model", watched)
    for start, stop in ((0, 3), (0, 1), (1, 2)):
        ran.clear()
        words = ["--model", str(model), "--samples", str(tmp_path / "samples"), "--layers"]
        out = tmp_path / f"{start}-{stop}"
        assert main(["dump", *words, str(start), str(stop), "--out", str(out)]) == 0
        assert set(ran) == set(range(stop))
        assert len(ran) == 2 * stop  # two batches
        for layer in range(start, stop):
            expected = layer_file(tmp_path / "0-3", layer).read_bytes()
            assert layer_file(out, layer).read_bytes() == expected
