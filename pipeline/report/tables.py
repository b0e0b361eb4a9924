"""Write the tables from the tidy table: each as Markdown, CSV, LaTeX and a web page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from ..experiment.methods import SCORES as POLICY_SCORES
from ..experiment.methods import label_of, policy_title
from ..storage.files import load_table, save_table, whole
from ..text.rouge import ROUGE
from .contents import TABLES as CATALOGUE
from .html import Section, as_html, as_markdown
from .metrics import METRICS, PRIMARY, SCORES, SPEED, STEP_PARTS
from .rows import BLOCK, Models, budgets, of_grid, with_full, with_gap, with_paper
from .wide import wide

OPERATORS = ["model", "task", "operator", "bytes", "operations", "seconds"]
"""Columns that a table of the latency study's operators has, besides what it was measured on."""
PAPER_SPARSITY = 0.05
"""What the paper's tables of a single sparsity are measured at, Falcon's summaries apart."""


@dataclass(frozen=True)
class Measured:
    """What tables are views of.

    Attributes:
        tidy: the tidy table.
        curves: loss curves of the trainings.
        models: the configuration's models; without one, a model is not one of the paper's.
        operators: what the latency study's decode steps are made of, and measured on.
    """

    tidy: pd.DataFrame
    curves: pd.DataFrame
    models: Models = field(default_factory=dict)
    operators: pd.DataFrame = field(default_factory=pd.DataFrame)


def cells(measured: Measured, metrics: list[str], table: str = "") -> pd.DataFrame:
    """Return the grid's rows of some metrics, the paper's numbers and recovered gaps beside."""
    rows = of_grid(measured.tidy, *metrics)
    rows = with_full(with_paper(rows, measured.models, table) if table else rows)
    return with_gap(rows, measured.tidy) if len(rows) else rows


def table1(measured: Measured) -> pd.DataFrame:
    """Return tokens that each sparsity means."""
    rows = budgets(measured.tidy)
    rows["context"] = [measured.models.get(name, {}).get("context", "") for name in rows["model"]]
    return wide(with_paper(rows, measured.models, "table1"), ["model", "context"], "sparsity")


def table2(measured: Measured) -> pd.DataFrame:
    """Return word perplexity under H2O, by sparsity."""
    rows = cells(measured, ["word_perplexity"], "table2")
    return wide(rows[rows["policy"] == "h2o"], ["model", "task", "policy", "method"], "sparsity")


def table3(measured: Measured) -> pd.DataFrame:
    """Return Λ-masking at 5 %, by task."""
    rows = cells(measured, ["word_perplexity", "r@1", "acc"], "table3")
    rows = rows[(rows["policy"] == "lambda") & (rows["sparsity"] == PAPER_SPARSITY)]
    what = rows["task"] + ", " + rows["metric"].map(lambda name: METRICS[name].title)
    return wide(rows.assign(what=what), ["model", "policy", "sparsity", "method"], "what")


def table4(measured: Measured) -> pd.DataFrame:
    """Return ROUGE of two data sets under H2O, at the paper's sparsity for the model."""
    rows = cells(measured, list(ROUGE), "table4")
    sparsity = [
        0.1 if measured.models.get(name, {}).get("paper") == "falcon_7b" else PAPER_SPARSITY
        for name in rows["model"]
    ]
    chosen = rows["task"].isin(["cnn_dailymail", "xsum"]) & (rows["policy"] == "h2o")
    rows = rows[chosen & (rows["sparsity"] == sparsity)]
    return wide(rows, ["model", "task", "policy", "sparsity", "method"], "metric")


def table5(measured: Measured) -> pd.DataFrame:
    """Return ROUGE of all summaries, and what Rouge-L gains on Baseline+ on the same documents."""
    rows = cells(measured, [*ROUGE, "rougeL_over_baseline_plus"], "table5")
    return wide(rows, ["model", "task", "policy", "sparsity", "method"], "metric")


def table6(measured: Measured) -> pd.DataFrame:
    """Return latency, throughput and memory, end to end."""
    end_to_end = [name for name in SPEED if not name.startswith("step_ms")]
    rows = cells(measured, end_to_end, "table6")
    return wide(rows, ["model", "task", "policy", "sparsity", "method"], "metric")


def table7(measured: Measured) -> pd.DataFrame:
    """Return word perplexity at 5 %, by policy."""
    rows = cells(measured, ["word_perplexity"], "table7")
    rows = rows[rows["sparsity"] == PAPER_SPARSITY]
    return wide(rows, ["model", "task", "sparsity", "method"], "policy")


def table8(measured: Measured) -> pd.DataFrame:
    """Return what the parts of a decode step take."""
    rows = cells(measured, [f"step_ms.{part}" for part in STEP_PARTS], "table8")
    return wide(rows, ["model", "task", "policy", "sparsity", "method"], "metric")


def operators(measured: Measured) -> pd.DataFrame:
    """Return bytes, operations and time of each operator beside its floor, by copying."""
    rows = measured.operators
    if rows.empty:
        return rows
    floor = rows["bytes"] / rows["copy_bytes_per_second"]
    return pd.DataFrame(
        {
            "model": rows["model"],
            "task": rows["task"],
            "operator": rows["operator"],
            "MiB moved": (rows["bytes"] / 2**20).round(1),
            "G operations": (rows["operations"] / 1e9).round(2),
            "ms": (rows["seconds"] * 1e3).round(2),
            "floor (ms)": (floor * 1e3).round(2),
            "of copy bandwidth": (floor / rows["seconds"]).map("{:.0%}".format),
        }
    )


def conditions(measured: Measured) -> pd.DataFrame:
    """Return what each setting of the latency study was measured on."""
    rows = measured.operators
    if rows.empty:
        return rows
    keys = ["model", "task", "device", "clocks", "threads", "load", "repetitions", "versions"]
    bandwidth = (rows["copy_bytes_per_second"] / 1e9).round(1)
    return rows[keys].assign(**{"copying (GB/s)": bandwidth}).drop_duplicates()


def of_all_cells(metric: str) -> Callable[[Measured], pd.DataFrame]:
    """Return a view of one metric over the whole grid, a column for each test sparsity."""

    def view(measured: Measured) -> pd.DataFrame:
        rows = with_full(of_grid(measured.tidy, metric))
        return wide(rows, ["model", "task", "policy", "method"], "sparsity")

    return view


def scores(measured: Measured) -> pd.DataFrame:
    """Return scores of lm-evaluation-harness tasks, and what they gain on baseline+."""
    rows = cells(measured, [*SCORES, *(f"{name}_over_baseline_plus" for name in SCORES)])
    return wide(rows, ["model", "task", "metric", "policy", "method"], "sparsity")


def policy_scores(measured: Measured) -> pd.DataFrame:
    """Return the study of scores beside the grid's own cells, whose scores are the other kind."""
    tidy, shown = measured.tidy, [*PRIMARY, "recovered_gap"]
    rows = tidy[(tidy["study"] == "scores") & tidy["metric"].isin(shown)]
    if rows.empty:
        return rows
    studied = rows[[*BLOCK, "setting"]].drop_duplicates()
    own = of_grid(tidy, *shown).drop(columns="setting").merge(studied, on=BLOCK)
    rows = pd.concat([own.assign(setting=1 - own["setting"]), rows], ignore_index=True)
    rows["scores"] = [f"{POLICY_SCORES[int(setting)]} scores" for setting in rows["setting"]]
    index = ["model", "task", "policy", "sparsity", "metric", "method"]
    return wide(rows.sort_values("setting", kind="stable"), index, "scores")


def hellinger(measured: Measured) -> pd.DataFrame:
    """Return Hellinger distance to the true attention rows, averaged over layers."""
    rows = of_grid(measured.tidy, "hellinger")
    if rows.empty:
        return rows
    rows = rows.assign(
        method=[
            label_of(m, s) for m, s in rows[["method", "train_sparsity"]].itertuples(index=False)
        ],
        policy=rows["policy"].map(policy_title),
    )
    keys = ["model", "task", "policy", "sparsity", "method", "n"]
    mean = rows.groupby(keys, sort=False)["value"].agg(["mean", "min", "max"]).reset_index()
    return mean.rename(columns={"mean": "mean over layers", "min": "best", "max": "worst"}).round(4)


def training(measured: Measured) -> pd.DataFrame:
    """Return validation loss of trained kernels as a share of the sparse policy's, over layers."""
    curves = measured.curves
    share = curves.assign(share=curves["validation_loss"] / curves["sparse_loss"])
    keys = ["model", "policy", "train_sparsity"]
    best = share.groupby([*keys, "layer"])["share"].min().reset_index()
    rows = best.groupby(keys)["share"].agg(["mean", "min", "max", "size"]).reset_index()
    if "fault" in curves:  # not in those of earlier versions
        layers = curves.drop_duplicates([*keys, "layer"]).groupby(keys)
        said = {key: faults(own) for key, own in layers}
        rows["faults"] = [said[key] for key in rows[keys].itertuples(index=False, name=None)]
    return rows.rename(
        columns={
            "mean": "loss / sparse loss",
            "min": "best layer",
            "max": "worst layer",
            "size": "layers",
        }
    ).round(4)


def faults(layers: pd.DataFrame) -> str:
    """Return what went wrong in which layers of one training, and what became of them."""
    wrong = layers.dropna(subset="fault").fillna({"became": "kept"})
    said = [
        f"layer{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows['layer']))}: {what} "
        f"({BECAME[became]})"
        for (what, became), rows in wrong.groupby(["fault", "became"], sort=False)
    ]
    return "; ".join(said) or "none"


BECAME = {
    "sparse": "now without a kernel",
    "keep": "kept all the same",
    "kept": "an earlier epoch is kept",
}
"""What ``became`` of a layer whose training went wrong, for people."""

TABLES: dict[str, Callable[[Measured], pd.DataFrame]] = {
    "table1": table1,
    "table2": table2,
    "table3": table3,
    "table4": table4,
    "table5": table5,
    "table6": table6,
    "operators": operators,
    "conditions": conditions,
    "table7": table7,
    "table8": table8,
    "perplexity": of_all_cells("token_perplexity"),
    "word_perplexity": of_all_cells("word_perplexity"),
    "recovered_gap": of_all_cells("recovered_gap"),
    "paired_difference": of_all_cells("nats_over_baseline_plus"),
    "scores": scores,
    "policy_scores": policy_scores,
    "hellinger": hellinger,
    "training": training,
}
"""Name of the table's files to the view it shows."""


MISSING = "not measured"
"""The only column of a table that has nothing to show."""


def load_operators(paths: Sequence[Path]) -> pd.DataFrame:
    """Read the operators of every setting of the latency study."""
    parts = [load_table(path) for path in paths]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=OPERATORS)


def view(name: str, measured: Measured) -> pd.DataFrame:
    """Return a table, or one line that says what would measure it."""
    table = TABLES[name](measured)
    return pd.DataFrame({MISSING: [CATALOGUE[name].missing]}) if table.empty else table


def forms(table: pd.DataFrame, name: str) -> dict[str, str]:
    """Return the text of a table in its four formats, by suffix."""
    title = CATALOGUE[name].title
    measured = MISSING not in table
    return {
        "md": as_markdown(table) if measured else f"{CATALOGUE[name].missing}\n",
        "csv": table.to_csv(index=False),
        "tex": table.to_latex(index=False, escape=True),
        "html": as_html(title, [Section("", table)]),
    }


def write(table: pd.DataFrame, folder: Path, name: str) -> None:
    """Write the table in its four formats."""
    for suffix, text in forms(table, name).items():
        with whole(folder / f"{name}.{suffix}") as partial:
            partial.write_text(text, encoding="utf-8")


def write_all(measured: Measured, folder: Path) -> None:
    """Write what tables follow from (parquet, and the tidy table as CSV), and every table."""
    save_table(folder / "operators.parquet", measured.operators)
    save_table(folder / "results.parquet", measured.tidy)
    save_table(folder / "curves.parquet", measured.curves)
    with whole(folder / "results.csv") as partial:
        measured.tidy.to_csv(partial, index=False)
    for name in TABLES:
        write(view(name, measured), folder / "tables", name)
