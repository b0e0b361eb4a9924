"""What runs did and do, read from their record: a line an event, one run after the other.

:mod:`pipeline.runtime.recorder` writes `logs/<experiment>/run.jsonl` and holds a lock on it, which
the kernel drops with the process: that tells a run that is alive from one that was killed. Planning
imports this, so nothing heavy is imported.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from ..errors import DataError

NAME = "run.jsonl"
"""The file's name, in the folder of an experiment's logs."""
WAIT_S = 0.1
"""Between two tries of taking a lock."""
TARGETS = ("all", "policy_")
"""How rules begin that only ask for files."""

Event = dict[str, Any]


def locked(file: TextIO, kind: int, tries: int) -> bool:
    """Take a lock without waiting long; where a file system knows none, everyone has it."""
    for attempt in range(tries):
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if attempt + 1 < tries:
                time.sleep(WAIT_S)
        except OSError:
            return True
        else:
            return True
    return False


@dataclass
class Job:
    """A job that was started: its rule, when, and the path of its log."""

    rule: str
    began: float
    log: str | None


@dataclass
class Run:
    """One run, as far as its events tell."""

    first: Event
    planned: dict[str, int] | None = None
    """Jobs by rule; None until they are known."""
    running: dict[int, Job] = field(default_factory=dict)
    failed: dict[int, Job] = field(default_factory=dict)
    done: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """How long finished jobs took, by rule; those of earlier runs come first."""
    errors: list[str] = field(default_factory=list)
    ended: float | None = None
    busy: float = 0.0
    """Seconds of this run's finished jobs."""
    latest: float = 0.0

    @property
    def pid(self) -> int:
        """Process of the scheduler."""
        return int(self.first["pid"])

    @property
    def host(self) -> str:
        """Machine of the scheduler."""
        return str(self.first["host"])

    @property
    def began(self) -> float:
        """Seconds since the epoch."""
        return float(self.first["time"])

    @property
    def idle(self) -> bool:
        """Whether it ended well without a job, since all was there."""
        return self.ended is not None and not self.planned and not self.errors

    @property
    def waiting(self) -> dict[str, int]:
        """Jobs that have not been started, by rule."""
        taken = self.done + Counter(j.rule for j in [*self.running.values(), *self.failed.values()])
        left = {rule: count - taken[rule] for rule, count in (self.planned or {}).items()}
        return {rule: count for rule, count in left.items() if count > 0}

    def follow(self, event: Event) -> None:
        """Take note of an event."""
        self.latest = event["time"]
        match event["event"]:
            case "planned":
                self.planned = event["jobs"]
            case "started" if not event["rule"].startswith(TARGETS):
                self.failed.pop(event["job"], None)  # tried again
                self.running[event["job"]] = Job(event["rule"], event["time"], event["log"])
            case "finished" if event["job"] in self.running:
                job = self.running.pop(event["job"])
                self.done[job.rule] += 1
                self.seconds[job.rule].append(event["time"] - job.began)
                self.busy += event["time"] - job.began
            case "failed" if event["job"] in self.running:
                self.failed[event["job"]] = self.running.pop(event["job"])
            case "error":
                self.errors.append(event["message"])
            case "ended":
                self.ended = event["time"]

    def left(self, now: float) -> tuple[float | None, bool]:
        """Return (seconds left at the pace so far, whether every rule has a time).

        Finished jobs of a rule tell how long its others take, those of earlier runs too; a rule
        without any counts as the mean of the others, and without them nothing is known (None). How
        many jobs run at once is taken from this run.
        """
        mean = {rule: sum(times) / len(times) for rule, times in self.seconds.items() if times}
        rules = {*self.waiting, *(job.rule for job in self.running.values())}
        if not mean and rules:
            return None, False
        typical = sum(mean.values()) / max(len(mean), 1)
        work = sum(mean.get(rule, typical) * count for rule, count in self.waiting.items())
        spent = self.busy
        for job in self.running.values():
            work += max(mean.get(job.rule, typical) - (now - job.began), 0.0)
            spent += now - job.began
        at_once = max(spent / max(now - self.began, 1e-9), 1.0)
        return work / at_once, rules <= set(mean)


def read_runs(path: Path) -> Iterator[Run]:
    """Yield the runs of an experiment, first to last; a line that a kill cut off is passed over.

    Raises:
        DataError: there is no such file, or it cannot be read.
    """
    run = None
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    event = json.loads(line)
                except ValueError:
                    continue
                if event["event"] == "run":
                    if run:
                        yield run
                    run = Run(event, seconds=run.seconds if run else defaultdict(list))
                if run:
                    run.follow(event)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: nothing was run here yet.") from None
    except (OSError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error!r}); it is only a record, delete it.") from None
    if run:
        yield run


def last_run(path: Path) -> Run:
    """Return the last run of an experiment that had something to do, or else the last.

    Raises:
        DataError: as :func:`read_runs`, also where there is none.
    """
    run = None
    for each in read_runs(path):
        if run is None or not each.idle:
            run = each
    if run is None:
        raise DataError(f"{path} holds no run.")
    return run


def is_alive(path: Path) -> bool:
    """Tell whether a run's scheduler lives: it holds a lock until it ends, however it ends."""
    with suppress(FileNotFoundError), path.open(encoding="utf-8") as file:
        return not locked(file, fcntl.LOCK_SH, 1)
    return False


def state(run: Run, alive: bool) -> str:
    """Return what became of a run, in a few words."""
    if alive:
        return "running" if run.planned is not None else "planning"
    if run.ended is None:
        return "killed"
    if run.failed or run.errors:
        return "failed"
    if run.idle:
        return "nothing was to be done"
    return "interrupted" if run.waiting or run.running else "finished"


def clock(moment: float) -> str:
    """Return a time of day, with its date."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))


def span(seconds: float) -> str:
    """Return a length of time, as people say it."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def time_left(run: Run, now: float) -> str:
    """Return how long a run will still take, as far as recorded times tell."""
    seconds, known = run.left(now)
    if seconds is None:
        return "time left not known yet"
    return f"{'about' if known else 'roughly'} {span(seconds)} left"


def one_line(run: Run, now: float) -> str:
    """Return how far a run is."""
    total = sum((run.planned or {}).values())
    parts = [f"{run.done.total()} of {total} jobs done", f"{len(run.running)} running"]
    parts += [f"{len(run.failed)} failed"] if run.failed else []
    stages = [
        f"{rule} {run.done[rule]}/{count}"
        for rule, count in (run.planned or {}).items()
        if run.done[rule] < count and (run.done[rule] or _active(run, rule))
    ]
    parts += [", ".join(stages)] if stages else []
    if run.waiting or run.running:
        parts.append(time_left(run, now))
    return f"progress: {'; '.join(parts)}"


def _active(run: Run, rule: str) -> bool:
    return any(job.rule == rule for job in run.running.values())
