"""The smoke experiment through Snakemake: made once, looked at, changed, and killed."""

import base64
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from html import unescape
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml
from checkouts import (
    ENVIRONMENT,
    ROOT,
    SMOKE,
    assert_same_results,
    checkout,
    command,
    finish,
    less,
    planned,
    run,
)
from helpers import browse, randn

from pipeline.report.contents import COMPARISON, FIGURES, PROVENANCE, TABLES, TEXTS
from pipeline.storage.features import layer_file
from pipeline.storage.tensors import save_tensors

EXPERIMENTS = sorted(path.name for path in (ROOT / "experiments").glob("*.yaml"))


def planned_beside(folder, tries=5):
    """As :func:`planned`, while a run is at work: Snakemake gives up over a file that just went."""
    try:
        return planned(folder)
    except AssertionError as error:
        if tries == 1 or "deleted it while Snakemake was running" not in str(error):
            raise
        return planned_beside(folder, tries - 1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A checkout in which the smoke experiment is finished; do not change it."""
    folder = checkout(tmp_path_factory.mktemp("smoke") / "less")
    finish(folder)
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished checkout to change."""
    return shutil.copytree(finished, tmp_path / "less")


# --- the whole chain -------------------------------------------------------------------------


def test_every_output_is_there(finished):
    results = finished / "results" / "smoke"
    expected = {f"tables/{name}.{form}" for name in TABLES for form in ("md", "csv", "tex", "html")}
    expected |= {f"figures/{name}.{form}" for name in FIGURES for form in ("svg", "png")}
    expected |= {"results.csv", "results.parquet", "curves.parquet", "config.json", "report.html"}
    expected |= {"operators.parquet"}
    expected |= {"provenance.html", "provenance.json"}
    expected |= {"examples.html", "examples.md", "paper_vs_ours.html", "paper_vs_ours.md"}
    found = {str(p.relative_to(results)) for p in results.rglob("*") if p.is_file()}
    assert found == expected
    assert all((results / name).stat().st_size > 20 for name in found)
    leftovers = [p for p in finished.rglob("*.partial*")]
    assert not leftovers
    assert not (
        finished / "scratch" / "smoke" / "unfinished" / "tiny" / "less" / "h2o-0.1"
    ).exists() or not [
        p for p in (finished / "scratch" / "smoke" / "unfinished").rglob("*.safetensors")
    ]


def test_tidy_table(finished):
    tidy = pd.read_parquet(finished / "results" / "smoke" / "results.parquet")
    assert list(tidy.columns) == [
        "experiment", "config", "commit", "study", "setting", "model", "task", "policy",
        "sparsity", "budget", "method", "train_sparsity", "layer", "metric", "value", "low", "high",
        "n", "seed",
    ]  # fmt: skip
    assert set(tidy["study"]) == {"grid"}
    assert set(tidy["experiment"]) == {"smoke"}
    assert set(tidy["model"]) == {"tiny"}
    perplexity = tidy[tidy["metric"] == "token_perplexity"]
    cells = perplexity.fillna({"policy": "-"}).groupby("policy")["method"].agg(list).to_dict()
    methods = ["baseline", "baseline_plus", "performer", "less"]
    assert cells == {"-": ["full"], "h2o": methods, "lambda": methods}
    assert set(perplexity["n"]) == {4}
    # an untrained model with 300 tokens knows nothing
    assert perplexity["value"].between(250, 350).all()
    # where the baseline scores as the full cache does, there is no gap to recover
    undefined = tidy[["low", "high"]].isna().any(axis=1)
    assert set(tidy.loc[undefined, "metric"]) <= {"recovered_gap"}
    assert set(tidy.loc[undefined, "task"]) <= {"questions", "notes", "text"}
    assert (tidy["low"] <= tidy["high"])[~undefined].all()
    answered = tidy[tidy["metric"] == "acc"]
    assert list(answered["method"]) == ["full", *methods]
    assert answered["value"].isin([0, 0.25, 0.5, 0.75, 1]).all()
    means = tidy[tidy["metric"].isin(["token_perplexity", "hellinger"])]
    assert (means["low"] <= means["value"] + 1e-9).all()
    assert (means["value"] <= means["high"] + 1e-9).all()
    # 10 % of 128 tokens, rounded down to an even number; R/2 more for baseline+
    budgets = perplexity.dropna(subset=["policy"]).groupby("method")["budget"].agg(set).to_dict()
    assert budgets == {m: {16 if m == "baseline_plus" else 12} for m in methods}
    less = tidy[tidy["method"] == "less"]
    assert set(less["train_sparsity"]) == {0.1}
    assert tidy.loc[tidy["method"] != "less", "train_sparsity"].isna().all()
    distance = tidy[tidy["metric"] == "hellinger"]
    assert set(distance["layer"]) == {0, 1}
    assert set(distance["n"]) == {2}
    assert distance["value"].between(0, 1).all()
    assert len(distance) == 2 * 2 * len(methods)
    csv = pd.read_csv(finished / "results" / "smoke" / "results.csv")
    pd.testing.assert_frame_equal(csv, tidy, check_dtype=False)


def test_provenance(finished):
    results = finished / "results" / "smoke"
    record = json.loads((results / "provenance.json").read_text())
    assert record["config"]["experiment"] == "smoke"
    assert record["config"]["train"]["recipe"]["learning_rate"] == 0.001, "defaults are recorded"
    tidy = pd.read_parquet(results / "results.parquet")
    assert set(tidy["config"]) == {record["config_hash"]}
    inputs = {name.removeprefix("scratch/smoke/") for name in record["inputs"]}
    assert {f"kernels/tiny/less/{name}-0.1.safetensors" for name in ("h2o", "lambda")} <= inputs
    assert {
        f"samples/tiny/{name}.safetensors" for name in ("train-4", "test-4", "test-2")
    } <= inputs
    assert {"models/tiny/model.safetensors", "prompts/tiny/notes.json"} <= inputs
    assert {f"tests/data/{name}.jsonl" for name in ("texts", "pairs", "questions")} <= inputs
    assert json.loads((results / "config.json").read_text()) == record["config"]


def test_logs_and_benchmarks_of_every_job(finished):
    for kind, folder in (("log", "logs/smoke"), ("tsv", "scratch/smoke/benchmarks")):
        found = {str(p.relative_to(finished / folder).with_suffix("")) for p in
                 (finished / folder).rglob(f"*.{kind}")}  # fmt: skip
        assert {
            "convert/tiny", "sample/tiny/train-4", "sample/tiny/test-4", "dump/tiny/part0",
            "train/tiny/less/h2o-0.1/part1", "collect/tiny/less/lambda-0.1",
            "evaluate/tiny/text/full", "evaluate/tiny/text/h2o-0.1", "fidelity/tiny/h2o-0.1",
            "prompts/tiny/notes",
            "summaries/tiny/notes/full", "summaries/tiny/notes/h2o-0.1", "examples", "tabulate",
            "harness/tiny/questions/full", "harness/tiny/questions/h2o-0.1",
            "tables", "plot", "compare", "provenance",
        } <= found  # fmt: skip


def test_nothing_to_do_twice(finished):
    assert planned(finished) == {}
    assert "Nothing to be done" in finish(finished)


def test_completed_config_is_the_same_experiment(finished):
    assert planned(finished, "results/smoke/config.json") == {}


# --- what a change reruns --------------------------------------------------------------------

SHOWN = {"tabulate": 1, "tables": 1, "plot": 1, "compare": 1, "provenance": 1, "page": 1}
WRITTEN = {"summaries": 1, "examples": 1} | SHOWN
MEASURED = {"evaluate": 2, "fidelity": 2, "harness": 1} | WRITTEN
TRAINED = {"train": 4, "collect": 2} | MEASURED
FULL = {"evaluate": 1}
FULL_WRITTEN = {"summaries": 1}
FULL_TEXT = {"prompts": 1} | FULL_WRITTEN
FULL_TASK = {"harness": 1}


def total(*jobs):
    """Jobs by rule, of several parts together."""
    return dict(sum(map(Counter, jobs), Counter()))


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        ("bootstrap", 300, SHOWN),
        ("description", "Another wording.", {"provenance": 1, "page": 1}),
        ("grid.test_sparsities", [0.1, 0.2], MEASURED),
        ("grid.methods", ["baseline", "baseline_plus", "less"], MEASURED),
        ("grid.methods", ["baseline"], MEASURED),
        ("grid.scores", "full", TRAINED),
        ("grid.train_sparsities", [0.1, 0.2], TRAINED),
        ("grid.policies", ["h2o", "lambda", "tova"],
         {"train": 2, "collect": 1, "evaluate": 1, "fidelity": 1} | SHOWN),
        ("train.recipe.epochs", 3, TRAINED),
        ("train.kernel.hidden_size", 8, TRAINED),
        ("train.layers_per_job", 2, TRAINED | {"train": 2}),
        ("tasks.text.windows", 5, total({"sample": 1, "evaluate": 2}, FULL, SHOWN)),
        ("train.sequences", 5, {"sample": 1, "dump": 1} | TRAINED),
        ("tasks.questions.limit", 5, total({"harness": 1}, FULL_TASK, SHOWN)),
        ("tasks.questions.policies", ["lambda"], {"harness": 1} | SHOWN),
        ("tasks.notes.samples", 4, total(WRITTEN, FULL_TEXT)),
        ("tasks.notes.temperature", 0, total(WRITTEN, FULL_WRITTEN)),
        ("tasks.notes.policies", ["h2o", "lambda"], WRITTEN),
        ("models.tiny.context", 64,
         total({"sample": 3, "dump": 1}, TRAINED, FULL, FULL_TEXT, FULL_TASK)),
        ("train.on_harm", "keep", TRAINED),
        ("seed", 1, total({"sample": 3, "dump": 1}, TRAINED, FULL, FULL_TEXT)),
        ("models.tiny.weights.random.hidden_size", 48,
         total({"convert": 1, "sample": 3, "dump": 1}, TRAINED, FULL, FULL_TEXT, FULL_TASK)),
        ("fidelity", None, SHOWN),
        ("models.tiny.paper", "llama2_7b", SHOWN),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value else None,
)  # fmt: skip
def test_a_changed_key_reruns_exactly_its_jobs(finished, tmp_path, place, value, expected):
    config = yaml.safe_load((finished / SMOKE).read_text())
    *path, last = place.split(".")
    at = config
    for key in path:
        at = at[key]
    assert at.get(last) != value
    at[last] = value
    changed = tmp_path / "changed.yaml"
    changed.write_text(yaml.safe_dump(config))
    assert planned(finished, changed) == expected


def test_parameters_are_such_that_changes_are_seen():
    """Snakemake does not compare parameters whose functions take the job's input."""
    for path in (ROOT / "workflow" / "rules").glob("*.smk"):
        assert not re.search(r"\bwildcards, (input|output|threads|resources)\b", path.read_text())


CHANGES = {
    "code": lambda text: text + "\nADDED = 1\n",
    "comment": lambda text: re.sub(
        r"^import", "# A comment.\n\n\nimport", text, count=1, flags=re.M
    ),
    "docstring": lambda text: text.replace('"""', '"""Said otherwise. ', 1),
    "layout": lambda text: re.sub(r"^(from .+, )", r"\1 ", text, flags=re.M),
}


def change(folder, name, kind):
    path = folder / "pipeline" / name
    before = path.read_text()
    path.write_text(CHANGES[kind](before) if path.suffix == ".py" else before + "\n# More.\n")
    assert path.read_text() != before


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("steps/plot.py", {"plot": 1, "provenance": 1, "page": 1}),
        ("steps/compare.py", {"compare": 1, "provenance": 1, "page": 1}),
        ("report/paper.py", {"tables": 1, "compare": 1, "plot": 1, "provenance": 1, "page": 1}),
        ("resources/paper.yaml", {"tables": 1, "compare": 1, "provenance": 1, "page": 1}),
        ("steps/tables.py", {"tables": 1, "provenance": 1, "page": 1}),
        ("report/statistics.py", SHOWN),
        ("steps/provenance.py", {"provenance": 1, "page": 1}),
        ("training/loop.py", TRAINED),
        ("training/checkpoint.py", total(TRAINED, FULL, FULL_WRITTEN, FULL_TASK)),
        ("steps/prompts.py", total(WRITTEN, FULL_TEXT)),
        ("steps/summaries.py", total(WRITTEN, FULL_WRITTEN)),
        ("steps/harness.py", total({"harness": 1}, FULL_TASK, SHOWN)),
        ("steps/examples.py", {"examples": 1, "provenance": 1, "page": 1}),
        ("steps/sample.py", total({"sample": 3, "dump": 1}, TRAINED, FULL)),
        ("steps/fidelity.py", {"fidelity": 2} | SHOWN),
        ("steps/dump.py", {"dump": 1} | TRAINED),
        ("experiment/config.py", {}),
        ("experiment/grid.py", {}),
    ],
)
def test_changed_code_reruns_exactly_its_steps(copied, name, expected):
    change(copied, name, "code")
    assert planned(copied) == expected


def test_a_task_of_ours_that_changed_is_seen(copied):
    """The file that defines a task is no source code, but counts as much."""
    (copied / "pipeline" / "resources" / "tasks" / "boolq.yaml").write_text("task: boolq\n")
    assert planned(copied) == total({"harness": 1}, FULL_TASK, SHOWN)


def test_changed_text_reruns_what_reads_it(copied):
    with (copied / "tests" / "data" / "texts.jsonl").open("a") as texts:
        texts.write('{"id": "more", "text": "More."}\n')
    assert planned(copied) == total({"sample": 3, "dump": 1}, TRAINED, FULL)


def test_comments_docstrings_and_layout_rerun_nothing(copied):
    for kind in ("comment", "docstring", "layout"):
        change(copied, "training/loop.py", kind)
        change(copied, "steps/plot.py", kind)
    assert planned(copied) == {}


def test_results_without_scratch_rerun_everything(finished, tmp_path):
    """A clone carries results, but neither intermediate files nor Snakemake's records."""
    clone = checkout(tmp_path / "clone", finished)
    fresh = planned(clone)
    everything = total(TRAINED, FULL, FULL_TEXT, FULL_TASK)
    assert fresh == {"convert": 1, "sample": 3, "dump": 1} | everything
    shutil.copytree(finished / "results", clone / "results")
    assert planned(clone) == fresh


# --- damaged ---------------------------------------------------------------------------------

LAMBDA = "kernels/tiny/less/lambda-0.1"
DAMAGE = [
    {"evaluations/tiny/text/full.parquet": "tidy.parquet"},
    {
        "kernels/tiny/less/h2o-0.1.safetensors": "harness/tiny/questions/h2o-0.1.parquet",
        f"{LAMBDA}/part1.safetensors": f"{LAMBDA}.safetensors",
        "samples/tiny/test-4.safetensors": "evaluations/tiny/text/full.parquet",
        "prompts/tiny/notes.json": "summaries/tiny/notes/full.parquet",
    },
    {
        "features/tiny/part0/layer000.safetensors": f"{LAMBDA}/part0.safetensors",
        "models/tiny/model.safetensors": "harness/tiny/questions/full.parquet",
    },
]
"""Intermediates, and what is made from them; those of one run do not wait for each other."""


@pytest.fixture(scope="module")
def damaged(finished, tmp_path_factory):
    """A finished checkout in which a byte of each kind of intermediate changed: it, and outputs."""
    folder = shutil.copytree(finished, tmp_path_factory.mktemp("damaged") / "less")
    scratch, said = Path("scratch") / "smoke", []
    for files in DAMAGE:
        for damaged, made in files.items():
            (folder / scratch / made).unlink(missing_ok=True)
            path = folder / scratch / damaged
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 4
            path.write_bytes(content)
        done = run(folder, "--", *(str(scratch / made) for made in files.values()))
        assert done.returncode != 0
        marks = {
            path.relative_to(folder / scratch) for path in (folder / scratch).rglob("*.damaged")
        }
        said.append((done.stdout + done.stderr, marks))
    return folder, said


@pytest.mark.slow
def test_damaged_files_are_named_and_marked(damaged):
    folder, said = damaged
    scratch = folder / "scratch" / "smoke"
    for files, (text, marks) in zip(DAMAGE, said, strict=True):
        assert "Traceback" not in text
        for name, made in files.items():
            assert f"error: scratch/smoke/{name} is damaged (" in text, text
            assert not (scratch / made).exists()
            whole_folder = name.startswith(("features", "models"))
            assert Path(f"{Path(name).parent if whole_folder else name}.damaged") in marks
        assert len(marks) == len(files), "those of the run before went with what they marked"


# --- killed ----------------------------------------------------------------------------------

KILLS = int(os.environ.get("LESS_KV_KILLS", "3"))


def jobs_of(process):
    """Steps of the package that a run has started and that still run."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.cmdline()[1:3] == ["-m", "pipeline"]:
                found.append(child)
    return found


def kill_job(process, rng):
    while process.poll() is None:
        if running := jobs_of(process):
            rng.choice(running).kill()
            return
        time.sleep(0.05)


def kill_scheduler(process, rng):
    """Its jobs live on, beside those of the next run."""
    process.kill()
    process.wait()


def kill_group(process, rng):
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


VICTIMS = [kill_job, kill_scheduler, kill_group]


def started(folder, log):
    with log.open("w") as handle:
        return subprocess.Popen(
            command(), cwd=folder, env=ENVIRONMENT, stdout=handle, stderr=handle,
            start_new_session=True,
        )  # fmt: skip


def wait_for(process, log, seen, times, then):
    """Until ``then`` seconds after ``times`` more of ``seen`` in the log; whether it still runs."""
    times += log.read_text().count(seen)
    while process.poll() is None and log.read_text().count(seen) < times:
        time.sleep(0.05)
    time.sleep(then)
    return process.poll() is None


@pytest.mark.slow
@pytest.mark.timeout(max(900, 300 * KILLS))
def test_damaged_and_killed_at_any_moment_and_started_again(finished, damaged, tmp_path):
    """A job, the scheduler alone, the whole group; the numbers are those of a quiet run.

    The first run makes damaged files again. ``LESS_KV_KILLS=25`` kills that often, in as many runs
    one after the other as that takes.
    """
    rng = random.Random(0)
    folder, process, runs = damaged[0], None, 1
    for number in range(KILLS):
        if process is None or process.poll() is not None:
            log = tmp_path / f"log{number}"
            process = started(folder, log)
        victim, jobs, then = VICTIMS[number % 3], rng.randint(1, 3), rng.uniform(0, 3)
        if not wait_for(process, log, "Finished jobid", jobs, then):
            finish(folder)
            assert_same_results(finished, folder)
            folder, runs = checkout(tmp_path / f"run{runs}", finished), runs + 1
            log = tmp_path / f"log{number}"
            process = started(folder, log)
            assert wait_for(process, log, "Finished jobid", jobs, then), log.read_text()
        print(f"{time.strftime('%X')} run {runs}, kill {number + 1}: {victim.__name__}", flush=True)
        victim(process, rng)
    if process.poll() is None:
        kill_group(process, rng)
    finish(folder)
    assert_same_results(finished, folder)
    assert planned(folder) == {}
    for left in ("*.partial", "*.damaged"):
        assert not list((folder / "scratch").rglob(left))


def test_two_runs_at_once_are_refused(copied):
    """The second says so in one message; plans are made beside it; a killed run is no hindrance."""
    change(copied, "steps/sample.py", "code")
    log = copied / "log"
    first = started(copied, log)
    try:
        while "rule sample" not in log.read_text():
            assert first.poll() is None, log.read_text()
            time.sleep(0.05)
        os.killpg(first.pid, signal.SIGSTOP)  # alive, but no sample is finished meanwhile
        second = run(copied)
        assert second.returncode != 0
        said = second.stdout + second.stderr
        assert f"Error: another run of this experiment is alive in {copied}" in said
        assert f"process {first.pid} on " in said
        assert "Traceback" not in said
        assert planned_beside(copied)["sample"] == 3
        assert less(copied, "status").stdout.startswith("smoke: running\n")
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    assert less(copied, "status").stdout.startswith("smoke: killed\n")
    third = run(copied, "--until", "sample")
    assert third.returncode == 0, third.stdout + third.stderr
    assert "progress: " in third.stderr
    assert less(copied, "status", "results/smoke").stdout.startswith("smoke: finished\n")


def test_a_finished_run_is_told_and_verified(finished):
    told = less(finished, "status").stdout
    assert told.startswith("smoke: finished\n")
    assert re.search(r"^train +4 +0 +0 +0$", told, re.MULTILINE)
    checked = less(finished, "verify", "results/smoke")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    record = json.loads((finished / "results" / "smoke" / "provenance.json").read_text())
    files = {str(p.relative_to(finished / "results" / "smoke")) for p in
             (finished / "results" / "smoke").rglob("*") if p.is_file()}  # fmt: skip
    later = {"provenance.json", "provenance.html", "config.json", "report.html"}
    assert set(record["results"]) == files - later


def test_logs_tell_step_loss_and_speed(finished):
    logs = finished / "logs" / "smoke"
    trained = (logs / "train" / "tiny" / "less" / "h2o-0.1" / "part0.log").read_text()
    assert re.search(r"epoch 2/2, step 6: loss [\d.e-]+, validation .*[\d.]+/s sequences", trained)
    measured = (logs / "evaluate" / "tiny" / "text" / "full.log").read_text()
    assert re.search(r"evaluate: 4/4, [\d.e+]+/s, ", measured)


def train_words(folder, name):
    return [
        sys.executable, "-m", "pipeline", "--threads", "1", "train", "--features",
        str(folder / "features"), "--layers", "0", "1", "--policy", "h2o", "--budget", "20",
        "--sizes", '{"hidden_size": 64}', "--recipe", '{"epochs": 14, "validation": 0.25}',
        "--resume", str(folder / name / "unfinished"),
        "--out", str(folder / name / "k.safetensors"),
        "--curves", str(folder / name / "curves.parquet"),
    ]  # fmt: skip


@pytest.mark.slow
def test_training_killed_midway_resumes_with_the_same_numbers(tmp_path):
    shape = {"q": (8, 4, 256, 32), "k": (8, 2, 256, 32), "v": (8, 2, 256, 32)}
    features = {name: randn(*size, seed=i).half() for i, (name, size) in enumerate(shape.items())}
    features["o_weight"] = randn(64, 128, seed=9)
    save_tensors(layer_file(tmp_path / "features", 0), features, "features", layer=0)
    environment = ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
    subprocess.run(train_words(tmp_path, "quiet"), env=environment, check=True, capture_output=True)
    log = tmp_path / "log"
    with log.open("w") as handle:
        process = subprocess.Popen(
            train_words(tmp_path, "killed"), env=environment, stderr=handle, start_new_session=True
        )
        assert wait_for(process, log, "epoch 4/14", 1, 0), log.read_text()
        kill_group(process, None)
    assert not (tmp_path / "killed" / "k.safetensors").exists()
    again = subprocess.run(
        train_words(tmp_path, "killed"), env=environment, check=True, capture_output=True, text=True
    )
    epochs = [int(number) for number in re.findall(r"epoch (\d+)/14", again.stderr)]
    assert epochs[0] >= 5, "training started over"
    assert epochs[-1] == 14
    for name in ("k.safetensors", "curves.parquet"):
        assert (tmp_path / "quiet" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    assert not (tmp_path / "killed" / "unfinished").exists()


# --- planning --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("sed: 1", "unknown key 'sed'; did you mean 'seed'?"),
        ("scratch: '{x}'", "scratch: '{x}' does not match"),
        ("grid: {policies: [h20], train_sparsities: [0.1], test_sparsities: [0.1]}", "'h2o'"),
    ],
)
def test_a_bad_configuration_is_one_plain_message(finished, tmp_path, line, said):
    bad = tmp_path / "bad.yaml"
    bad.write_text((finished / SMOKE).read_text() + "\n" + line + "\n")
    done = run(finished, "--dry-run", config=bad)
    assert done.returncode != 0
    text = done.stdout + done.stderr
    assert said in text
    assert "Traceback" not in text
    assert len([line for line in text.splitlines() if "Error" in line]) == 1


def test_an_experiment_is_one_file(finished, tmp_path):
    """What a file lacks does not come from config.yaml; --config alone changes the default."""
    bad = tmp_path / "bad.yaml"
    bad.write_text("seed: 1\n")
    done = run(finished, "--dry-run", config=bad)
    assert done.returncode != 0
    assert "'experiment' is missing" in done.stdout + done.stderr
    plain = ["snakemake", "--dry-run", "--config", "scratch=elsewhere"]
    done = subprocess.run(plain, cwd=finished, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "elsewhere/default/tidy.parquet" in done.stdout + done.stderr


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_is_planned_within_a_minute(tmp_path, name):
    done = subprocess.run(
        command("--dry-run", config=f"experiments/{name}"), cwd=checkout(tmp_path / "less"),
        env=ENVIRONMENT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Job stats:" in done.stdout + done.stderr


def test_an_experiment_is_planned_from_local_copies(tmp_path):
    """Beside a packaged model: paths of both kinds among the inputs of one run."""
    folder, name = checkout(tmp_path / "less"), "experiments/smollm2.yaml"
    datasets = yaml.safe_load((folder / name).read_text())["datasets"].values()
    copies = [f"copies/{dataset['local']}" for dataset in datasets]
    for copy in copies:
        (folder / copy).parent.mkdir(parents=True, exist_ok=True)
        (folder / copy).touch()
    done = run(folder, "--dry-run", "--config", "data_dir=copies", config=name)
    assert done.returncode == 0, done.stderr
    text = done.stdout + done.stderr
    assert all(copy in text for copy in copies)


def test_random_weights_of_the_latency_study_never_reach_the_disk(tmp_path):
    jobs = planned(checkout(tmp_path / "less"), "experiments/latency_llama2_7b.yaml")
    assert jobs.pop("latency") == 18
    assert set(jobs) == {"tabulate", "tables", "plot", "compare", "provenance", "page"}


# --- the report ------------------------------------------------------------------------------


def walk(report, folder):
    """What a person who clicks through a report sees: entries of its menu, and results.

    No script of the page may fail, and none may ask for anything over a network.
    """
    script = (ROOT / "tests" / "walk_report.js").read_text(encoding="utf-8")
    page, end = report.read_text(encoding="utf-8").rsplit("</body>", 1)
    copy = folder / "walked.html"
    copy.write_text(f"{page}<script>{script}</script></body>{end}", encoding="utf-8")
    document, errors, asked = browse(copy, folder, seconds=100)
    assert not errors
    assert not asked
    return json.loads(unescape(re.search("<title>(.*?)</title>", document, re.DOTALL)[1]))


def test_report_opens_without_network_or_errors(finished, tmp_path):
    document, errors, asked = browse(finished / "results" / "smoke" / "report.html", tmp_path)
    for entry in (*TABLES.values(), *FIGURES.values()):
        assert entry.section in document
    assert not errors
    assert not asked


def test_every_table_and_figure_is_reached_by_clicks(finished, tmp_path):
    """Under the paper's sections, by its title, with a description; what opens is the file."""
    results = finished / "results" / "smoke"
    seen = walk(results / "report.html", tmp_path)
    shown = {f"tables/{name}.html": entry for name, entry in TABLES.items()}
    shown |= {f"figures/{name}.svg": entry for name, entry in FIGURES.items()}
    expected = {
        (entry.section, entry.title): hashlib.sha256((results / path).read_bytes()).hexdigest()
        for path, entry in shown.items()
    }
    found = {(result["entry"], result["title"]): result for result in seen["results"]}
    pages = {key: found.pop(key)["sha256"] for key in [*found] if key not in expected}
    assert {key: result["sha256"] for key, result in found.items()} == expected
    assert {section for section, _ in pages} == {COMPARISON, PROVENANCE, TEXTS}
    assert all(result["caption"] for result in seen["results"])
    sections = sorted({entry.section for entry in shown.values()} | {key[0] for key in pages})
    assert seen["entries"] == ["Workflow", "Statistics", "About", *sections]


def test_report_holds_every_table_and_figure_as_it_is(finished):
    """Without a browser: their bytes are in the page."""
    results = finished / "results" / "smoke"
    report = (results / "report.html").read_text(encoding="utf-8")
    paths = [f"tables/{name}.html" for name in TABLES] + [f"figures/{name}.svg" for name in FIGURES]
    for path in (*paths, "examples.html", "paper_vs_ours.html", "provenance.html"):
        content = base64.b64encode((results / path).read_bytes()).decode()
        assert f"base64,{content}" in report, f"{path} is not in the report"
