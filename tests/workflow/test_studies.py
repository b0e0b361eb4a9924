"""The experiment of everything: studies, maps and a bounded disk, under hostile names."""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml
from checkouts import ROOT, checkout, planned, run

HOSTILE = "a b'c\"$(touch canary);touch canary;`touch canary` &é*[x]?"
"""Folders, files and words that a shell would take for commands, and patterns for more."""


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """A checkout in which `falcon_tiny` is finished under hostile names; do not change it."""
    folder = checkout(tmp_path_factory.mktemp("falcon") / HOSTILE)
    config = yaml.safe_load((folder / "experiments" / "falcon_tiny.yaml").read_text())
    data = folder / f"{HOSTILE}data"
    data.mkdir()
    for dataset in config["datasets"].values():
        name = f"{Path(dataset['path']).stem}'$.jsonl"
        shutil.copy(folder / dataset["path"], data / name)
        dataset["path"] = f"../{data.name}/{name}"
    config |= {"scratch": f"logs/../{HOSTILE}scratch", "data_dir": f"tests/../{data.name}"}
    config["description"] = f"{HOSTILE} {{x}} {{model}}\n\n.. include:: /etc/passwd\n"
    (folder / "hostile.yaml").write_text(yaml.safe_dump(config))
    (folder / "before.json").write_text(json.dumps([path.name for path in folder.iterdir()]))
    done = run(folder, config="hostile.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "GiB on disk at once" in done.stderr
    return folder


def test_hostile_texts_run_as_what_they_are(studies):
    """Nothing in them was run or read, and nothing lies outside the run's folders."""
    assert not list(studies.parent.rglob("canary"))
    assert [path.name for path in studies.parent.iterdir()] == [HOSTILE]
    before = {*json.loads((studies / "before.json").read_text()), "before.json"}
    made = {path.name for path in studies.iterdir()} - before
    assert made == {f"{HOSTILE}scratch", "results", "logs", ".snakemake"}
    for folder in (f"{HOSTILE}scratch", "results", "logs"):
        assert [path.name for path in (studies / folder).iterdir()] == ["falcon_tiny"]
    report = (studies / "results" / "falcon_tiny" / "report.html").read_text(encoding="utf-8")
    assert "root:x:0" not in report
    assert not planned(studies, "hostile.yaml")


def test_every_rule_but_the_download_runs(studies):
    texts = [path.read_text() for path in (ROOT / "workflow" / "rules").glob("*.smk")]
    rules = re.findall(r"^(?:use rule \w+ as|rule) (\w+)", "".join(texts), re.MULTILINE)
    events = (studies / "logs" / "falcon_tiny" / "run.jsonl").read_text().splitlines()
    started = {json.loads(line).get("rule") for line in events if '"started"' in line}
    assert started - {"all"} == set(rules) - {"fetch"}


def test_studies_stand_in_the_tidy_table(studies):
    tidy = pd.read_parquet(studies / "results" / "falcon_tiny" / "results.parquet")
    found = {
        (study, setting): set(zip(rows["method"], rows["train_sparsity"].fillna(0), strict=True))
        for (study, setting), rows in tidy[tidy["study"] != "grid"].groupby(["study", "setting"])
    }
    less, grid = ("less", 0.1), {(name, 0) for name in ("baseline", "baseline_plus", "performer")}
    assert found == {
        ("kernel_size", 4): {less},
        ("kernel_size", 8): {less},
        ("prompt_length", 80): {("full", 0), ("baseline_plus", 0), less},
        ("prompt_length", 96): {("full", 0), ("baseline_plus", 0), less},
        ("scores", 1): grid | {less},
    }
    sizes = tidy[tidy["study"] == "kernel_size"].groupby("setting")["budget"].agg(set)
    assert sizes.to_dict() == {4: {14}, 8: {12}}  # equal memory: a smaller state, more tokens
    same = tidy[(tidy["task"] == "text") & (tidy["metric"] == "word_perplexity")]
    same = same[(same["policy"] == "h2o") & (same["train_sparsity"] == 0.1)]
    grid_value, study_value = (
        same.loc[same["study"].eq(study) & (same["setting"].fillna(8) == 8), "value"].item()
        for study in ("grid", "kernel_size")
    )
    assert grid_value == study_value


def test_prompts_of_a_study_are_of_the_same_documents(studies):
    prompts = studies / f"{HOSTILE}scratch" / "falcon_tiny" / "prompts" / "falcon-untrained"
    short, long = (json.loads((prompts / f"notes-P{n}.json").read_text()) for n in (80, 96))
    names = [[sample["document"] for sample in each["samples"]] for each in (short, long)]
    assert names[0] == names[1]
    for each, length in ((short, 80), (long, 96)):
        tokens = [sample["prompt_tokens"] for sample in each["samples"]]
        assert max(tokens) <= length
        assert min(tokens) > length - 16  # cut at words


def test_one_bundle_of_features_at_a_time(studies):
    logs = studies / "logs" / "falcon_tiny"
    second = (logs / "dump" / "falcon-untrained" / "part1.log").stat()
    trained = [
        logs / "train" / "falcon-untrained" / "less" / name / "part0.log"
        for name in ("h2o-0.1", "h2o-0.2", "lambda-0.1", "h2o-0.1-R4")
    ]
    assert all(path.stat().st_mtime < second.st_mtime for path in trained)
    assert not list(
        (studies / f"{HOSTILE}scratch" / "falcon_tiny" / "features").rglob("*.safetensors")
    )


def test_maps_and_studies_are_drawn(studies):
    figures = studies / "results" / "falcon_tiny" / "figures"
    for name in ("figure1", "figure3", "figure7", "figure8", "figure9", "figure11"):
        assert (figures / f"{name}.png").stat().st_size > 20_000, name
