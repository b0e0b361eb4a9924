"""What an experiment expands to: cells, trainings, studies, and what they are expected to take."""

import re
from functools import reduce
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.experiment import cost as expectations
from pipeline.experiment import grid
from pipeline.experiment.config import complete, load_config

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture
def tiny():
    return load_config(EXPERIMENTS / "falcon_tiny.yaml")


def test_trainings_are_those_of_each_policy_then_those_of_other_kernel_sizes(tiny):
    found = [t.name for t in grid.trainings(tiny)]
    assert found == [
        "h2o-0.1", "h2o-0.2", "lambda-0.1", "h2o-0.1-R4",
    ]  # fmt: skip


def test_studies_stand_beside_the_grid(tiny):
    cells = [c for c in grid.task_cells(tiny) if c.study != grid.GRID]
    assert [(c.task, c.policy, c.study, c.setting) for c in cells] == [
        ("text", "h2o", "kernel_size", 4),
        ("text", "h2o", "kernel_size", 8),
        ("notes", None, "prompt_length", 80),
        ("notes", "h2o", "prompt_length", 80),
        ("notes", None, "prompt_length", 96),
        ("notes", "h2o", "prompt_length", 96),
        ("text", "h2o", "scores", 1),
    ]
    for cell in cells:
        assert grid.Cell.of(cell.model, cell.task, cell.name) == cell
    assert len({(c.task, c.policy, c.suffix) for c in grid.task_cells(tiny)}) == 14


def test_prompt_lengths_have_kernels_of_their_own_sparsity(tiny):
    grids = [x for x in grid.trainings(tiny) if x.size is None]
    tiny["ablations"]["prompt_lengths"]["sparsity"] = 0.25
    (model,) = tiny["models"]
    own = [x for x in grid.trainings(complete(tiny)) if x.size is None and x not in grids]
    assert own == [grid.Training(model, "less", "h2o", 0.25)]


def test_cells_by_policy_are_all_cells_with_the_full_cache_in_each(tiny):
    parts = {p: list(grid.cells_of_policy(tiny, p)) for p in tiny["grid"]["policies"]}
    whole = list(grid.task_cells(tiny))
    assert {cell for part in parts.values() for cell in part} == set(whole)
    full = [cell for cell in whole if cell.policy is None]
    for policy, part in parts.items():
        assert [cell for cell in part if cell.policy != policy] == full


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("kernel_sizes.task", "texts", "did you mean 'text'"),
        ("kernel_sizes.task", "notes", "not a task without summaries"),
        ("prompt_lengths.task", "text", "not a task of summaries"),
        ("kernel_sizes.sparsity", 0.3, "no kernels are trained for h2o at 0.3"),
        ("scores.sparsities", [0.3], "no kernels are trained for h2o at 0.3"),
        ("scores.policies", ["tova"], "'tova' is none of grid.policies"),
        ("prompt_lengths.sparsity", 1.5, "maximum of 1"),
        ("prompt_lengths.lengths", [120], "do not fit into the context of 128"),
        ("kernel_sizes.sizes", [32], "takes the whole budget"),
        ("kernel_sizes.sizes", [3], "multiple of 2"),
    ],
)
def test_studies_that_cannot_be_are_refused(tiny, place, value, message):
    study, key = place.split(".")
    tiny["ablations"][study][key] = value
    with pytest.raises(ConfigError, match=message):
        complete(tiny)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_sparsities": {"h2o": [0.1]}}, "none for lambda"),
        ({"train_sparsities": {"h2o": [0.1], "lambda": []}}, "lambda"),
        ({"train_sparsities": {"h2o": [2.0], "lambda": [0.1]}}, r"2.0 is not in \(0, 1\)"),
    ],
)
def test_every_policy_needs_train_sparsities(tiny, change, message):
    tiny["grid"] |= change
    with pytest.raises(ConfigError, match=message):
        complete(tiny)


def test_maps_need_heads_and_kernels_that_are_there(tiny):
    for change, message in (
        ({"sparsity": 0.2}, "no kernels are trained for lambda at 0.2"),
        ({"heads": [[2, 0]]}, "has no layer 2"),
        ({"heads": [[0, 4]]}, "has no head 4; its heads are 0 to 3"),
    ):
        with pytest.raises(ConfigError, match=message):
            complete(tiny | {"maps": tiny["maps"] | change})


# --- expectations ------------------------------------------------------------------------------


def test_features_of_llama_2_7b_take_48_gib_a_layer():
    config = load_config(EXPERIMENTS / "llama2_7b.yaml")
    assert expectations.feature_bytes(config, "llama2-7b") == 48 * 2**30
    assert expectations.bundles_at_once(config) == 2
    assert expectations.peak_disk(config) == 192 * 2**30
    unbound = config | {"dump": config["dump"] | {"disk_gib": None}}
    assert expectations.peak_disk(unbound) == 32 * 48 * 2**30
    disk, memory, hours = expectations.expectations(config)
    assert "192.0 GiB on disk at once (at most 200 allowed)" in disk
    assert "48.0 GiB of features a layer; about 15 GiB of GPU memory (latency: up to" in memory
    stages = re.findall(r"(\w+) (\d+\.\d)", hours)
    assert [name for name, _ in stages] == ["dump", "train", "harness", "summaries", "latency"]
    whole = int(re.search(r"about (\d+) GPU hours", hours)[1])
    assert whole == pytest.approx(sum(float(value) for _, value in stages), abs=1)


def test_expectations_need_shapes(tiny):
    assert len(expectations.expectations(tiny)) == 3
    tiny["models"]["falcon-untrained"]["shape"] = None
    assert expectations.expectations(tiny | {"dump": tiny["dump"] | {"disk_gib": None}}) == []
    with pytest.raises(ConfigError, match=r"needs models\.falcon-untrained\.shape"):
        complete(tiny)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"keep": True}, "keep: false"), ({"disk_gib": 1e-6}, "do not hold one bundle")],
)
def test_disk_bounds_that_cannot_be_kept_are_refused(tiny, change, message):
    tiny["dump"] |= change
    with pytest.raises(ConfigError, match=message):
        complete(tiny)


def test_a_training_reads_no_more_bundles_than_the_disk_holds(tiny):
    """Or features would wait for a training that waits for them."""
    assert expectations.bundles_at_once(tiny) == 1
    tiny["train"]["layers_per_job"] = 2
    with pytest.raises(ConfigError, match="hold 1 bundles of layers, and a job that trains 2 lay"):
        complete(tiny)
    tiny["dump"]["disk_gib"] *= 2
    complete(tiny)
    tiny["dump"]["disk_gib"] = 1000
    assert expectations.peak_disk(tiny) == 2 * expectations.feature_bytes(tiny, "falcon-untrained")


@pytest.mark.parametrize("study", ["kernel_sizes", "prompt_lengths"])
def test_a_study_of_less_needs_less(tiny, study):
    tiny["ablations"] = {study: tiny["ablations"][study]}
    tiny["grid"]["methods"] = ["baseline", "baseline_plus"]
    with pytest.raises(ConfigError, match=f"ablations.{study}: compares LESS"):
        complete(tiny)


def test_maps_are_of_the_grids_policies(tiny):
    """Also where kernels of another are named: nothing would train them."""
    tiny["grid"]["train_sparsities"]["tova"] = [0.1]
    tiny["maps"]["policies"] = ["tova"]
    with pytest.raises(ConfigError, match="maps: 'tova' is none of"):
        complete(tiny)


@pytest.mark.parametrize(
    ("place", "stage", "times"),
    [
        (("train", "recipe", "epochs"), "train", 2),
        (("dump", "layers_per_job"), "dump", 1 / 2),
        (("latency", "repetitions"), "latency", 2),
        (("tasks", "wikitext", "limit"), "harness", 2),
        (("tasks", "xsum", "samples"), "summaries", 2),
    ],
)
def test_hours_grow_with_what_is_asked_for(place, stage, times):
    config = load_config(EXPERIMENTS / "llama2_7b.yaml")
    config["ablations"] |= {"kernel_sizes": None, "prompt_lengths": None, "scores": None}
    config["tasks"] = {name: config["tasks"][name] for name in ("wikitext", "xsum")}
    config["tasks"]["wikitext"]["limit"] = 4
    before = expectations.seconds(config, "llama2-7b")
    *path, last = place
    reduce(dict.__getitem__, path, config)[last] *= 2
    after = expectations.seconds(config, "llama2-7b")
    assert after == before | {stage: pytest.approx(times * before[stage])}
    assert before[stage] > 0


def test_hours_by_hand():
    """Steps of one sequence read weights and cache; a prompt is read by every weight."""
    config = load_config(EXPERIMENTS / "llama2_7b.yaml")
    setting = {"prompt": 2048, "new_tokens": 2048, "batch": 24}
    config["latency"] |= {"settings": [setting], "methods": [], "repetitions": 1}
    config["latency"]["generate"] = False
    prompt = 24 * 2048 * 2 * (6.74e9 + 32 * 4096 * 2048) / 1e14
    step = (2 * 6.74e9 + 48 * 2**30) / 1e12 + 24 * 2 * 6.74e9 / 1e14
    found = expectations.seconds(config, "llama2-7b")["latency"]
    assert found == pytest.approx(2 * prompt + 2048 * step)
    too_large = config["latency"] | {"settings": [setting, setting | {"batch": 64}]}
    assert expectations.seconds(config | {"latency": too_large}, "llama2-7b")["latency"] == found


def test_a_task_of_unknown_length_is_named_unless_it_has_a_limit(tiny):
    tiny["tasks"]["quiz"] = {"kind": "harness", "task": "quiz", "limit": None, "num_fewshot": 0,
                             "max_words": None}  # fmt: skip
    assert expectations.expectations(tiny)[-1].endswith("not counted: quiz")
    counted = expectations.seconds(tiny, "falcon-untrained")["harness"]
    tiny["tasks"]["quiz"]["limit"] = 3
    assert "not counted" not in expectations.expectations(tiny)[-1]
    assert expectations.seconds(tiny, "falcon-untrained")["harness"] > counted


def test_studies_read_their_task_once_for_each_method_of_theirs(tiny):
    found = {(c.study, c.policy): grid.variants(tiny, c) for c in grid.task_cells(tiny)}
    methods = len(tiny["grid"]["methods"])
    assert found == {
        ("grid", None): 1, ("grid", "h2o"): methods + 1, ("grid", "lambda"): methods,
        ("kernel_size", "h2o"): 1, ("prompt_length", None): 1, ("prompt_length", "h2o"): 2,
        ("scores", "h2o"): methods,
    }  # fmt: skip
