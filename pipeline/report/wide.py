"""Spread rows of the tidy table out for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from ..experiment.methods import FULL, METHODS, label_of, policy_title
from .metrics import METRICS
from .rows import BLOCK, texts


def in_order(rows: pd.DataFrame) -> pd.DataFrame:
    """Sort by block as measured, sparsities by size, methods as the paper lists them."""
    methods = [FULL, *METHODS]

    def rank(column: pd.Series) -> Any:
        if column.name == "method":
            return column.map(methods.index)
        return column if "sparsity" in str(column.name) else pd.factorize(column)[0]

    return rows.sort_values([*BLOCK, "method", "train_sparsity"], key=rank, kind="stable")


def wide(rows: pd.DataFrame, index: Sequence[str], across: str) -> pd.DataFrame:
    """Return a table for people: a row for each value of ``index``, columns for each of ``across``.

    A value of ``across`` has up to three columns: ours with its interval, the paper's, and the
    recovered gap. ``n`` names the documents behind a row, one number where all agree.
    """
    if rows.empty:
        return pd.DataFrame(columns=[*index, "n"])
    rows = in_order(rows).assign(ours=texts)
    rows = rows.assign(**{name: title(rows[name]) for name in ("policy", "sparsity", "metric")})
    rows["method"] = [
        label_of(*key) for key in rows[["method", "train_sparsity"]].itertuples(index=False)
    ]
    shown = {"ours": "{}", "paper": "{} paper", "gap": "{} gap"}
    columns = [
        shown[part].format(place)
        for place in ordered(rows[across])
        for part in shown
        if part in rows and rows.loc[rows[across] == place, part].notna().any()
    ]
    entries = []
    for key, block in rows.groupby(list(index), sort=False, dropna=False):
        entry = dict(zip(index, key, strict=True))
        for cell in block.to_dict("records"):
            entry |= {
                name.format(cell[across]): cell[part]
                for part, name in shown.items()
                if part in cell and pd.notna(cell[part])
            }
        entry["n"] = " / ".join(f"{n:g}" for n in dict.fromkeys(block["n"].dropna()))
        entries.append(entry)
    table = pd.DataFrame(entries, columns=[*index, *columns, "n"]).fillna("")
    return table.loc[:, (table != "").any()]


def title(column: pd.Series) -> pd.Series:
    """Return policies, sparsities and metrics as they are printed."""
    forms = {
        "policy": policy_title,
        "sparsity": lambda sparsity: f"{100 * sparsity:g} %",
        "metric": lambda metric: METRICS[metric].title,
    }
    return column.map(forms[str(column.name)], na_action="ignore").astype(object)


def ordered(column: pd.Series) -> list[str]:
    """Return values by size (sparsities), by METRICS (metrics), or as they appear."""
    places = list(dict.fromkeys(column))
    metrics = [metric.title for metric in METRICS.values()]
    if column.name == "sparsity":
        return sorted(places, key=lambda text: float(text.rstrip(" %")))
    if column.name == "metric":
        return sorted(places, key=metrics.index)
    return places
