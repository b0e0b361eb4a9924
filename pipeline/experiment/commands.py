"""What each job of an experiment is told, as options of its step (``less-kv <step> --spec JSON``).

Files are no part of it: rules name those on the command line, where a storage puts its copies.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import resources
from ..policies import state_tokens
from ..runtime.code import code_of
from . import grid, latency
from .config import config_hash, settings_hash
from .grid import Cell, Training
from .kinds import KINDS, Options
from .methods import METHODS, SCORES, trained_methods
from .paths import dump_ranges, train_ranges

Config = Mapping[str, Any]

FIDELITY = "fidelity"
"""The task of what measures attention rows, and its step."""
RESOURCES = Path(str(resources.__path__[0]))


def as_json(options: Options) -> str:
    """Return options as one argument of a command; equal ones give equal text."""
    return json.dumps(options, sort_keys=True)


def convert(config: Config, model: str) -> Options:
    """Return what weights to convert."""
    return {"weights": config["models"][model]["weights"]}


def sample(config: Config, model: str, dataset: str, windows: int, packed: bool) -> Options:
    """Return which windows to cut."""
    return {
        "dataset": config["datasets"][dataset],
        "length": config["models"][model]["context"],
        "count": windows,
        "pack": packed,
        "seed": config["seed"],
    }


def dump(config: Config, model: str, part: int) -> Options:
    """Return which layers to dump."""
    return {"layers": dump_ranges(config, model)[part], **_model(config, model)}


def train(config: Config, training: Training, part: int) -> Options:
    """Return which kernels to train, and how."""
    own, size = config["train"], training.size
    sizes = own["kernel"] | ({} if size is None else {"kernel_size": size})
    return {
        "layers": train_ranges(config, training.model)[part],
        "policy": training.policy,
        "budget": grid.budget(config, training.model, training.sparsity),
        "scores": config["grid"]["scores"],
        "kernel": training.kernel,
        "sizes": sizes,
        "recipe": own["recipe"],
        "on_harm": own["on_harm"],
        "compute_dtype": own["compute_dtype"],
        "device": config["device"],
        "seed": config["seed"],
    }


def collect(training: Training) -> Options:
    """Return what the loss curves of a training are about."""
    label = {
        "model": training.model,
        "policy": training.policy,
        "train_sparsity": training.sparsity,
    }
    return {"label": label}


def prompts(config: Config, cell: Cell) -> Options:
    """Return what the prompts of a cell are made of."""
    task, datasets = config["tasks"][cell.task], config["datasets"]
    lengths = config["ablations"]["prompt_lengths"]
    options: Options = {
        "dataset": datasets[task["dataset"]],
        "template": task["template"],
        "count": task["samples"],
        "room": config["models"][cell.model]["context"] - task["max_new_tokens"],
        "seed": config["seed"],
    }
    if cell.study == "prompt_length":  # of a set length, without examples
        longest = max(lengths["lengths"])
        return options | {"count": lengths["samples"], "cut": cell.setting, "longest_cut": longest}
    if task["demonstrations"]:
        options["shots"] = task["demonstrations"]
        options["shots_from"] = datasets[task["demonstration_dataset"]]
    return options


def measure(config: Config, cell: Cell) -> Options:
    """Return what a cell of a task, or of fidelity, compares, and how its rows are labelled."""
    task = config["tasks"].get(cell.task)
    own = KINDS[task["kind"]].options(config, cell.model, task) if task else {}
    return {
        **_model(config, cell.model),
        **own,
        **_compared(config, cell),
        "label": _label(config, cell),
    }


def maps(config: Config, model: str) -> Options:
    """Return which heads to show, under which policies."""
    shown = config["maps"]
    return {
        **_model(config, model),
        "heads": [f"{layer}:{head}" for layer, head in shown["heads"]],
        "policies": shown["policies"],
        "method": map_method(config),
        "budget": grid.budget(config, model, shown["sparsity"]),
        "scores": config["grid"]["scores"],
    }


def map_method(config: Config) -> str:
    """Return the method whose kernels maps show: the grid's first that is trained."""
    trained = trained_methods()
    return next((name for name in config["grid"]["methods"] if name in trained), trained[0])


def map_trainings(config: Config, model: str) -> list[Training]:
    """Return what the kernels of the maps come from."""
    shown, kernel = config["maps"], METHODS[map_method(config)].kernel
    assert kernel is not None
    return [Training(model, kernel, policy, shown["sparsity"]) for policy in shown["policies"]]


def time(config: Config, model: str, name: str) -> Options:
    """Return what a setting of the latency study compares."""
    study, setting = config["latency"], latency.Setting.of(name)
    weights = config["models"][model]["weights"]
    sizes = config["train"]["kernel"]
    label = {"model": model, "task": name, "measured_by": measured_by(config, model, "latency")}
    return {
        **_model(config, model),
        # random weights are made on the device
        "weights": weights if "random" in weights else None,
        "setting": name,
        "contenders": [vars(c) for c in latency.contenders(config, model, setting)],
        "repetitions": study["repetitions"],
        "sizes": {key: sizes[key] for key in ("kernel_size", "hidden_size")},
        "seed": config["seed"],
        "forms": list(latency.FORMS[: 2 if study["generate"] else 1]),
        "label": label,
    }


def tabulate(config: Config) -> Options:
    """Return what measurements may say of themselves, and how their intervals are made."""
    return {
        "experiment": config["experiment"],
        "config_hash": config_hash(config),
        "labels": own_labels(config),
        "seed": config["seed"],
        "bootstrap": config["bootstrap"],
    }


def compare(config: Config) -> Options:
    """Return what of the configuration decides how numbers differ from the paper's."""
    keys = ("models", "train", "grid", "tasks", "latency")
    return {"config": {key: config[key] for key in keys}}


def _model(config: Config, model: str) -> Options:
    """Return how a model runs."""
    return {"dtype": config["models"][model]["dtype"], "device": config["device"]}


def _compared(config: Config, cell: Cell) -> Options:
    """Return the options of :func:`pipeline.runtime.options.add_compared` but kernels and label."""
    if cell.policy is None or cell.sparsity is None:
        return {}
    own = config["train"]["kernel"]["kernel_size"]
    size, budget = own, grid.budget(config, cell.model, cell.sparsity)
    if cell.study == "kernel_size" and cell.setting is not None:
        size = cell.setting  # the budget pays for a larger state
        budget -= state_tokens(size) - state_tokens(own)
    scores = config["grid"]["scores"]
    if cell.study == "scores" and cell.setting is not None:
        scores = SCORES[cell.setting]
    return {
        "policy": cell.policy,
        "budget": budget,
        "scores": scores,
        "methods": grid.methods_of(config, cell.study),
        "seed": config["seed"],
        "kernel_size": size,
        "train_sparsities": [t.sparsity for t in grid.trainings_of(config, cell)],
    }


def _label(config: Config, cell: Cell) -> Options:
    """Return the columns that say what a file of measurements is about."""
    return {
        "model": cell.model,
        "task": cell.task,
        "sparsity": cell.sparsity,
        "study": cell.study,
        "setting": cell.setting,
        "measured_by": measured_by(config, cell.model, cell.task, cell.policy is not None),
    }


def measured_by(config: Config, model: str, what: str, policy: bool = True) -> str:
    """Return what all measurements of one thing share in a run, as a hash.

    Args:
        what: a task, ``fidelity`` or ``latency``.
        policy: False for the full cache, which knows neither seeds nor trainings.
    """
    tasks = config["tasks"]
    step = KINDS[tasks[what]["kind"]].step if what in tasks else what
    more: dict[str, Any] = {}
    code: list[str] = []
    if what == "latency":  # whose kernels are untrained
        more = {"seed": config["seed"], "kernel": config["train"]["kernel"]}
    elif policy:
        more = {"seed": config["seed"]}
        more |= {key: config["grid"][key] for key in ("scores", "methods")}
        if grid.needs_training(config):
            more, code = more | config["train"], [code_of("train")]
    return settings_hash(config, model, what, more, code_of(step), *code)


def own_labels(config: Config) -> dict[str, list[str]]:
    """Return what the columns of measurements may say, by column."""
    models, tasks = config["models"], config["tasks"]
    settings = [setting.name for setting in latency.settings(config)]
    measured = [*tasks, *(what for what in (FIDELITY, "latency") if config[what])]
    hashes = {
        measured_by(config, model, what, policy)
        for model in models
        for what in measured
        for policy in (True, False)
    }
    known = {
        "model": models,
        "task": [*tasks, FIDELITY, *settings],
        "policy": config["grid"]["policies"],
        "measured_by": hashes,
    }
    return {column: sorted(names) for column, names in known.items()}


def task_definition(config: Config, task: str) -> str:
    """Return the text of a task that is a file of ours, so that a change of it is seen."""
    path = RESOURCES / "tasks" / f"{config['tasks'][task]['task']}.yaml"
    return path.read_text() if path.is_file() else ""
