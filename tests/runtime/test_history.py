"""The record of a run: written by the scheduler, read by `less-kv status` at any time."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.__main__ import main
from pipeline.errors import DataError, LessError
from pipeline.runtime import recorder as recording
from pipeline.runtime import status
from pipeline.runtime.history import NAME, is_alive, last_run, one_line, read_runs, span, state
from pipeline.runtime.recorder import Recorder

ROOT = Path(__file__).parents[2]


def event(name, **content):
    """A log record of Snakemake."""
    return logging.makeLogRecord({"event": name, "msg": content.pop("msg", ""), **content})


def start(recorder, jobid, rule):
    log = f"logs/tiny/{rule}/{jobid}.log"
    recorder.handle(event("job_info", jobid=jobid, rule_name=rule, log=[log]))
    return Path(log)


@pytest.fixture
def path(tmp_path, monkeypatch):
    """The record of an experiment in an empty folder, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(recording, "TRIES", 1)
    return Path("logs") / "tiny" / NAME


@pytest.fixture
def recorder(path):
    """A run of two dumps, four trainings and the target, at its beginning."""
    recorder = Recorder(path)
    recorder.handle(event("workflow_started"))
    jobs = {"dump": 2, "train": 4, "all": 1, "total": 7}
    recorder.handle(event("run_info", stats=jobs))
    yield recorder
    recorder.close()


def said(capsys, *words):
    assert main(["status", *words]) == 0
    return capsys.readouterr().out


def table(text):
    """Counts by stage."""
    rows = [line.split() for line in text.splitlines()]
    return {row[0]: list(map(int, row[1:])) for row in rows if len(row) == 5 and row[1].isdigit()}


def test_a_run_is_followed_from_plan_to_end(recorder, path, capsys):
    log = start(recorder, 1, "dump")
    start(recorder, 2, "dump")
    recorder.handle(event("job_finished", job_id=2))
    log.parent.mkdir(parents=True)
    log.write_text("dump: 1/4\nlayer 3 epoch 2/4, step 44: loss 1.2e-03\n\n")
    text = said(capsys)
    assert text.startswith("tiny: running\n")
    assert table(text) == {"dump": [1, 1, 0, 0], "train": [0, 0, 0, 4], "total": [1, 1, 0, 4]}
    assert "logs/tiny/dump/1.log (0 s): layer 3 epoch 2/4, step 44: loss 1.2e-03" in text
    recorder.handle(event("job_finished", job_id=1))
    for job in range(3, 7):
        start(recorder, job, "train")
        recorder.handle(event("job_finished", job_id=job))
    start(recorder, 0, "all")
    recorder.handle(event("job_finished", job_id=0))
    assert said(capsys, "results/tiny").startswith("tiny: running")
    recorder.close()
    text = said(capsys, "tiny")
    assert text.startswith("tiny: finished\n")
    assert table(text)["total"] == [6, 0, 0, 0]


def test_failed_jobs_are_shown_with_what_they_said(recorder, path, capsys):
    log = start(recorder, 3, "train")
    log.parent.mkdir(parents=True)
    log.write_text("error: no features\n")
    recorder.handle(event("job_error", jobid=3))
    start(recorder, 3, "train")  # tried again
    assert table(said(capsys))["train"] == [0, 1, 0, 3]
    recorder.handle(event("job_error", jobid=3))
    recorder.close()
    text = said(capsys)
    assert text.startswith("tiny: failed\n")
    assert table(text)["train"] == [0, 0, 1, 3]
    assert "logs/tiny/train/3.log (0 s): error: no features" in text
    assert "Start the same command again" in text


def test_runs_that_end_before_their_jobs(path, capsys):
    for ending, expected in (
        ([], "nothing was to be done"),
        ([event("error", msg="MissingInputException: no text")], "failed"),
        ([event("run_info", stats={"dump": 1})], "interrupted"),
    ):
        recorder = Recorder(path)
        recorder.handle(event("workflow_started"))
        for one in ending:
            recorder.handle(one)
        recorder.close()
        text = said(capsys)
        assert text.startswith(f"tiny: {expected}\n")
        assert ("MissingInputException: no text" in text) == (expected == "failed")
    assert len(list(read_runs(path))) == 3
    recorder = Recorder(path)
    recorder.handle(event("workflow_started"))
    recorder.close()
    assert said(capsys).startswith("tiny: interrupted"), "a run without jobs hides none with some"


def test_a_second_run_says_so_and_leaves_the_first_alone(recorder, path):
    before = path.read_bytes()
    second = Recorder(path)
    with pytest.raises(LessError, match=rf"another run .* process {os.getpid()} on "):
        second.handle(event("workflow_started"))
    second.close()
    assert path.read_bytes() == before
    assert is_alive(path)
    recorder.close()
    third = Recorder(path)
    third.handle(event("workflow_started"))
    third.close()
    assert len(list(read_runs(path))) == 2


KILLED = """
import logging, sys, time
from pathlib import Path
from pipeline.runtime.recorder import Recorder
recorder = Recorder(Path(sys.argv[1]))
for content in ({"event": "workflow_started"}, {"event": "run_info", "stats": {"train": 2}},
                {"event": "job_info", "jobid": 1, "rule_name": "train", "log": []}):
    recorder.handle(logging.makeLogRecord(content))
print("ready", flush=True)
time.sleep(60)
"""


def test_a_killed_run_is_told_from_a_living_one(path, capsys):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", KILLED, str(path)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        assert said(capsys).startswith("tiny: running\n")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with path.open("a") as lines:
        lines.write('{"event": "finished", "jo')  # torn by the kill
    text = said(capsys)
    assert text.startswith("tiny: killed\n")
    assert "it was killed" in text
    assert "unfinished:" in text
    again = Recorder(path)
    again.handle(event("workflow_started"))
    again.close()
    assert [state(run, alive=False) for run in read_runs(path)] == [
        "killed", "nothing was to be done",
    ]  # fmt: skip


def test_time_left_comes_from_recorded_times(path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    first = Recorder(path)
    first.handle(event("workflow_started"))
    first.handle(event("run_info", stats={"train": 4, "plot": 1}))
    for job in (1, 2):
        start(first, job, "train")
    assert first.run.left(now[0]) == (None, False)
    assert one_line(first.run, now[0]).endswith("; time left not known yet")
    now[0] += 30
    for job in (1, 2):
        first.handle(event("job_finished", job_id=job))
    # two jobs of 30 s ran at once; two more wait, and a plot of which nothing is known
    assert first.run.left(now[0]) == (45.0, False)
    assert one_line(first.run, now[0]) == (
        "progress: 2 of 5 jobs done; 0 running; train 2/4; roughly 45 s left"
    )
    start(first, 9, "plot")
    now[0] += 10
    first.handle(event("job_finished", job_id=9))
    first.close()
    second = Recorder(path)
    second.handle(event("workflow_started"))
    second.handle(event("run_info", stats={"train": 2}))
    start(second, 1, "train")
    now[0] += 12
    assert second.run.left(now[0]) == (18.0 + 30.0, True)  # times of the run before
    second.close()


def test_progress_is_shown_between_jobs(path, capsys):
    recorder = Recorder(path, sys.stderr)
    recorder.handle(event("workflow_started"))
    recorder.handle(event("run_info", stats={"train": 2}))
    for job in (1, 2):
        start(recorder, job, "train")
        recorder.handle(event("job_finished", job_id=job))
        recorder.handle(event("progress", done=job, total=2))
    recorder.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("progress: 1 of 2 jobs done; 0 running; train 1/2; about 0 s left")
    assert lines[-1] == "progress: 2 of 2 jobs done; 0 running"


def test_a_full_disk_ends_no_run(recorder, path):
    class Full:
        def write(self, text):
            raise OSError(28, "No space left on device")

        def close(self):
            pass

    recorder.file.close()
    recorder.file = Full()
    start(recorder, 1, "dump")
    assert recorder.run.running[1].rule == "dump"


def test_an_event_of_another_form_ends_no_run(recorder, capsys):
    recorder.handle(event("job_info", jobid=1))
    assert "AttributeError" in capsys.readouterr().err
    start(recorder, 1, "dump")
    assert recorder.run.running[1].rule == "dump"


def test_many_running_jobs_are_cut_short(recorder, path, capsys):
    for job in range(status.SHOWN_JOBS + 5):
        start(recorder, job, "train")
    assert "\n  and 5 more\n" in said(capsys) + "\n"


@pytest.mark.parametrize("where", [[], ["results/none"], ["none"]])
def test_nothing_was_run(path, where, capsys):
    assert main(["status", *where]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "Traceback" not in error


def test_a_damaged_record_is_a_plain_error(path):
    path.parent.mkdir(parents=True)
    path.write_text('{"event": "run", "time": 1, "pid": 2, "host": "h"}\n{"event": "finished"}\n')
    with pytest.raises(DataError, match="only a record, delete it"):
        last_run(path)


def test_spans():
    assert [span(x) for x in (4.4, 61, 3599.6, 7260)] == [
        "4 s", "1 min 01 s", "1 h 00 min", "2 h 01 min",
    ]  # fmt: skip
