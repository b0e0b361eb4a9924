"""The kinds of tasks: what measures one, where its measurements go, and what they ask."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Options = dict[str, Any]
"""Options of a step, by their names with underscores."""


@dataclass(frozen=True)
class Kind:
    """One kind of task, as a row of :data:`KINDS`.

    Attributes:
        step: command that measures a cell of it.
        folder: of its measurements, in scratch.
        options: what its step is told beyond the cell, of (config, model, task).
        prompts: whether it reads what `less-kv prompts` writes.
    """

    step: str
    folder: str
    options: Callable[[Mapping[str, Any], str, Mapping[str, Any]], Options]
    prompts: bool = False


def _nothing(config: Mapping[str, Any], model: str, task: Mapping[str, Any]) -> Options:
    """Return no options."""
    return {}


def _decoding(config: Mapping[str, Any], model: str, task: Mapping[str, Any]) -> Options:
    """Return how summaries are decoded."""
    return {key: task[key] for key in ("max_new_tokens", "temperature", "batch_size")}


def _question(config: Mapping[str, Any], model: str, task: Mapping[str, Any]) -> Options:
    """Return what a task of lm-evaluation-harness asks, and of which text."""
    datasets = config["datasets"]
    return {
        "task": task["task"],
        "context": config["models"][model]["context"],
        "shots": task["num_fewshot"],
        "dataset": datasets.get(task.get("dataset")),
        "shots_from": datasets.get(task.get("fewshot_dataset")),
        "limit": task["limit"],
        "max_words": task["max_words"],
    }


KINDS: dict[str, Kind] = {
    "perplexity": Kind(step="evaluate", folder="evaluations", options=_nothing),
    "summaries": Kind(step="summaries", folder="summaries", options=_decoding, prompts=True),
    "harness": Kind(step="harness", folder="harness", options=_question),
}
"""Every kind, by the name that a task's ``kind`` gives."""
