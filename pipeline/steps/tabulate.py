"""Gather all measurements of an experiment into one tidy table: one row a number.

Columns: experiment, config, model, task, policy, sparsity, budget, method, train_sparsity, layer,
metric, value, low, high, n, seed. Tables, figures and comparisons are views of it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.errors import DataError
from pipeline.files import load_table, save_table
from pipeline.methods import FULL
from pipeline.progress import Progress
from pipeline.statistics import (
    Estimate,
    estimate,
    mean_difference,
    perplexity,
    recovered_gap,
    resamples,
)
from pipeline.summaries import ROUGE

COLUMNS = [
    "experiment", "config", "model", "task", "policy", "sparsity", "budget", "method",
    "train_sparsity", "layer", "metric", "value", "low", "high", "n", "seed",
]  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``less tabulate``."""
    parser.add_argument("--cells", type=Path, nargs="+", required=True, help="measured cells")
    parser.add_argument("--experiment", required=True)
    parser.add_argument("--config-hash", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bootstrap", type=int, default=2000, help="resamples")
    parser.add_argument("--out", type=Path, required=True)


Key = dict[str, Any]


def row(key: Key, metric: str, found: Estimate) -> Key:
    """A row of the tidy table."""
    return key | {"metric": metric} | vars(found)


def mean(scores: np.ndarray) -> np.ndarray:
    """Mean over documents."""
    return np.asarray(scores.mean(-1))


def aligned(table: pd.DataFrame, documents: list[str], where: str) -> pd.DataFrame:
    """Rows in the order of ``documents``.

    Raises:
        DataError: another set of documents was measured, so nothing could be paired.
    """
    if sorted(table["document"]) != sorted(documents):
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
    """Perplexities, recovered gap and the paired difference to baseline+ of one cell."""
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
            gap = estimate(recovered_gap, nll, base, reference, tokens, draws=draws)
            yield row(key, "recovered_gap", gap)
        if plus is not None and key["method"] != "baseline_plus":
            difference = estimate(mean_difference, nll, plus, tokens, draws=draws)
            yield row(key, "nats_over_baseline_plus", difference)


def summary_rows(table: pd.DataFrame, full: pd.DataFrame, draws: np.ndarray) -> Iterator[Key]:
    """Mean ROUGE, and the paired difference to baseline+ in Rouge-L, of one cell."""
    cell, documents = cell_of(table), list(full["document"])
    scores = [
        (cell | found, aligned(rows, documents, str(cell))) for found, rows in by_method(table)
    ]
    plus = {key["method"]: found["rougeL"].to_numpy() for key, found in scores}.get("baseline_plus")
    for key, found in scores:
        for metric in ROUGE:
            yield row(key, metric, estimate(mean, found[metric].to_numpy(), draws=draws))
        if plus is not None and key["method"] != "baseline_plus":
            difference = estimate(mean, found["rougeL"].to_numpy() - plus, draws=draws)
            yield row(key, "rougeL_over_baseline_plus", difference)


def fidelity_rows(table: pd.DataFrame, full: pd.DataFrame, draws: np.ndarray) -> Iterator[Key]:
    """Mean Hellinger distance by layer; there is none of the full cache."""
    cell = cell_of(table)
    for found, rows in by_method(table):
        for layer, values in rows.groupby("layer"):
            distance = estimate(mean, values["hellinger"].to_numpy(), draws=draws)
            yield row(cell | found | {"layer": layer}, "hellinger", distance)


MEASURES: dict[str, Callable[[pd.DataFrame, pd.DataFrame, np.ndarray], Iterator[Key]]] = {
    "nll": perplexity_rows,
    "rougeL": summary_rows,
    "hellinger": fidelity_rows,
}
"""The column that tells what a file measured, and what becomes of its rows."""


def measure_of(table: pd.DataFrame) -> str:
    """Which of :data:`MEASURES` a file holds."""
    return next(column for column in MEASURES if column in table)


def run(args: argparse.Namespace) -> None:
    """Write the tidy table (parquet)."""
    tables = [load_table(path) for path in args.cells]
    cells = [(cell_of(table), measure_of(table), table) for table in tables]
    full = {
        (cell["model"], cell["task"]): table for cell, _, table in cells if cell["policy"] is None
    }
    rows: list[Key] = []
    progress = Progress("tabulate", len(cells))
    for cell, measure, table in cells:
        reference = table if measure == "hellinger" else full[cell["model"], cell["task"]]
        draws = resamples(reference["document"].nunique(), args.bootstrap, args.seed)
        rows += MEASURES[measure](table, reference, draws)
        progress.step()
    tidy = pd.DataFrame(rows).assign(
        experiment=args.experiment, config=args.config_hash, seed=args.seed
    )
    save_table(args.out, tidy.reindex(columns=COLUMNS))
