"""Jobs that share no file system: each is told its files, and a storage brings and keeps them.

The plugins are those of `tests/plugins`: an executor whose jobs begin in an empty folder with the
code alone, as pods do, and a storage of objects by key, as S3 is.
"""

import itertools
import os
import re
import shlex
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from checkouts import ENVIRONMENT, SMOKE, assert_same_results, checkout, less

ALL = bool(os.environ.get("LESS_KV_STORAGE"))
PLUGINS = Path(__file__).parents[1] / "plugins"
EXECUTOR = ["--executor", "elsewhere", "--jobs", "1", "--seconds-between-status-checks", "1"]


def storage(folder):
    return ["--default-storage-provider", "shelf", "--default-storage-prefix", f"shelf://{folder}"]


def snakemake(folder, *words, config=SMOKE, **more):
    done = subprocess.run(
        ["snakemake", "--configfile", config, *words],
        cwd=folder, env=ENVIRONMENT | {"PYTHONPATH": str(PLUGINS)} | more,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def repository(folder):
    """A checkout that git knows, since its files are what travels; a part of smoke, or all."""
    checkout(folder)
    smoke = yaml.safe_load((folder / SMOKE).read_text())
    if not ALL:
        smoke |= {"fidelity": None, "tasks": {"text": smoke["tasks"]["text"]}}
        smoke["grid"]["policies"] = ["lambda"]
        smoke["train"]["layers_per_job"] = 2
    (folder / SMOKE).write_text(yaml.safe_dump(smoke, sort_keys=False))
    for words in (["init", "--quiet"], ["add", "."]):
        subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A finished run of jobs that share nothing."""
    base = tmp_path_factory.mktemp("storage")
    folder, shelf = repository(base / "less"), base / "shelf"
    shutil.copytree(folder / "tests" / "data", shelf / "tests" / "data")
    words = [*EXECUTOR, *storage(shelf)]
    log = snakemake(folder, *words, ELSEWHERE=str(base / "pod"))
    return SimpleNamespace(folder=folder, shelf=shelf, words=words, log=log)


@pytest.mark.slow
@pytest.mark.skipif(not ALL, reason="takes five minutes: set LESS_KV_STORAGE=all")
def test_results_are_those_of_one_machine(ran, tmp_path):
    """All of the smoke experiment, to the byte."""
    here = repository(tmp_path / "less")
    snakemake(here, "--cores", "1")
    assert_same_results(here, ran.folder)


@pytest.mark.slow
def test_results_stay_here_and_the_rest_in_storage(ran):
    assert [path.name for path in (ran.folder / "scratch").rglob("*.*")] == ["tidy.parquet"]
    assert {path.name for path in ran.shelf.iterdir()} == {"tests", "scratch", "logs"}
    kernels = "scratch/smoke/kernels/tiny/less/lambda-0.1.safetensors"
    assert (ran.shelf / kernels).is_file()
    log = (ran.shelf / "logs/smoke/train/tiny/less/lambda-0.1/part0.log").read_text()
    assert "epoch 2/2" in log
    assert less(ran.folder, "status").stdout.startswith("smoke: finished\n")
    assert less(ran.folder, "verify", "results/smoke").returncode == 0
    report = (ran.folder / "results/smoke/report.html").read_text(encoding="utf-8")
    assert "evaluate" in report, "statistics know what ran elsewhere"


@pytest.mark.slow
def test_nothing_to_do_twice(ran):
    assert "Nothing to be done" in snakemake(ran.folder, *ran.words, "--dry-run")


@pytest.mark.parametrize("name", ["smoke", "falcon_tiny"])
def test_commands_name_no_file_that_storage_does_not_bring(tmp_path, name):
    """But those that a job keeps for itself, and the tidy table, which stays here."""
    folder, shelf = checkout(tmp_path / "less"), tmp_path / "shelf"
    shutil.copytree(folder / "tests" / "data", shelf / "tests" / "data")
    words = [*EXECUTOR, *storage(shelf), "--dry-run", "--printshellcmds"]
    text = snakemake(folder, *words, config=f"experiments/{name}.yaml")
    steps, stray = set(), []
    start = r"^Shell command: python -m pipeline(?: --threads \d+)? (.*)$"
    for line in re.findall(start, text, re.MULTILINE):
        command = shlex.split(re.sub(r"--names .* (?=--results)", "", line))  # names, not files
        steps.add(command[0])
        for option, word in itertools.pairwise(command):
            if word.startswith(("scratch/", "tests/")) and option != "--resume":
                stray.append(f"{command[0]} {word}")
    assert {"convert", "sample", "train", "prompts", "summaries", "evaluate", "tables"} <= steps
    assert {word.split()[1] for word in stray} == {f"scratch/{name}/tidy.parquet"}


@pytest.mark.skipif(
    not find_spec("snakemake_executor_plugin_kubernetes"), reason="its plugin is not installed"
)
def test_the_kubernetes_profile_is_read(tmp_path):
    folder, shelf = checkout(tmp_path / "less"), tmp_path / "shelf"
    shutil.copytree(folder / "tests" / "data", shelf / "tests" / "data")
    text = snakemake(
        folder, "--workflow-profile", "profiles/kubernetes", *storage(shelf), "--dry-run"
    )
    assert "gpu_manufacturer=nvidia" in text
