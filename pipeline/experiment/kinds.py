"""The kinds of tasks: what measures one, and where."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """One kind of task, as a row of :data:`KINDS`.

    Attributes:
        step: command that measures a cell of it.
        folder: of its measurements, in scratch.
    """

    step: str
    folder: str


KINDS: dict[str, Kind] = {
    "perplexity": Kind(step="evaluate", folder="evaluations"),
    "summaries": Kind(step="summaries", folder="summaries"),
    "harness": Kind(step="harness", folder="harness"),
}
"""Every kind, by the name that a task's ``kind`` gives."""
