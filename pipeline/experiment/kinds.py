"""The kinds of tasks: a row each, of its keys, its step, what that is told, and what it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from . import grid
from .grid import Cell
from .latency import Setting
from .sections import Harness, Perplexity, Summaries, Task
from .speeds import continuing, reading
from .task_checks import TaskCheck, harness_checks, part_checks, summaries_checks

Config = Mapping[str, Any]
Options = dict[str, Any]
"""Options of a step, by their names with underscores."""


@dataclass(frozen=True)
class Kind:
    """One kind of task, as a row of :data:`KINDS`.

    Attributes:
        section: its keys.
        step: command that measures a cell of it.
        folder: of its measurements, in scratch.
        options: what its step is told beyond the cell, of (config, model, task).
        seconds: of a GPU that one variant of a cell takes, of (config, cell).
        checks: what is wrong with a task beyond what its section says.
        counted: key that says how many documents it needs, if one does.
        prompts: whether it reads what `less-kv prompts` writes.
        known: whether the seconds of a task are, of the task.
    """

    section: type[Task]
    step: str
    folder: str
    options: Callable[[Mapping[str, Any], str, Mapping[str, Any]], Options]
    seconds: Callable[[Mapping[str, Any], Cell], float]
    checks: tuple[TaskCheck, ...] = ()
    counted: str | None = None
    prompts: bool = False
    known: Callable[[Mapping[str, Any]], bool] = lambda task: True


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


TEXTS = {
    "wikitext": (62, 3891), "pg19": (100, 69665), "boolq": (3270, 107), "mutual": (886, 433),
}  # fmt: skip
"""By task of lm-evaluation-harness, documents that are measured where all are, and the mean of the
words read for one (MuTual's prompt before each of four answers; PG-19 as its paper counts it)."""
TOKENS_A_WORD = 1.4
"""Of English, roughly."""


def _perplexity_seconds(config: Config, cell: grid.Cell) -> float:
    """Return the seconds of one variant of a cell."""
    context = config["models"][cell.model]["context"]
    windows: int = config["tasks"][cell.task]["windows"]
    return windows * reading(config, cell.model, context)


def _harness_seconds(config: Config, cell: grid.Cell) -> float:
    """Return the same; an unknown text fills the context, and counts only with a ``limit``."""
    task, context = config["tasks"][cell.task], config["models"][cell.model]["context"]
    documents, words = TEXTS.get(task["task"], (0, context / TOKENS_A_WORD))
    tokens = TOKENS_A_WORD * min(words, task["max_words"] or words) * (1 + task["num_fewshot"])
    count: int = task["limit"] or documents
    return count * reading(config, cell.model, tokens, context)


def _summaries_seconds(config: Config, cell: grid.Cell) -> float:
    """Return the same; prompts fill the context but where their length is studied."""
    task, context = config["tasks"][cell.task], config["models"][cell.model]["context"]
    new, batch = task["max_new_tokens"], task["batch_size"]
    count, prompt = task["samples"], context - new
    if cell.study == "prompt_length":
        count, prompt = config["ablations"]["prompt_lengths"]["samples"], cell.setting
    cached = prompt + new
    if cell.sparsity is not None:
        cached = grid.budget(config, cell.model, cell.sparsity)
    batches: float = count / batch
    return batches * continuing(config, cell.model, Setting(prompt, new, batch), cached)


KINDS: dict[str, Kind] = {
    "perplexity": Kind(
        section=Perplexity,
        step="evaluate",
        folder="evaluations",
        options=_nothing,
        seconds=_perplexity_seconds,
        counted="windows",
    ),
    "harness": Kind(
        section=Harness,
        step="harness",
        folder="harness",
        options=_question,
        seconds=_harness_seconds,
        checks=(harness_checks, part_checks),
        known=lambda task: bool(task["limit"] or task["task"] in TEXTS),
    ),
    "summaries": Kind(
        section=Summaries,
        step="summaries",
        folder="summaries",
        options=_decoding,
        seconds=_summaries_seconds,
        checks=(summaries_checks, part_checks),
        counted="samples",
        prompts=True,
    ),
}
"""Every kind, by the name that a task's ``kind`` gives."""
