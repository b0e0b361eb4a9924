"""Progress lines for logs: which step, how far, how long still."""

from __future__ import annotations

import sys
import time

from .machine import machine


def rate(count: float, seconds: float) -> str:
    """Return units a second, in three digits."""
    return f"{count / max(seconds, 1e-9):.3g}/s"


class Progress:
    """Counts finished units and prints a line to stderr, at most one every ``every`` seconds."""

    def __init__(self, label: str, total: int, every: float = 5.0) -> None:
        self.label, self.total, self.every = label, total, every
        self.done = 0
        self.started = self.printed = time.monotonic()
        print(f"{label}: {total} to do on {machine()}", file=sys.stderr, flush=True)

    def step(self, note: str = "") -> None:
        """Count one unit as finished; ``note`` says what it gave."""
        self.done += 1
        now = time.monotonic()
        if now - self.printed < self.every and self.done < self.total:
            return
        self.printed = now
        spent = now - self.started
        left = spent / self.done * (self.total - self.done)
        text = (
            f"{self.label}: {self.done}/{self.total}, {rate(self.done, spent)}, "
            f"{spent:.0f} s spent, {left:.0f} s left"
        )
        print(f"{text}  {note}".rstrip(), file=sys.stderr, flush=True)
