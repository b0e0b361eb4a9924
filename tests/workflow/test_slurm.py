"""The smoke experiment on a real Slurm of one node, with one job killed and some starved."""

import os
import re
import signal
import subprocess
import time
from types import SimpleNamespace

import pytest
import yaml
from checkouts import ENVIRONMENT, SMOKE, checkout, run
from slurm import missing, slurm

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(bool(missing()), reason=f"Slurm is {missing()}"),
]

# Too little for a first attempt of the jobs that train, enough for a second or third.
STARVED_MB = 600

OPTIONS = [
    "--workflow-profile", "profiles/slurm", "--slurm-status-command", "squeue",
    "--slurm-no-account", "--slurm-init-seconds-before-status-checks", "3",
    "--latency-wait", "10", "--set-resources", "train:gpu=1",
]  # fmt: skip


def watched(folder, cluster, log):
    """Run the experiment and look at the queue; cancel the first sampling job that is seen to run.

    Gives snapshots of the queue and the id of what was cancelled.
    """
    words = ["snakemake", "--configfile", SMOKE, *OPTIONS]
    snapshots, cancelled = [], None
    with log.open("w") as handle:
        process = subprocess.Popen(
            words, cwd=folder, env=cluster.environment(ENVIRONMENT), stdout=handle, stderr=handle,
            start_new_session=True,
        )  # fmt: skip
        try:
            while process.poll() is None:
                snapshots.append(cluster.tasks())
                for task in snapshots[-1]:
                    if cancelled is None and task.rule == "sample" and task.state == "RUNNING":
                        cluster.run("scancel", task.job)
                        cancelled = task.job
                time.sleep(0.5)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, log.read_text() + cluster.logs()
    return snapshots, cancelled


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A finished run on Slurm, and what the queue showed meanwhile."""
    base = tmp_path_factory.mktemp("slurm")
    folder = checkout(base / "less")
    smoke = yaml.safe_load((folder / SMOKE).read_text())
    smoke["train"]["memory_mb"] = STARVED_MB
    (folder / SMOKE).write_text(yaml.safe_dump(smoke, sort_keys=False))
    with slurm(base / "cluster") as cluster:
        started = time.monotonic()
        snapshots, cancelled = watched(folder, cluster, base / "log")
        print(f"the smoke experiment on Slurm took {time.monotonic() - started:.0f} s")
    return SimpleNamespace(
        folder=folder, log=(base / "log").read_text(), snapshots=snapshots, cancelled=cancelled
    )


def trained(ran):
    """Tasks of layers by id, in order of coming."""
    return {task.job: task for queue in ran.snapshots for task in queue if task.rule == "train"}


def test_the_run_ends_right(ran, tmp_path):
    """Files are those of a run on this machine, to the byte."""
    local = checkout(tmp_path / "less", ran.folder)
    done = run(local)
    assert done.returncode == 0, done.stdout + done.stderr
    compared = 0
    for mine in (local / "results").rglob("*"):
        if mine.is_file() and mine.name != "report.html":  # it tells how long jobs took
            theirs = ran.folder / mine.relative_to(local)
            assert mine.read_bytes() == theirs.read_bytes(), mine.name
            compared += 1
    assert compared > 20
    again = run(ran.folder, "--dry-run")
    assert "Nothing to be done" in again.stdout + again.stderr


def test_a_cancelled_job_comes_again(ran):
    assert f"SLURM-job '{ran.cancelled}' failed, SLURM status is: 'CANCELLED'" in ran.log
    last = {task.job: task for queue in ran.snapshots for task in queue if task.rule == "sample"}
    states = sorted(task.state for task in last.values())
    assert states == ["CANCELLED", "COMPLETED", "COMPLETED", "COMPLETED"]


def test_a_starved_job_comes_again_with_more_memory_and_time(ran):
    logs = ran.folder / ".snakemake" / "slurm_logs"
    assert any("exceeded memory limit" in path.read_text() for path in logs.rglob("*.log"))
    first, *_, last = trained(ran).values()
    assert (first.state, first.minutes) == ("FAILED", 240)
    assert STARVED_MB <= first.memory < 2 * STARVED_MB  # an array gets a little more
    assert last.state == "COMPLETED"
    assert last.memory >= 2 * STARVED_MB
    assert last.minutes >= 480


def test_layers_travel_in_one_submission_and_run_side_by_side(ran):
    arrays = {re.sub(r"_\d+$", "", job) for job in list(trained(ran))[:4]}
    assert len(arrays) == 1, "the four layers are one array"
    together = [
        {task.job for task in queue if task.rule == "train" and task.state == "RUNNING"}
        for queue in ran.snapshots
    ]
    assert max(map(len, together)) == 2, "as many as there are GPUs"
    assert {task.gpus for task in trained(ran).values()} == {1}


def test_only_what_asks_for_a_gpu_gets_one(ran):
    others = [task for queue in ran.snapshots for task in queue if task.rule != "train"]
    assert others
    assert {task.gpus for task in others} == {0}


def test_the_report_travels_in_one_submission(ran):
    assert ran.log.count("group_report") == 1
