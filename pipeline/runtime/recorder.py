"""Keep a run's events in a file that `less-kv status` reads, and refuse a second run beside it.

Snakemake is known by the names of its log events alone. Planning imports this, so nothing heavy is
imported.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from ..errors import DataError, LessError
from .history import TARGETS, Event, Run, clock, last_run, locked, one_line

TRIES = 20
"""Of taking the lock: a reader holds it for a moment."""
EVERY_S = 1.0
"""Least time between two lines of progress."""


def _started(record: Any) -> Event:
    # Where there is a storage, its address comes with a remark.
    log = [str(path).removesuffix(" (send to storage)") for path in record.log or ()]
    return {"job": record.jobid, "rule": record.rule_name, "log": log[0] if log else None}


EVENTS: dict[str, tuple[str, Callable[[Any], Event]]] = {
    "run_info": (
        "planned",
        lambda r: {
            "jobs": {k: n for k, n in r.stats.items() if not k.startswith(("total", *TARGETS))}
        },
    ),
    "job_info": ("started", _started),
    "job_finished": ("finished", lambda r: {"job": r.job_id}),
    "job_error": ("failed", lambda r: {"job": r.jobid}),
    "error": ("error", lambda r: {"message": r.getMessage()}),
}
"""Snakemake's log events that are kept: our name, and what is kept of each."""


class Recorder(logging.Handler):
    """Writes the events of a run, and after finished jobs one line on how far it is.

    Args:
        path: the experiment's :data:`NAME`.
        show: where lines of progress go; None for nowhere.
        refusal: what is raised where a run cannot begin.
        begun: called once no other run is alive, before the files there are looked at.
    """

    def __init__(
        self,
        path: Path,
        show: TextIO | None = None,
        refusal: type[Exception] = LessError,
        begun: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__()
        self.path, self.show, self.refusal, self.begun = path, show, refusal, begun
        self.file: TextIO | None = None
        self.alive: TextIO | None = None
        self.run: Run | None = None
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.shown = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Keep an event; the first of a run is refused while another run is alive."""
        name = str(getattr(record, "event", None))
        if name == "workflow_started":
            try:
                self._begin()
            except LessError as error:
                raise self.refusal(str(error)) from None
        try:
            self._keep(name, record)
        except Exception:  # it is only a record: the run goes on
            self.handleError(record)

    def _keep(self, name: str, record: logging.LogRecord) -> None:
        if self.file and name in EVENTS:
            ours, kept = EVENTS[name]
            self._write(ours, kept(record))
        elif self.show and self.run and name == "progress":
            now = time.time()
            if now - self.shown >= EVERY_S or not self.run.waiting:
                self.shown = now
                print(one_line(self.run, now), file=self.show, flush=True)

    def _begin(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path.open("a+", encoding="utf-8")
        except OSError as error:
            raise DataError(f"cannot write {self.path}: {error.strerror or error}.") from error
        if not locked(file, fcntl.LOCK_EX, TRIES):
            file.close()
            running = last_run(self.path)
            raise LessError(
                f"another run of this experiment is alive in {Path.cwd()}: process "
                f"{running.pid} on {running.host}, since {clock(running.began)}. Wait for it or "
                "stop it (`less-kv status` shows how far it is); this one ends here."
            )
        with suppress(DataError):
            self.seconds = last_run(self.path).seconds
        self.alive = clear_stale_locks(Path(".snakemake"))
        self.file = file
        with suppress(OSError):
            file.write("\n")  # ends a line that a kill cut off
        origin = {"pid": os.getpid(), "host": socket.gethostname(), "command": sys.argv[1:]}
        self._write("run", origin)
        self.begun()

    def _write(self, name: str, content: Event) -> None:
        event = {"event": name, "time": round(time.time(), 3)} | content
        if name == "run":
            self.run = Run(event, seconds=self.seconds)
        if self.run:
            self.run.follow(event)
        if self.file:
            with suppress(OSError):  # a full disk ends jobs with a message; it need not end this
                self.file.write(json.dumps(event) + "\n")
                self.file.flush()

    def close(self) -> None:
        """Write that the run ends, well or not; a killed one never comes here."""
        if self.file:
            self._write("ended", {})
        for file in filter(None, (self.file, self.alive)):
            with suppress(OSError):
                file.close()
        self.file = self.alive = None
        super().close()


def clear_stale_locks(snakemake: Path) -> TextIO:
    """Remove the locks that a killed run left, so that starting again is all it takes.

    Runs of all experiments share a lock that the kernel drops with its process: who can have it
    alone knows that no other run is alive. Where a file system knows no such locks, Snakemake asks
    for --unlock.

    Returns:
        The file that has to stay open as long as the run lives.
    """
    snakemake.mkdir(exist_ok=True)
    alive = (snakemake / "alive").open("a")
    with suppress(OSError):
        fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for stale in (snakemake / "locks").glob("*.lock"):
            stale.unlink(missing_ok=True)
    with suppress(OSError):
        fcntl.flock(alive, fcntl.LOCK_SH)  # who has it alone, has it for a moment
    return alive
