"""The latency study: what is timed, what becomes of it, and what stands where memory runs out."""

import argparse
import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt

from pipeline.errors import ConfigError
from pipeline.experiment.config import complete, load_config
from pipeline.experiment.latency import FORMS, Setting, contenders, settings
from pipeline.measure import latency, operators, step_parts
from pipeline.policies import get_policy
from pipeline.report import figures as plot
from pipeline.report import tables
from pipeline.steps import latency as latency_step
from pipeline.steps import tabulate as tabulate_step
from pipeline.transformer.weights import load_model

ROOT = Path(__file__).parents[2]
WEIGHTS = {
    "random": {
        "architecture": "llama", "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    }
}  # fmt: skip
CONTENDERS = [
    {"method": "full"},
    {"method": "baseline_plus", "policy": "h2o", "sparsity": 0.1, "budget": 12},
    {"method": "less", "policy": "h2o", "sparsity": 0.1, "budget": 8},
]
SETTINGS = ["16+4x1", "16+4x2", "28+4x1"]


def measure(folder, setting, **changes):
    """Files of one setting: times and operators."""
    paths = folder / f"{setting}.parquet", folder / f"{setting}.operators.parquet"
    options = {
        "weights": json.dumps(WEIGHTS), "setting": setting, "repetitions": 2,
        "contenders": json.dumps(CONTENDERS), "sizes": '{"kernel_size": 8, "hidden_size": 8}',
        "label": json.dumps({"model": "tiny", "task": setting}), "out": paths[0],
        "operators": paths[1], **changes,
    }  # fmt: skip
    parser = argparse.ArgumentParser()
    latency_step.add_arguments(parser)
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    latency_step.run(parser.parse_args(words))
    return paths


def gathered(folder, files):
    """The tidy table of some files of times."""
    parser = argparse.ArgumentParser()
    tabulate_step.add_arguments(parser)
    out = folder / "tidy.parquet"
    words = ["--cells", *map(str, files), "--experiment", "e", "--config-hash", "c"]
    tabulate_step.run(parser.parse_args([*words, "--out", str(out)]))
    return pd.read_parquet(out)


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Neither a large copy nor a full collection of garbage between repetitions."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(operators.COPIED, "cpu", 2**20)
        patched.setattr(latency.gc, "collect", lambda: None)
        yield


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """(tidy table, operators) of three settings."""
    folder = tmp_path_factory.mktemp("latency")
    files = [measure(folder, setting) for setting in SETTINGS]
    found = pd.concat([pd.read_parquet(path) for _, path in files], ignore_index=True)
    return gathered(folder, [path for path, _ in files]), found


# --- the study --------------------------------------------------------------------------------


def test_every_method_has_every_number(study):
    tidy, _ = study
    whole = {"latency_s", "throughput", "peak_memory_bytes"}
    whole |= {f"generate_{name}" for name in whole} | {"step_ms.total", "step_ms.decoding"}
    extra = {
        "full": set(),
        "baseline_plus": {"step_ms.eviction"},
        "less": {f"step_ms.{part}" for part in step_parts.ABLATIONS},
    }
    for (task, method), rows in tidy.groupby(["task", "method"]):
        assert set(rows["metric"]) == whole | extra[method], (task, method)
    assert (tidy["n"] == 2).all()
    whole = tidy[tidy["metric"].isin(whole - {"step_ms.decoding"})]
    assert (whole["low"] <= whole["value"]).all()
    assert (whole["value"] <= whole["high"]).all()
    assert (whole["low"] > 0).all()
    assert set(tidy.loc[tidy["method"] == "less", "train_sparsity"]) == {0.1}


def test_throughput_and_parts_follow_from_the_times(study):
    tidy, _ = study
    rows = tidy[(tidy["task"] == "16+4x2") & (tidy["method"] == "less")].set_index("metric")
    value = rows["value"]
    assert value["throughput"] * rows["low"]["latency_s"] <= 8 * 1.0001
    assert value["throughput"] * rows["high"]["latency_s"] >= 8 * 0.9999
    parts = value[[name for name in value.index if name.startswith("step_ms.")]]
    assert parts.drop("step_ms.total").sum() == pytest.approx(value["step_ms.total"])


def test_tables_and_figures_show_it(study):
    tidy, found = study
    measured = tables.Measured(tidy, pd.DataFrame(), {}, found)
    six = tables.view("table6", measured)
    assert list(six["task"].unique()) == SETTINGS
    assert list(six["method"][:3]) == ["Full cache", "Baseline+", "LESS (10 %)"]
    for title in ("latency (s)", "latency (s) by generate", "peak memory (GiB)"):
        assert (six[title] != "").all()
    eight = tables.view("table8", measured)
    assert (eight.loc[eight["method"] == "LESS (10 %)", "kernels (ms)"] != "").all()
    listed = tables.view("operators", measured)
    assert len(listed) == len(found) == 3 * 8
    assert (listed["floor (ms)"] >= 0).all()
    assert len(tables.view("conditions", measured)) == 3
    panels = {"throughput": 1, "latency": 1, "memory": 1, "step_parts": 3}
    for name, count in panels.items():
        figure = plot.drawn(name, plot.Measured(tidy, pd.DataFrame()))
        assert len(figure.axes) == count, name
        plt.close(figure)


def test_bytes_are_those_of_the_tensors(study):
    _, found = study
    rows = found[found["task"] == "28+4x1"].set_index("operator")["bytes"]
    assert rows["attention, full cache"] == 2 * 2 * (2 * 32 * 8) * 4  # layers, k and v, G S D
    weights = sum(p.nbytes for p in model().parameters())
    embedding = model().get_input_embeddings().weight.nbytes
    assert rows["model without attention"] == weights - embedding
    plus = rows["attention, Baseline+, H2O 10 %"]
    assert plus > 2 * 2 * (2 * 13 * 8) * 4
    assert rows["decode step, Baseline+, H2O 10 %"] == plus + rows["model without attention"]
    assert rows["feature maps, LESS"] == 2 * (6 * 8 * (8 + 8 + 8)) * 4  # W1, W2, the last


@cache
def model():
    return load_model(WEIGHTS)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("x"), MemoryError(), RuntimeError("you can't allocate memory")]
)
def test_errors_that_mean_out_of_memory(error):
    def run():
        raise error

    assert latency.within_memory(run, torch.device("cpu")) is None


def test_out_of_memory_is_a_result(tmp_path, monkeypatch):
    tried = []

    def engine(bench, contender):
        if contender.method == "full":
            tried.append(contender)
            raise MemoryError
        return {"seconds": 2.0, "step_seconds": 0.5}

    monkeypatch.setitem(latency.RUNS, "engine", engine)
    monkeypatch.setattr(latency, "parts_of", lambda bench, contender: {})
    times, found = measure(tmp_path, "16+4x2", forms="engine", repetitions=3)
    assert len(tried) == 1, "it would fail again"
    tidy = gathered(tmp_path, [times])
    full = tidy[tidy["method"] == "full"]
    assert set(full["metric"]) == {"latency_s", "throughput", "peak_memory_bytes"}
    assert full["value"].isna().all()
    assert (full["n"] == 0).all()
    six = tables.view("table6", tables.Measured(tidy, pd.DataFrame())).set_index("method")
    assert set(six.loc["Full cache", ["latency (s)", "throughput (tokens/s)"]]) == {"OOM"}
    assert six.loc["LESS (10 %)", "latency (s)"] == "2.0 [2.0, 2.0]"
    assert six.loc["LESS (10 %)", "throughput (tokens/s)"] == "4.0 [4.0, 4.0]"
    steps = set(pd.read_parquet(found)["operator"])
    assert "decode step, Full cache" not in steps
    assert "decode step, LESS (10 %), H2O 10 %" in steps


def test_other_errors_are_errors(tmp_path, monkeypatch):
    def engine(bench, contender):
        raise RuntimeError("shapes differ")

    monkeypatch.setitem(latency.RUNS, "engine", engine)
    with pytest.raises(RuntimeError, match="shapes differ"):
        measure(tmp_path, "16+4x1", forms="engine")


def test_clocks_of_a_gpu(monkeypatch):
    line = "1980 MHz, 2619 MHz, 1980 MHz, 2619 MHz, 570.1\n"
    done = SimpleNamespace(stdout=line)
    monkeypatch.setattr(latency.subprocess, "run", lambda *args, **options: done)
    found = latency.gpu_clocks(torch.device("cuda"))
    assert found == "cores 1980 MHz of 1980 MHz, memory 2619 MHz of 2619 MHz; driver 570.1"

    def absent(*args, **options):
        raise FileNotFoundError

    monkeypatch.setattr(latency.subprocess, "run", absent)
    assert latency.gpu_clocks(torch.device("cuda")) == "unknown"


def test_ablations_leave_out_what_they_say():
    """The stack that has nothing to read evicts and takes in, as the one that reads."""
    policy, few = get_policy("h2o", 8), model()
    kernels = operators.untrained_kernels("less", few, kernel_size=4, hidden_size=8)
    q, k, v = operators.random_token(few, 2)
    states = {}
    for at in (8, 30):
        less = operators.LessCache(few.config, policy, kernels)
        plain = operators.LessCache(few.config, policy)
        torch.manual_seed(0)
        operators.filled(less, 2, at, k)
        torch.manual_seed(0)
        operators.filled(plain, 2, at, k)
        less.layers[0].state.z += 1
        less.layers[0].state.H += 1
        outs = [cache.layers[0].read_tokens(q, k, v) for cache in (less, plain)]
        assert torch.equal(*outs) == (at == 8)
        states[at] = less.layers[0].state.z - 1
        assert (states[at] != 0).any()
    step = operators.pinned_step(less, q, k, v)
    for _ in range(40):  # beyond the budget there is still something to evict
        step()
    assert (less.layers[0].slots.positions >= 0).sum() == 2 * 2 * 8


# --- what is asked for ------------------------------------------------------------------------


def asked(**changes):
    """The study's configuration on a CPU with other values of `latency`."""
    config = load_config(ROOT / "experiments" / "latency_cpu.yaml")
    config["latency"] |= changes
    return config


def test_settings_are_named_as_the_papers():
    assert Setting.of("2048+2048x24") == Setting(2048, 2048, 24)
    assert Setting(2048, 2048, 24).name == "2048+2048x24"
    assert FORMS == ("engine", "generate")


def test_sparsities_are_of_the_longer_of_context_and_sequence():
    rows = [{"prompt": 5000, "new_tokens": 5000, "batch": 4, "policies": ["h2o", "tova"]},
            {"prompt": 1000, "new_tokens": 50, "batch": 1}]  # fmt: skip
    config = asked(settings=rows)
    long, short = settings(config)
    found = list(contenders(config, "smollm2-135m", long))
    assert [c.method for c in found] == ["full", *["baseline_plus", "less"] * 2]
    assert [c.policy for c in found[1:]] == ["h2o", "h2o", "tova", "tova"]
    assert [c.budget for c in found[1:3]] == [504, 500]
    assert [c.budget for c in contenders(config, "smollm2-135m", short)] == [None, 106, 102]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"policies": ["snapkv"]}, "latency.policies: snapkv is not of the grid"),
        ({"methods": ["les"]}, "latency.methods: .*did you mean 'less'"),
        ({"sparsities": [1.5]}, r"latency.sparsities: 1.5 is not in \(0, 1\)"),
        ({"settings": [{"prompt": 100, "new_tokens": 2, "batch": 1}]}, "does not fill a budget"),
        (
            {"settings": [{"prompt": 600, "new_tokens": 2, "batch": 1},
                          {"prompt": 600, "new_tokens": 2, "batch": 1, "policies": ["h2o"]}]},
            "600\\+2x1 is there twice",
        ),
        ({"settings": [{"prompt": 600, "new_tokens": 1, "batch": 1}]}, "less than the minimum"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        complete(asked(**changes))
