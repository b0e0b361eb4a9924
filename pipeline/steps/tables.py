"""Write the tables from the tidy table: each as Markdown, CSV and LaTeX."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from pipeline.curves import load_curves
from pipeline.files import load_table, save_table, whole
from pipeline.labels import SCORES, label_of, policy_title
from pipeline.summaries import ROUGE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``less tables``."""
    parser.add_argument("--tidy", type=Path, required=True)
    parser.add_argument("--curves", type=Path, nargs="*", default=[], help="loss curves")
    parser.add_argument("--out", type=Path, required=True, help="results folder")


def with_interval(rows: pd.DataFrame, digits: int) -> pd.Series:
    """``value [low, high]`` as text."""
    return pd.Series(
        [
            f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
            for value, low, high in rows[["value", "low", "high"]].itertuples(index=False)
        ],
        index=rows.index,
        dtype=object,
    )


def by_cell(tidy: pd.DataFrame, metric: str, digits: int) -> pd.DataFrame:
    """Rows: model, task, policy and method; a column for each test sparsity."""
    rows = tidy[tidy["metric"] == metric].copy()
    if rows.empty:
        return pd.DataFrame(columns=["model", "task", "policy", "n", "method"])
    policies = rows[rows["policy"].notna()]
    full = rows[rows["policy"].isna()]
    # The full cache has no policy and no sparsity: it stands in every block to compare with.
    cells = policies[["model", "task", "policy", "sparsity"]].drop_duplicates()
    full = full.drop(columns=["policy", "sparsity"]).merge(cells, on=["model", "task"])
    rows = pd.concat([full, policies], ignore_index=True)
    rows["text"] = with_interval(rows, digits)
    rows["method"] = [
        label_of(method, sparsity)
        for method, sparsity in rows[["method", "train_sparsity"]].itertuples(index=False)
    ]
    rows["policy"] = rows["policy"].map(policy_title)
    rows["sparsity"] = [f"{100 * sparsity:g} %" for sparsity in rows["sparsity"]]
    order = list(dict.fromkeys(rows["method"]))
    columns = list(dict.fromkeys(rows.sort_values("sparsity", key=_percent)["sparsity"]))
    table = rows.pivot(
        index=["model", "task", "policy", "n", "method"], columns="sparsity", values="text"
    )
    rank = {name: place for place, name in enumerate(order)}
    table = table.sort_index(key=lambda level: level.map(rank) if level.name == "method" else level)
    return table[columns].reset_index().rename_axis(columns=None)


def _percent(column: pd.Series) -> pd.Series:
    return column.str.rstrip(" %").astype(float)


def perplexity_table(tidy: pd.DataFrame) -> pd.DataFrame:
    """Perplexity per token."""
    return by_cell(tidy, "token_perplexity", 2)


def word_perplexity_table(tidy: pd.DataFrame) -> pd.DataFrame:
    """Perplexity per word."""
    return by_cell(tidy, "word_perplexity", 2)


def recovered_gap_table(tidy: pd.DataFrame) -> pd.DataFrame:
    """Share of the baseline's loss of perplexity that a method wins back."""
    return by_cell(tidy, "recovered_gap", 3)


def paired_difference_table(tidy: pd.DataFrame) -> pd.DataFrame:
    """Nats a token above baseline+ on the same documents; below zero is better."""
    return by_cell(tidy, "nats_over_baseline_plus", 4)


def summaries_table(tidy: pd.DataFrame) -> pd.DataFrame:
    """ROUGE of generated summaries, and what Rouge-L gains on baseline+ on the same documents."""
    titles = ROUGE | {"rougeL_over_baseline_plus": "Rouge-L over Baseline+"}
    keys = ["model", "task", "policy", "sparsity", "n", "method"]
    blocks = []
    for metric, title in titles.items():
        block = by_cell(tidy, metric, 2)
        cells = [column for column in block if column not in keys]
        blocks.append(block.melt(keys[:3] + keys[4:], cells, "sparsity", title))
    table = blocks[0]
    for block in blocks[1:]:
        table = table.merge(block, "left", keys)
    return table[keys + list(titles.values())].dropna(subset="Rouge-L").fillna("")


def scores_table(tidy: pd.DataFrame) -> pd.DataFrame:
    """Scores x 100 of lm-evaluation-harness tasks, and what they gain on baseline+."""
    metrics = SCORES | {f"{name}_over_baseline_plus": f"{title} over Baseline+"
                        for name, title in SCORES.items()}  # fmt: skip
    hundredfold = tidy.assign(**{name: 100 * tidy[name] for name in ("value", "low", "high")})
    blocks = [by_cell(hundredfold, name, 1).assign(metric=title) for name, title in metrics.items()]
    table = pd.concat([block for block in blocks if len(block)] or blocks[:1], ignore_index=True)
    keys = ["model", "task", "policy", "metric", "n", "method"]
    return table[keys + [column for column in table if column not in keys]].fillna("")


def hellinger_table(tidy: pd.DataFrame) -> pd.DataFrame:
    """Hellinger distance to the true attention rows, averaged over layers."""
    rows = tidy[tidy["metric"] == "hellinger"]
    if rows.empty:
        return pd.DataFrame(columns=["model", "policy", "sparsity", "method", "hellinger"])
    rows = rows.assign(
        method=[
            label_of(m, s) for m, s in rows[["method", "train_sparsity"]].itertuples(index=False)
        ],
        policy=rows["policy"].map(policy_title),
    )
    keys = ["model", "task", "policy", "sparsity", "method", "n"]
    mean = rows.groupby(keys, sort=False)["value"].agg(["mean", "min", "max"]).reset_index()
    return mean.rename(columns={"mean": "mean over layers", "min": "best", "max": "worst"}).round(4)


TABLES: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "perplexity": perplexity_table,
    "word_perplexity": word_perplexity_table,
    "recovered_gap": recovered_gap_table,
    "paired_difference": paired_difference_table,
    "summaries": summaries_table,
    "scores": scores_table,
    "hellinger": hellinger_table,
}
"""Name of the table's files to the view of the tidy table it shows."""


def write(table: pd.DataFrame, folder: Path, name: str) -> None:
    """The table in its three formats."""
    folder.mkdir(parents=True, exist_ok=True)
    forms = {
        "md": table.to_markdown(index=False) + "\n",
        "csv": table.to_csv(index=False),
        "tex": table.to_latex(index=False, escape=True),
    }
    for suffix, text in forms.items():
        with whole(folder / f"{name}.{suffix}") as partial:
            partial.write_text(text, encoding="utf-8")


def run(args: argparse.Namespace) -> None:
    """Write ``results.parquet``, ``results.csv`` and every table under ``tables/``."""
    tidy = load_table(args.tidy)
    save_table(args.out / "results.parquet", tidy)
    with whole(args.out / "results.csv") as partial:
        tidy.to_csv(partial, index=False)
    for name, view in TABLES.items():
        write(view(tidy), args.out / "tables", name)
    write(training_table(load_curves(args.curves)), args.out / "tables", "training")


def training_table(curves: pd.DataFrame) -> pd.DataFrame:
    """Validation loss of trained kernels as a share of the sparse policy's, over layers."""
    share = curves.assign(share=curves["validation_loss"] / curves["sparse_loss"])
    keys = ["model", "policy", "train_sparsity"]
    best = share.groupby([*keys, "layer"])["share"].min().reset_index()
    found = best.groupby(keys)["share"].agg(["mean", "min", "max", "count"]).reset_index()
    return found.rename(
        columns={
            "mean": "loss / sparse loss",
            "min": "best layer",
            "max": "worst layer",
            "count": "layers",
        }
    ).round(4)
