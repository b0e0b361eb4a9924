"""Gather all measurements of an experiment into one tidy table: one row a number.

Columns: experiment, config, commit, study, setting, model, task, policy, sparsity, budget, method,
train_sparsity, layer, metric, value, low, high, n, seed. Tables, figures and comparisons are views
of it. ``config`` and ``commit`` say which run gathered the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..errors import DataError, unknown
from ..experiment.latency import FORMS, Setting
from ..experiment.methods import FULL
from ..runtime.progress import Progress
from ..storage.files import save_table
from ..text.rouge import ROUGE
from .cells import Key, cell_of, full_caches, load_parts, of_one_run
from .metrics import GENERATE
from .statistics import (
    Estimate,
    estimate,
    estimate_share,
    mean,
    mean_difference,
    perplexity,
    resamples,
)

COLUMNS = [
    "experiment", "config", "commit", "study", "setting", "model", "task", "policy", "sparsity",
    "budget", "method", "train_sparsity", "layer", "metric", "value", "low", "high", "n", "seed",
]  # fmt: skip
SCORE = "score."
"""What the columns of a harness task's metrics begin with."""


def row(key: Key, metric: str, value: Estimate) -> Key:
    """Return a row of the tidy table."""
    return key | {"metric": metric} | vars(value)


def aligned(table: pd.DataFrame, documents: list[str], where: str) -> pd.DataFrame:
    """Return rows in the order of ``documents``.

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


def perplexity_rows(table: pd.DataFrame, full: pd.DataFrame, draws: np.ndarray) -> Iterator[Key]:
    """Yield perplexities, recovered gap (per word) and difference to baseline+ of one cell."""
    cell, documents = cell_of(table), list(full["document"])
    full = full.set_index("document")
    tokens, words = full["tokens"].to_numpy(), full["words"].to_numpy()
    losses = [
        (cell | method, aligned(rows, documents, str(cell))["nll"].to_numpy())
        for method, rows in by_method(table)
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
    """Yield means over documents of one cell, and what they are to the other methods.

    Args:
        metrics: columns of the table by the name of their metric.
        compared: metrics with a paired difference to baseline+; the first has a recovered gap.
    """
    cell, documents = cell_of(table), list(full["document"])
    full = full.set_index("document")
    scores = [
        (cell | method, aligned(rows, documents, str(cell))) for method, rows in by_method(table)
    ]
    untrained = {key["method"]: own for key, own in scores}
    base, plus = untrained.get("baseline"), untrained.get("baseline_plus")
    for key, own in scores:
        for metric, column in metrics.items():
            yield row(key, metric, estimate(mean, own[column].to_numpy(), draws=draws))
        if key["method"] == FULL:
            continue
        if base is not None and key["method"] != "baseline":
            three = (part[metrics[compared[0]]].to_numpy() for part in (own, base, full))
            yield row(key, "recovered_gap", estimate_share(mean, *three, draws=draws))
        if plus is not None and key["method"] != "baseline_plus":
            for metric in compared:
                difference = (own[metrics[metric]] - plus[metrics[metric]]).to_numpy()
                yield row(
                    key, f"{metric}_over_baseline_plus", estimate(mean, difference, draws=draws)
                )


def summary_rows(table: pd.DataFrame, full: pd.DataFrame, draws: np.ndarray) -> Iterator[Key]:
    """Return mean ROUGE of one cell; methods are compared in Rouge-L."""
    return mean_rows(table, full, draws, {metric: metric for metric in ROUGE}, ["rougeL"])


def score_rows(table: pd.DataFrame, full: pd.DataFrame, draws: np.ndarray) -> Iterator[Key]:
    """Return mean scores of one cell of a task of lm-evaluation-harness, all compared."""
    columns = [column for column in table if column.startswith(SCORE)]
    metrics = {column.removeprefix(SCORE): column for column in columns}
    return mean_rows(table, full, draws, metrics, list(metrics))


def fidelity_rows(table: pd.DataFrame, full: pd.DataFrame, draws: np.ndarray) -> Iterator[Key]:
    """Yield the mean Hellinger distance by layer; there is none of the full cache."""
    cell = cell_of(table)
    for method, rows in by_method(table):
        for layer, values in rows.groupby("layer"):
            distance = estimate(mean, values["hellinger"].to_numpy(), draws=draws)
            yield row(cell | method | {"layer": layer}, "hellinger", distance)


def speed_rows(table: pd.DataFrame, full: pd.DataFrame, draws: np.ndarray) -> Iterator[Key]:
    """Yield medians over repetitions, between the fastest and the slowest, and the parts of a step.

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
        shares = {name.removeprefix("part."): value for name, value in parts.items()}
        shares = {"decoding": total.value - sum(shares.values())} | shares
        for part, value in shares.items():
            yield row(key, f"step_ms.{part}", Estimate(value, math.nan, math.nan, total.n))


def spread(numbers: pd.Series) -> Estimate:
    """Return the median between the least and the greatest; of nothing, no value."""
    known = numbers.dropna().astype(float)
    return Estimate(known.median(), known.min(), known.max(), len(known))


@dataclass(frozen=True)
class Measure:
    """What becomes of the rows of one kind of file.

    Attributes:
        rows: rows of the tidy table of (a cell, what it is compared with, resamples).
        alone: whether all that is compared is in one file, so that no full cache is needed.
    """

    rows: Callable[[pd.DataFrame, pd.DataFrame, np.ndarray], Iterator[Key]]
    alone: bool = False


MEASURES: dict[str, Measure] = {
    "perplexity": Measure(perplexity_rows),
    "summaries": Measure(summary_rows),
    "scores": Measure(score_rows),
    "fidelity": Measure(fidelity_rows, alone=True),
    "latency": Measure(speed_rows, alone=True),
}
"""By the kind that a measured file names in its header."""


def tabulate(
    cells: Sequence[Path],
    labels: Mapping[str, list[str]],
    draws: int,
    seed: int,
    out: Path,
    **columns: Any,
) -> None:
    """Gather measured files into the tidy table (parquet).

    Args:
        labels: what columns may say in this run, by column.
        draws: resamples of the documents. seed: of them.
        columns: of every row.

    Raises:
        DataError: a file is of another run, of no known kind, damaged, or given twice.
    """
    parts = load_parts(cells)
    of_one_run(parts, labels)
    reference_of = full_caches(parts)
    rows: list[Key] = []
    progress = Progress("tabulate", len(parts))
    for part in parts:
        if part.kind not in MEASURES:
            raise unknown("kind of measurements", part.kind, MEASURES)
        measure = MEASURES[part.kind]
        reference = part.table if measure.alone else reference_of(part)
        documents = reference.get("document", pd.Series([""]))
        drawn = resamples(documents.nunique(), draws, seed)
        where = {"study": part.study, "setting": part.setting}
        rows += [where | measured for measured in measure.rows(part.table, reference, drawn)]
        progress.step()
    tidy = pd.DataFrame(rows).assign(**columns, seed=seed)
    save_table(out, tidy.reindex(columns=COLUMNS).astype({"setting": float}))
