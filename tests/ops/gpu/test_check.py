"""The check of a GPU runs what it says, or says that there is none."""

import torch
from triton_cases import DEVICE

from benchmarks import gpu_check
from pipeline.transformer.interface import enable
from pipeline.transformer.weights import load_model


def test_every_operator_of_the_check_runs():
    sizes = gpu_check.Sizes(1, 4, 2, 16, 4, 8, 6, 24, torch.float32)
    operators = gpu_check.decode_operators(sizes, DEVICE)
    operators += gpu_check.sequence_operators(sizes, DEVICE)
    for operator in operators:
        operator.run()
        assert min(operator.moved, operator.operations) > 0
    assert len({operator.name for operator in operators}) == 12


def test_the_check_times_whole_steps():
    fields = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16,
              "num_attention_heads": 2}  # fmt: skip
    weights = {"random": {"architecture": "llama", "num_key_value_heads": 2, **fields}}
    model = enable(load_model(weights, device=DEVICE))
    with torch.no_grad():
        lines = gpu_check.steps(model, gpu_check.Setting(20, 4, 2), budget=8).splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["Full", "Baseline+,", "LESS"]
    assert all(float(line.split()[-1]) > 0 for line in lines[2:])


def test_the_check_says_that_there_is_no_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main() == 1
    assert capsys.readouterr().err.count("\n") == 1
