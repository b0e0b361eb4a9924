"""Profiles plan the same jobs; a failed job is tried again and asks for more each time."""

import os
import re
import subprocess
import sys
from collections import Counter

import pytest
from checkouts import ENVIRONMENT, SMOKE, checkout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return checkout(tmp_path_factory.mktemp("profiles") / "less")


def snakemake(folder, *words, profile="default", environment=ENVIRONMENT):
    done = subprocess.run(
        ["snakemake", "--workflow-profile", f"profiles/{profile}", "--configfile", SMOKE, *words],
        cwd=folder, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def run(folder, *words, **options):
    code, text = snakemake(folder, *words, **options)
    assert code == 0, text
    return text


def asked(text):
    """[rule, memory, minutes, GPUs] of every job that a log tells of, but the target."""
    jobs = re.findall(r"^ *rule (\w+):\n(?: +.*\n)*? +resources: (.*)", text, re.MULTILINE)
    sizes = [dict(re.findall(r"(\w+)=(\d+)(?=,|$)", resources)) for _, resources in jobs]
    return sorted(
        [rule, int(size["mem_mb"]), int(size["runtime"]), int(size.get("gpu", 0))]
        for (rule, _), size in zip(jobs, sizes, strict=True)
        if rule != "all"
    )


@pytest.fixture(scope="module")
def here(folder):
    """What jobs ask for on this machine, at the first attempt."""
    return asked(run(folder, "--dry-run"))


@pytest.mark.parametrize("profile", ["gpu", "slurm"])
def test_every_profile_plans_the_same_jobs(folder, here, profile):
    assert Counter(rule for rule, *_ in here)["train"] == 4
    assert asked(run(folder, "--dry-run", profile=profile)) == here


def test_memory_and_minutes_grow_with_the_attempt_and_gpus_do_not(folder, here):
    expected = [[rule, memory * 3, minutes * 3, gpus] for rule, memory, minutes, gpus in here]
    assert asked(run(folder, "--dry-run", "--attempt", "3")) == expected


def test_a_failed_job_is_tried_again_with_more(folder, tmp_path):
    """The first `python` of the run fails; each is told how many jobs may share a GPU."""
    fake = tmp_path / "python"
    fake.write_text(
        f"#!/bin/sh\necho $LESS_KV_JOBS_PER_GPU >> {tmp_path}/places\n"
        f"[ -e {tmp_path}/failed ] || {{ touch {tmp_path}/failed; exit 1; }}\n"
        f'exec {sys.executable} "$@"\n'
    )
    fake.chmod(0o755)
    path = os.pathsep.join([str(tmp_path), ENVIRONMENT["PATH"]])
    words = ["--until", "convert", "--config", "jobs_per_gpu=3"]
    text = run(folder, *words, environment=ENVIRONMENT | {"PATH": path})
    first, second = asked(text.replace("localrule", "rule"))
    assert (first[0], first[1] * 2, first[2] * 2) == (second[0], second[1], second[2])
    assert (tmp_path / "places").read_text() == "3\n3\n"


@pytest.mark.parametrize("limit", [("--jobs", "5"), ("--resources", "gpu=2")])
def test_a_limit_under_which_arrays_hang_is_refused(folder, limit):
    nowhere = ENVIRONMENT | {"SLURM_CONF": "/nonexistent"}  # never a cluster that is really here
    code, text = snakemake(folder, *limit, profile="slurm", environment=nowhere)
    assert code != 0
    assert "job arrays know no limit on jobs or GPUs" in text
    assert "sbatch" not in text
