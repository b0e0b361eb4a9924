"""Places on GPUs, without any: fake ids, many processes, killed holders, a fake nvidia-smi."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import __main__
from pipeline.errors import ConfigError
from pipeline.runtime import devices

ROOT = Path(__file__).parents[2]

HOLD = """
import sys, time
from pipeline.runtime import devices
devices.WAIT_SECONDS = 0.02
with devices.bound("cuda") as device:
    print(f"took {device} {time.monotonic()}", flush=True)
    time.sleep(float(sys.argv[1]))
    print(f"left {device} {time.monotonic()}", flush=True)
"""


@pytest.fixture(autouse=True)
def host(monkeypatch, tmp_path):
    """Two GPUs, locks of our own, no Slurm, and quick looks."""
    for name in ("SLURM_JOB_ID", "CUDA_VISIBLE_DEVICES", "LESS_KV_JOBS_PER_GPU"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LESS_KV_GPUS", "0,1")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(devices.tempfile, "tempdir", None)  # read TMPDIR again
    monkeypatch.setattr(devices, "WAIT_SECONDS", 0.02)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")


def hold(seconds):
    """A process that takes a place and leaves it after some time."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(seconds)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def nvidia_smi(tmp_path, processes):
    """A fake of nvidia-smi: two cards, and (card, process id) pairs that compute."""
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir(exist_ok=True)
    rows = "".join(f"GPU-{'ab'[card]}-1, {pid}\n" for card, pid in processes)
    (tmp_path / "processes").write_text(rows)
    tool.write_text(
        "#!/bin/sh\ncase $1 in\n"
        "--query-gpu*) printf '0, GPU-a-1\\n1, GPU-b-1\\n';;\n"
        f"*) cat {tmp_path}/processes;;\nesac\n"
    )
    tool.chmod(0o755)


def visible():
    return {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")}


def test_a_job_sees_one_device_and_leaves_things_as_they_were():
    before = visible()
    with devices.bound("cuda") as first:
        assert visible() == {"CUDA_VISIBLE_DEVICES": first, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert first == "0"
    assert visible() == before


@pytest.mark.parametrize("places", [1, 2])
def test_many_processes_never_share_a_place(monkeypatch, places):
    """Twelve processes on two devices: at most `places` at a time on each; all get their turn."""
    monkeypatch.setenv("LESS_KV_JOBS_PER_GPU", str(places))
    started = [hold(0.4) for _ in range(12)]
    text = "".join(process.communicate(timeout=60)[0] for process in started)
    assert [process.returncode for process in started] == [0] * 12
    events = sorted(
        (float(at), what, name) for what, name, at in re.findall(r"(\w+) (\d) (\S+)", text)
    )
    assert len(events) == 24
    now = {"0": 0, "1": 0}
    for _, what, name in events:
        now[name] += 1 if what == "took" else -1
        assert now[name] <= places


def test_places_are_shared_out_evenly_and_no_more_than_there_are(monkeypatch):
    monkeypatch.setenv("LESS_KV_JOBS_PER_GPU", "2")
    holders = []
    try:
        for _ in range(4):
            holders.append(hold(600))
            holders[-1].took = holders[-1].stdout.readline().split()[1]
        assert [holder.took for holder in holders] == ["0", "1", "0", "1"]
        holders.append(hold(600))
        assert "every GPU (0, 1) is busy: waiting" in holders[-1].stderr.readline()
        holders[1].kill()
        assert holders[-1].stdout.readline().startswith("took 1")
    finally:
        for holder in holders:
            holder.kill()
            holder.communicate()


def test_a_device_that_others_compute_on_is_left_alone(tmp_path, monkeypatch, capsys):
    nvidia_smi(tmp_path, [(0, 4711)])
    with devices.bound("cuda") as first:
        assert first == "1"
    nvidia_smi(tmp_path, [(0, 4711), (1, 4712)])
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        if waits.count(devices.WAIT_SECONDS) == 3:
            nvidia_smi(tmp_path, [(1, 4712)])  # one of them ends

    monkeypatch.setattr(time, "sleep", sleep)
    with devices.bound("cuda") as first:
        assert first == "0"
    assert "every GPU (0, 1) is busy: waiting" in capsys.readouterr().err


def test_jobs_of_ours_do_not_count_as_others(tmp_path, monkeypatch):
    monkeypatch.setenv("LESS_KV_GPUS", "GPU-a")
    monkeypatch.setenv("LESS_KV_JOBS_PER_GPU", "2")
    with devices.bound("cuda"):
        nvidia_smi(tmp_path, [(0, os.getpid())])
        with devices.bound("cuda") as second:
            assert second == "GPU-a"


def test_all_that_nvidia_smi_lists(tmp_path, monkeypatch):
    monkeypatch.delenv("LESS_KV_GPUS")
    nvidia_smi(tmp_path, [(0, 4711)])
    with devices.bound("cuda") as first:
        assert first == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-b")
    with devices.bound("cuda") as first:
        assert first == "GPU-b"


@pytest.mark.parametrize(
    ("device", "environment"),
    [
        ("cpu", {}),
        ("cuda:1", {}),
        ("cuda", {"LESS_KV_GPUS": ""}),
        ("cuda", {"LESS_KV_GPUS": None, "SLURM_JOB_ID": "7", "CUDA_VISIBLE_DEVICES": "0"}),
        ("cuda", {"LESS_KV_GPUS": None, "CUDA_VISIBLE_DEVICES": ""}),
    ],
)
def test_nothing_is_done_where_there_is_nothing_to_do(monkeypatch, tmp_path, device, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value) if value is not None else monkeypatch.delenv(name)
    before = visible()
    with devices.bound(device) as chosen:
        assert chosen is None
        assert visible() == before
    assert not list(tmp_path.glob("less-gpus-*"))


@pytest.mark.parametrize("places", ["0", "-1", "two", "1.5", ""])
def test_a_wrong_number_of_places_is_an_error(monkeypatch, places):
    monkeypatch.setenv("LESS_KV_JOBS_PER_GPU", places)
    with pytest.raises(ConfigError, match="a whole number, 1 or more"), devices.bound("cuda"):
        pass


def test_steps_on_cuda_are_bound(monkeypatch, tmp_path):
    """The command line binds before the step runs, by its `--device`."""
    import pipeline.steps.generate as step

    seen = []
    monkeypatch.setattr(
        step, "run", lambda args: seen.append(os.environ.get("CUDA_VISIBLE_DEVICES"))
    )
    words = ["generate", "--model", str(tmp_path), "--prompt", "x"]
    for device in ("cpu", "cuda"):
        assert __main__.main([*words, "--device", device]) == 0
    assert seen == [None, "0"]
