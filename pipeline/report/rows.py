"""Loss curves of trainings, gathered into one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import DataError
from ..experiment.methods import FULL, GRID, METHODS
from ..storage.files import load_table
from . import paper
from .metrics import METRICS, PRIMARY, SPEED

COLUMNS = [
    "layer", "sparse_loss", "epoch", "train_loss", "validation_loss", "learning_rate", "model",
    "policy", "train_sparsity", "fault", "became",
]  # fmt: skip


def load_curves(paths: Sequence[Path]) -> pd.DataFrame:
    """Return a row an epoch and layer of every training; none where nothing is trained."""
    if not paths:
        return pd.DataFrame(columns=COLUMNS)
    return pd.concat([load_table(path) for path in paths], ignore_index=True)


BLOCK = ["model", "task", "policy", "sparsity"]
"""What methods are compared within."""
RUN = ["experiment", "config", "commit"]
"""What all rows of one table have in common."""

Models = Mapping[str, Mapping[str, Any]]
"""A configuration's models: name to (at least) ``context`` and ``paper``."""


def load_tidy(path: Any, sealed: bool = True) -> pd.DataFrame:
    """Return the tidy table of one run; ``sealed`` as in :func:`pipeline.storage.files.load_table`.

    Raises:
        DataError: missing or damaged, or rows of more than one run, which no table may mix.
    """
    tidy = load_table(path, sealed)
    runs = tidy[RUN].drop_duplicates()
    if len(runs) > 1:
        mixed = "; ".join(", ".join(map(str, run)) for run in runs.itertuples(index=False))
        raise DataError(f"{path} mixes runs ({mixed}); delete it and run `tabulate` again.")
    return tidy


def of_grid(tidy: pd.DataFrame, *metrics: str) -> pd.DataFrame:
    """Return the grid's own rows of some metrics."""
    return tidy[(tidy["study"] == GRID) & tidy["metric"].isin(metrics)].copy()


def budgets(tidy: pd.DataFrame) -> pd.DataFrame:
    """Return rows of the metric ``budget``: the tokens that each sparsity means for a model."""
    plain = [name for name, method in METHODS.items() if not method.extra_tokens]
    rows = tidy[(tidy["study"] == GRID) & tidy["method"].isin(plain)]
    rows = rows[~rows["metric"].isin(SPEED)]  # their sequences may be longer than the context
    rows = rows.drop_duplicates(["model", "sparsity"])
    nothing = dict.fromkeys(["task", "policy"]) | dict.fromkeys(
        ["low", "high", "n", "train_sparsity"], float("nan")
    )
    shown = rows.assign(metric="budget", value=rows["budget"].astype(float), method="baseline")
    return shown.assign(**nothing)


def with_paper(rows: pd.DataFrame, models: Models, table: str) -> pd.DataFrame:
    """Return ``rows`` with ``paper``: the number of the paper's table, as printed, or nothing.

    What the paper's table does not tell apart (policies in Table 1) is not compared. Only models
    that say which of the paper's they are have such numbers.
    """
    numbers = paper.numbers().query("table == @table")
    keys = [key for key in paper.KEYS if numbers[key].notna().any()]
    known = {name: model["paper"] for name, model in models.items() if model["paper"]}
    left = rows[keys].assign(model=[known.get(name) for name in rows["model"]]).astype(object)
    numbers = numbers[[*keys, "printed"]].drop_duplicates(keys).astype(object)
    beside = left.merge(numbers, "left", keys)
    return rows.assign(paper=beside["printed"].to_numpy())


def with_full(rows: pd.DataFrame) -> pd.DataFrame:
    """Return ``rows`` with the full cache's repeated in every block, to compare with.

    It has no policy and no sparsity of its own.
    """
    is_full = rows["method"] == FULL
    blocks = rows.loc[~is_full, BLOCK].drop_duplicates()
    full = rows[is_full].drop(columns=["policy", "sparsity"]).merge(blocks, on=["model", "task"])
    return pd.concat([full, rows[~is_full]], ignore_index=True)


def gaps(rows: pd.DataFrame) -> pd.Series:
    """Return (method - baseline) / (full - baseline) of each row's own block: 1 is the full cache.

    Missing for the two themselves, and where the baseline is not worse than the full cache, so
    that there is nothing to recover.
    """
    keys = [*BLOCK, "metric"]
    ends = rows[rows["method"].isin([FULL, "baseline"])].pivot_table("value", keys, "method")
    ends = ends.reindex(columns=["baseline", FULL])
    base, full = (rows[keys].join(ends[name], on=keys)[name] for name in ("baseline", FULL))
    lower = rows["metric"].map({name: metric.lower for name, metric in METRICS.items()})
    lost = (full - base).where(~lower.astype(bool), base - full)
    share = (rows["value"] - base) / (full - base)
    return share.where((lost > 0) & ~rows["method"].isin([FULL, "baseline"]))


def with_gap(rows: pd.DataFrame, tidy: pd.DataFrame) -> pd.DataFrame:
    """Return ``rows`` (with the full cache's) with ``gap``, as text.

    Of a task's first metric (:data:`~pipeline.report.metrics.PRIMARY`) it is the tidy table's, with
    its interval; of others it is that of the means. It is missing where :func:`gaps` has none.
    """
    keys = [*BLOCK, "method", "train_sparsity"]
    measured = of_grid(tidy, "recovered_gap")
    tasks = of_grid(tidy, *PRIMARY).groupby("task")["metric"]
    first = tasks.agg(lambda metrics: min(metrics, key=PRIMARY.index))
    measured = measured.assign(measured=texts(measured), metric=measured["task"].map(first))
    joined = rows.merge(measured[[*keys, "metric", "measured"]], "left", [*keys, "metric"])
    derived = gaps(rows).map(lambda gap: f"{gap:z.2f}", na_action="ignore")
    has_gap = rows["metric"].map(lambda name: METRICS[name].gap)
    known = joined["measured"].astype(object)
    gap = known.where(known.notna(), derived)
    return rows.assign(gap=gap.where(derived.notna() & has_gap))


def texts(rows: pd.DataFrame) -> pd.Series:
    """Return ``value [low, high]`` in the metric's printed unit.

    The value alone without an interval.

    A ratio that is undefined, as a gap where the baseline loses nothing, says so; so does what ran
    out of memory.
    """
    shown = []
    for name, *numbers in rows[["metric", "value", "low", "high"]].itertuples(index=False):
        metric = METRICS[name]
        value, low, high = (f"{number * metric.scale:z.{metric.digits}f}" for number in numbers)
        interval = f" [{low}, {high}]" if pd.notna(numbers[1]) else ""
        shown.append(value + interval if pd.notna(numbers[0]) else metric.missing)
    return pd.Series(shown, index=rows.index, dtype=object)
