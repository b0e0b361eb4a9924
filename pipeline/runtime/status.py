"""How far a run is: jobs by stage, what the running ones say, and how long it will still take."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tabulate import tabulate

from ..errors import DataError
from .history import NAME, Run, clock, is_alive, last_run, span, state, time_left

SHOWN_JOBS = 20
"""Running jobs whose last line is shown; a cluster may run hundreds."""
TAIL_BYTES = 4096
REDRAW = "\x1b[H\x1b[2J"
"""Tells a terminal to begin anew at its top."""
REMARKS = {
    "killed": "Its scheduler ended without a word: it was killed, or the machine went down. "
    "Start the same command again: what is finished stays.",
    "interrupted": "It was stopped. Start the same command again: what is finished stays.",
    "failed": "Start the same command again once the cause is gone: what is finished stays.",
}
"""What to do, by the state of a run."""


def find(where: str) -> Path:
    """Return the record of the runs that ``where`` names.

    Raises:
        DataError: there is none.
    """
    given = Path(where)
    if len(given.parts) == 1 and Path("logs", where, NAME).is_file():
        return Path("logs", where, NAME)
    if given.absolute().parent.name == "results":
        return given.absolute().parent.parent / "logs" / given.absolute().name / NAME
    records = sorted(given.glob(f"logs/*/{NAME}"), key=lambda path: path.stat().st_mtime)
    if not records:
        raise DataError(f"no run is recorded under {given.absolute()}/logs.")
    return records[-1]


def last_line(path: Path) -> str:
    """Return the last line of a job's log, or nothing."""
    try:
        with path.open("rb") as log:
            log.seek(max(path.stat().st_size - TAIL_BYTES, 0))
            lines = log.read().decode(errors="replace").replace("\r", "\n").split("\n")
    except OSError:
        return ""
    said = next((line for line in reversed(lines) if line.strip()), "").strip()
    return "".join(character for character in said if character.isprintable())


def stages(run: Run) -> str:
    """Return jobs by rule, in the order of the flow."""
    running, failed = (
        Counter(job.rule for job in jobs.values()) for jobs in (run.running, run.failed)
    )
    rows = [
        [rule, run.done[rule], running[rule], failed[rule], run.waiting.get(rule, 0)]
        for rule in run.planned or {}
    ]
    rows.append(["total", *(sum(column) for column in list(zip(*rows, strict=True))[1:])])
    return str(tabulate(rows, headers=["stage", "done", "running", "failed", "waiting"]))


def describe(path: Path, now: float) -> str:
    """Return the last run of a record, as text."""
    root = path.parent.parent.parent
    alive = is_alive(path)  # first: a run that ends in between has then said so
    run = last_run(path)
    return "\n".join(_lines(run, path.parent.name, state(run, alive), root, now))


def _lines(run: Run, experiment: str, what: str, root: Path, now: float) -> Iterator[str]:
    yield f"{experiment}: {what}"
    end = now if what in ("running", "planning") else run.ended or run.latest
    about = f"began {clock(run.began)}, {span(end - run.began)}"
    yield about + (f"; {time_left(run, now)}" if what == "running" else "")
    yield f"process {run.pid} on {run.host}"
    if run.planned:
        yield ""
        yield stages(run)
    for title, jobs in (("running", run.running), ("failed", run.failed)):
        if jobs and not (title == "running" and what in ("finished", "failed")):
            yield ""
            yield f"{title if what == 'running' or title == 'failed' else 'unfinished'}:"
        else:
            continue
        for number, job in sorted(jobs.items())[:SHOWN_JOBS]:
            name = f"{job.log or f'job {number}'} ({span(end - job.began)})"
            said = last_line(root / job.log) if job.log else ""
            yield f"  {name}: {said}" if said else f"  {name}"
        if len(jobs) > SHOWN_JOBS:
            yield f"  and {len(jobs) - SHOWN_JOBS} more"
    if run.errors and not run.failed:
        yield ""
        yield run.errors[0]
    if what in REMARKS:
        yield ""
        yield REMARKS[what]


def show(where: str, live: bool, every: float) -> None:
    """Print how far a run is; while it is ``live``, anew after so many seconds."""
    path = find(where)
    try:
        while live and is_alive(path):
            print(REDRAW * sys.stdout.isatty() + describe(path, time.time()), flush=True)
            time.sleep(every)
    except KeyboardInterrupt:
        return
    print(REDRAW * (live and sys.stdout.isatty()) + describe(path, time.time()))
