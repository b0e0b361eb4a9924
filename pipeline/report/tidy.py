"""Gather all measurements of an experiment into one tidy table: one row a number.

Columns: experiment, config, commit, study, setting, model, task, policy, sparsity, budget, method,
train_sparsity, layer, metric, value, low, high, n, seed. Tables, figures and comparisons are views
of it. Files that vary something beside the grid say what in columns ``study`` (its name) and
``setting`` (its value, a number); in the others the study is "grid". ``config`` and ``commit`` say
which run gathered the table. A measured file of an earlier commit counts as long as the code and
settings that it depends on are the same: its column ``measured_by`` is a hash of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ..errors import DataError
from ..experiment.latency import FORMS, Setting
from ..experiment.methods import FULL, GRID
from ..text.rouge import ROUGE
from .metrics import GENERATE
from .statistics import Estimate, estimate, estimate_share, mean, mean_difference, perplexity

COLUMNS = [
    "experiment", "config", "commit", "study", "setting", "model", "task", "policy", "sparsity",
    "budget", "method", "train_sparsity", "layer", "metric", "value", "low", "high", "n", "seed",
]  # fmt: skip
SCORE = "score."
"""What the columns of a harness task's metrics begin with."""


Key = dict[str, Any]


def row(key: Key, metric: str, found: Estimate) -> Key:
    """A row of the tidy table."""
    return key | {"metric": metric} | vars(found)


def aligned(table: pd.DataFrame, documents: list[str], where: str) -> pd.DataFrame:
    """Rows in the order of ``documents``.

    Raises:
        DataError: another set of documents was measured, or one twice, so nothing could be paired.
    """
    if sorted(table["document"]) != sorted(set(documents)):
        raise DataError(f"{where} was measured on other documents than the full cache; rerun it.")
    return table.set_index("document").loc[documents]


def by_method(table: pd.DataFrame) -> Iterator[tuple[Key, pd.DataFrame]]:
    """Split a cell's rows by method and train sparsity."""
    for (method, sparsity, budget), rows in table.groupby(
        ["method", "train_sparsity", "budget"], dropna=False, sort=False
    ):
        yield {"method": method, "train_sparsity": sparsity, "budget": budget}, rows


def cell_of(table: pd.DataFrame) -> Key:
    """What a measured file is about; the same in all its rows."""
    return {name: table[name].iloc[0] for name in ("model", "task", "policy", "sparsity")}


def perplexity_rows(table: pd.DataFrame, full: pd.DataFrame, draws: np.ndarray) -> Iterator[Key]:
    """Perplexities, recovered gap (per word) and paired difference to baseline+ of one cell."""
    cell, documents = cell_of(table), list(full["document"])
    full = full.set_index("document")
    tokens, words = full["tokens"].to_numpy(), full["words"].to_numpy()
    losses = [
        (cell | found, aligned(rows, documents, str(cell))["nll"].to_numpy())
        for found, rows in by_method(table)
    ]
    untrained = {key["method"]: nll for key, nll in losses}
    for key, nll in losses:
        yield row(key, "token_perplexity", estimate(perplexity, nll, tokens, draws=draws))
        yield row(key, "word_perplexity", estimate(perplexity, nll, words, draws=draws))
        if key["method"] == FULL:
            continue
        base, plus = untrained.get("baseline"), untrained.get("baseline_plus")
        if base is not None and key["method"] != "baseline":
            reference = full["nll"].to_numpy()
            gap = estimate_share(perplexity, nll, base, reference, words, draws=draws)
            yield row(key, "recovered_gap", gap)
        if plus is not None and key["method"] != "baseline_plus":
            difference = estimate(mean_difference, nll, plus, tokens, draws=draws)
            yield row(key, "nats_over_baseline_plus", difference)


def mean_rows(
    table: pd.DataFrame,
    full: pd.DataFrame,
    draws: np.ndarray,
    metrics: Mapping[str, str],
    compared: Sequence[str],
) -> Iterator[Key]:
    """Means over documents of one cell, and what they are to baseline+, baseline and full cache.

    Args:
        metrics: columns of the table by the name of their metric.
        compared: metrics with a paired difference to baseline+; the first has a recovered gap.
    """
    cell, documents = cell_of(table), list(full["document"])
    full = full.set_index("document")
    scores = [
        (cell | found, aligned(rows, documents, str(cell))) for found, rows in by_method(table)
    ]
    untrained = {key["method"]: found for key, found in scores}
    base, plus = untrained.get("baseline"), untrained.get("baseline_plus")
    for key, found in scores:
        for metric, column in metrics.items():
            yield row(key, metric, estimate(mean, found[column].to_numpy(), draws=draws))
        if key["method"] == FULL:
            continue
        if base is not None and key["method"] != "baseline":
            three = (part[metrics[compared[0]]].to_numpy() for part in (found, base, full))
            yield row(key, "recovered_gap", estimate_share(mean, *three, draws=draws))
        if plus is not None and key["method"] != "baseline_plus":
            for metric in compared:
                difference = (found[metrics[metric]] - plus[metrics[metric]]).to_numpy()
                yield row(
                    key, f"{metric}_over_baseline_plus", estimate(mean, difference, draws=draws)
                )


def summary_rows(table: pd.DataFrame, full: pd.DataFrame, draws: np.ndarray) -> Iterator[Key]:
    """Mean ROUGE of one cell; methods are compared in Rouge-L."""
    return mean_rows(table, full, draws, {metric: metric for metric in ROUGE}, ["rougeL"])


def score_rows(table: pd.DataFrame, full: pd.DataFrame, draws: np.ndarray) -> Iterator[Key]:
    """Mean scores of one cell of a task of lm-evaluation-harness; methods are compared in each."""
    columns = [column for column in table if column.startswith(SCORE)]
    metrics = {column.removeprefix(SCORE): column for column in columns}
    return mean_rows(table, full, draws, metrics, list(metrics))


def fidelity_rows(table: pd.DataFrame, full: pd.DataFrame, draws: np.ndarray) -> Iterator[Key]:
    """Mean Hellinger distance by layer; there is none of the full cache."""
    cell = cell_of(table)
    for found, rows in by_method(table):
        for layer, values in rows.groupby("layer"):
            distance = estimate(mean, values["hellinger"].to_numpy(), draws=draws)
            yield row(cell | found | {"layer": layer}, "hellinger", distance)


def speed_rows(table: pd.DataFrame) -> Iterator[Key]:
    """Medians over repetitions, between the fastest and the slowest, and the parts of a step.

    What ran out of memory has a row without value, of no repetition. Decoding is what the other
    parts leave of a step.
    """
    setting = Setting.of(table["task"].iloc[0])
    keys = ["policy", "sparsity", "budget", "method", "train_sparsity", "form"]
    where = {name: table[name].iloc[0] for name in ("model", "task")}
    for values, rows in table.groupby(keys, dropna=False, sort=False):
        key = where | dict(zip(keys, values, strict=True))
        by_engine = key.pop("form") == FORMS[0]
        tokens = setting.batch * setting.new_tokens
        for metric, numbers in (
            ("latency_s", rows["seconds"]),
            ("throughput", tokens / rows["seconds"]),
            ("peak_memory_bytes", rows["peak_bytes"]),
        ):
            yield row(key, metric if by_engine else GENERATE + metric, spread(numbers))
        if not by_engine or rows["seconds"].isna().all():
            continue
        parts = rows.filter(like="part.").iloc[0].dropna() * 1e3
        total = spread(rows["step_seconds"] * 1e3)
        yield row(key, "step_ms.total", total)
        found = {name.removeprefix("part."): value for name, value in parts.items()}
        found = {"decoding": total.value - sum(found.values())} | found
        for part, value in found.items():
            yield row(key, f"step_ms.{part}", Estimate(value, math.nan, math.nan, total.n))


def spread(numbers: pd.Series) -> Estimate:
    """The median between the least and the greatest; of nothing, no value."""
    found = numbers.dropna().astype(float)
    return Estimate(found.median(), found.min(), found.max(), len(found))


MEASURES: dict[str, Callable[[pd.DataFrame, pd.DataFrame, np.ndarray], Iterator[Key]]] = {
    "nll": perplexity_rows,
    "rougeL": summary_rows,
    SCORE: score_rows,
    "hellinger": fidelity_rows,
    "peak_bytes": lambda table, full, draws: speed_rows(table),
}
"""How the column begins that tells what a file measured, and what becomes of its rows."""


ALONE = ("hellinger", "peak_bytes")
"""Of these, what is compared is in one file."""


def measure_of(table: pd.DataFrame) -> str:
    """Which of :data:`MEASURES` a file holds."""
    return next(start for start in MEASURES if any(name.startswith(start) for name in table))


class Part(NamedTuple):
    """A part of a measured file that is one cell."""

    study: str
    setting: float | None
    table: pd.DataFrame


def parts(table: pd.DataFrame) -> Iterator[Part]:
    """Split a file by study and setting; most have only the grid's."""
    table = table.assign(study=table.get("study", GRID), setting=table.get("setting"))
    for (study, setting), rows in table.groupby(["study", "setting"], dropna=False, sort=False):
        yield Part(study, None if pd.isna(setting) else float(setting), rows)


def full_caches(cells: Sequence[Part]) -> Callable[[Part], pd.DataFrame]:
    """How to find the full cache that a part is compared with: its study's own, or the grid's."""

    def key(part: Part) -> tuple[Any, ...]:
        cell = cell_of(part.table)
        return part.study, part.setting, cell["model"], cell["task"]

    full = {key(part): part.table for part in cells if cell_of(part.table)["policy"] is None}

    def reference(part: Part) -> pd.DataFrame:
        own = key(part)
        return full[own if own in full else (GRID, None, *own[2:])]

    return reference


def of_one_run(cells: Iterable[Part], labels: Mapping[str, list[str]]) -> None:
    """Refuse files that this run did not ask for.

    Raises:
        DataError: a label that the experiment does not have, or a cell measured twice.
    """
    seen = set()
    for part in cells:
        cell = cell_of(part.table)
        for column, known in labels.items():
            label = part.table[column].iloc[0] if column in part.table else "of an earlier version"
            if pd.notna(label) and label not in known:
                raise DataError(
                    f"{cell} is of another run: the experiment has no {column} '{label}'. Give the "
                    "files of one experiment, all measured by this code; delete others."
                )
        named = (part.study, part.setting, measure_of(part.table), *cell.values())
        key = tuple(None if pd.isna(value) else value for value in named)
        if key in seen:
            raise DataError(f"{cell} was given twice; give the files of one run only.")
        seen.add(key)
