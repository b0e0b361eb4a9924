"""Gather all measurements of an experiment into one tidy table: one row a number.

Columns: experiment, config, model, task, policy, sparsity, budget, method, train_sparsity, layer,
metric, value, low, high, n, seed. Tables, figures and comparisons are views of it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
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


def fidelity_rows(table: pd.DataFrame, seed: int, bootstrap: int) -> Iterator[Key]:
    """Mean Hellinger distance by layer."""
    cell = cell_of(table)
    for found, rows in by_method(table):
        for layer, values in rows.groupby("layer"):
            draws = resamples(len(values), bootstrap, seed)
            mean = estimate(lambda x: x.mean(-1), values["hellinger"].to_numpy(), draws=draws)
            yield row(cell | found | {"layer": layer}, "hellinger", mean)


def run(args: argparse.Namespace) -> None:
    """Write the tidy table (parquet)."""
    tables = [load_table(path) for path in args.cells]
    full = {
        (cell["model"], cell["task"]): table
        for table in tables
        if "nll" in table and (cell := cell_of(table))["policy"] is None
    }
    rows: list[Key] = []
    progress = Progress("tabulate", len(tables))
    for table in tables:
        if "nll" in table:
            cell = cell_of(table)
            reference = full[cell["model"], cell["task"]]
            draws = resamples(len(reference), args.bootstrap, args.seed)
            rows += perplexity_rows(table, reference, draws)
        else:
            rows += fidelity_rows(table, args.seed, args.bootstrap)
        progress.step()
    tidy = pd.DataFrame(rows).assign(
        experiment=args.experiment, config=args.config_hash, seed=args.seed
    )
    save_table(args.out, tidy.reindex(columns=COLUMNS))
