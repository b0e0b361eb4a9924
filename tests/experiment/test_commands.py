"""What jobs are told: as options that their steps' own parsers read."""

import argparse
import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.__main__ import with_options
from pipeline.experiment import commands, grid, paths
from pipeline.experiment.config import complete, load_config
from pipeline.experiment.kinds import KINDS
from pipeline.experiment.methods import METHODS
from pipeline.policies import state_tokens

ROOT = Path(__file__).parents[2]
EXPERIMENTS = [ROOT / "config.yaml", *sorted((ROOT / "experiments").glob("*.yaml"))]
FILES = {
    "convert": ["--out", "o"],
    "sample": ["--model", "m", "--out", "o"],
    "dump": ["--model", "m", "--samples", "s", "--out", "o"],
    "train": ["--features", "f", "--resume", "r", "--out", "o", "--curves", "c"],
    "collect": ["--kernels", "k", "--curves", "c", "--out", "o", "--curves-out", "d"],
    "prompts": ["--model", "m", "--out", "o"],
    "evaluate": ["--model", "m", "--samples", "s", "--out", "o"],
    "fidelity": ["--model", "m", "--samples", "s", "--out", "o"],
    "summaries": ["--model", "m", "--prompts", "p", "--resume", "r", "--out", "o"],
    "harness": ["--model", "m", "--resume", "r", "--out", "o"],
    "maps": ["--model", "m", "--samples", "s", "--out", "o", "--spectrum", "s"],
    "latency": ["--out", "o", "--operators", "p"],
    "tabulate": ["--cells", "c", "--out", "o"],
    "compare": ["--tidy", "t", "--out", "o"],
}
"""The files that rules give each step beside its specification."""


@pytest.fixture
def tiny():
    return load_config(ROOT / "experiments" / "falcon_tiny.yaml")


def parsed(step, options):
    """What the step makes of a specification."""
    parser = argparse.ArgumentParser()
    importlib.import_module(f"pipeline.steps.{step}").add_arguments(parser)
    return parser.parse_args(with_options(["--spec", commands.as_json(options), *FILES[step]]))


def jobs(config):
    """(step, options) of one job of each sort and of every measured cell."""
    model = next(iter(config["models"]))
    yield "convert", commands.convert(config, model)
    yield "dump", commands.dump(config, model, 0)
    for user in paths.readers_of_windows(config):
        yield "sample", commands.sample(config, model, user["dataset"], 3, user["pack"])
    for training in grid.trainings(config):
        yield "train", commands.train(config, training, 0)
        yield "collect", commands.collect(training)
    for cell in grid.task_cells(config):
        kind = KINDS[config["tasks"][cell.task]["kind"]]
        yield kind.step, commands.measure(config, cell)
        if kind.prompts:
            yield "prompts", commands.prompts(config, cell)
    if config["fidelity"]:
        for cell in grid.policy_cells(config, commands.FIDELITY):
            yield "fidelity", commands.measure(config, cell)
    if config["maps"]:
        yield "maps", commands.maps(config, model)
    for setting in commands.latency.settings(config):
        yield "latency", commands.time(config, model, setting.name)
    yield "tabulate", commands.tabulate(config)
    yield "compare", commands.compare(config)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_step_reads_what_it_is_told(path):
    for step, options in jobs(load_config(path)):
        args = vars(parsed(step, options))
        for name, value in options.items():
            if value not in (None, [], False) and name not in ("setting", "heads"):
                read = args[name]
                assert list(read) == list(value) if isinstance(value, tuple) else read == value


def test_a_larger_state_is_paid_for_by_the_budget(tiny):
    cells = [cell for cell in grid.study_cells(tiny) if cell.study == "kernel_size"]
    own = tiny["train"]["kernel"]["kernel_size"]
    for cell in cells:
        options = commands.measure(tiny, cell)
        whole = grid.budget(tiny, cell.model, cell.sparsity)
        assert options["kernel_size"] == cell.setting
        assert options["budget"] + state_tokens(cell.setting) == whole + state_tokens(own)
        assert options["methods"] == ["less"]
    assert {cell.setting for cell in cells} == {4, 8}


def test_studies_measure_what_they_vary(tiny):
    (scores,) = [cell for cell in grid.study_cells(tiny) if cell.study == "scores"]
    assert commands.measure(tiny, scores)["scores"] != tiny["grid"]["scores"]
    lengths = [c for c in grid.study_cells(tiny) if c.study == "prompt_length"]
    assert {commands.prompts(tiny, cell)["cut"] for cell in lengths} == {80, 96}
    assert {commands.prompts(tiny, cell)["longest_cut"] for cell in lengths} == {96}
    compared = [commands.measure(tiny, cell).get("methods") for cell in lengths]
    assert compared == [None, ["baseline_plus", "less"]] * 2


def test_the_full_cache_knows_neither_policy_nor_seed(tiny):
    for cell in grid.task_cells(tiny):
        options = commands.measure(tiny, cell)
        assert ("policy" in options) == (cell.policy is not None)
        assert ("seed" in options) == (cell.policy is not None)


def test_what_measured_a_file_changes_with_what_it_depends_on(tiny):
    (model,) = tiny["models"]

    def hashes(config):
        config = complete(config)
        return {
            (what, policy): commands.measured_by(config, model, what, policy)
            for what in config["tasks"]
            for policy in (True, False)
        }

    before = hashes(tiny)
    assert len(set(before.values())) == len(before)
    tiny["train"]["recipe"]["epochs"] += 1
    after = hashes(tiny)
    assert {policy for (_, policy), digest in after.items() if digest != before[_, policy]} == {
        True
    }


def test_options_as_words():
    spec = {"a": 1, "some_text": "-x y", "none": None, "no": False, "yes": True, "empty": [],
            "list": [1, 2.5, "b"], "object": {"k": [1]}, "objects": [{"k": 1}]}  # fmt: skip
    assert with_options(["step", "--spec", json.dumps(spec), "--a", "2"]) == [
        "step", "--a=1", "--some-text=-x y", "--yes", "--list", "1", "2.5", "b",
        '--object={"k": [1]}', '--objects=[{"k": 1}]', "--a", "2",
    ]  # fmt: skip
    assert with_options(["step", "--a", "1"]) == ["step", "--a", "1"]


# --- names of files --------------------------------------------------------------------------


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_no_two_jobs_write_one_file(path):
    config = load_config(path)
    names = paths.Paths.of(config)
    files = paths.measured(config)
    files += [names.kernels(training) for training in grid.trainings(config)]
    assert len(files) == len(set(files))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_names_lead_back_to_what_they_name(path):
    config = load_config(path)
    for training in grid.trainings(config):
        again = grid.Training.of(training.model, training.kernel, training.name)
        assert again == training
    for cell in grid.task_cells(config):
        assert grid.Cell.of(cell.model, cell.task, cell.name) == cell


def test_a_sparsity_of_many_digits_is_a_name():
    cell = grid.Cell("m", "t", "h2o", 1e-05)
    assert grid.Cell.of("m", "t", cell.name) == cell
    assert grid.Cell.of("m", "t", "lambda-0.5-S1") == grid.Cell(
        "m", "t", "lambda", 0.5, "scores", 1
    )


def test_a_second_trained_kernel_is_a_row_of_methods(tiny, monkeypatch):
    """It has trainings and files of its own, and is compared; the first one keeps its."""
    other = replace(METHODS["less"], title="Other", kernel="other")
    monkeypatch.setitem(METHODS, "other", other)
    names = paths.Paths.of(tiny)
    before = {names.kernels(training) for training in grid.trainings(tiny)}
    tiny["grid"]["methods"] = [*tiny["grid"]["methods"], "other"]
    after = {names.kernels(training) for training in grid.trainings(tiny)}
    assert before < after
    assert {path.parent.name for path in after - before} == {"other"}
    assert {path.name for path in after - before} == {path.name for path in before}
    cell = next(cell for cell in grid.task_cells(tiny) if cell.policy and cell.study == grid.GRID)
    kernels = [training.kernel for training in grid.trainings_of(tiny, cell)]
    assert kernels == ["less"] * (len(kernels) // 2) + ["other"] * (len(kernels) // 2)
    options = commands.measure(tiny, cell)
    assert len(options["train_sparsities"]) == len(kernels)
    assert "other" in options["methods"]
