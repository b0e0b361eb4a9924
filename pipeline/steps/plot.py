"""Draw the figures from the tidy table: each as SVG and PNG."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.colors import Normalize

from pipeline.curves import load_curves
from pipeline.files import load_table, whole
from pipeline.labels import label_of, policy_title

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Colours that stay apart for colour-blind readers (Okabe and Ito).
COLOURS = {
    "full": "#000000",
    "baseline": "#999999",
    "baseline_plus": "#E69F00",
    "performer": "#CC79A7",
    "less": "#0072B2",
}
LESS_SHADES = ("#0072B2", "#56B4E9", "#009E73", "#004D73")  # one for each train sparsity
STYLE: dict[Any, Any] = {
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "lines.markersize": 3.5,
    "lines.linewidth": 1.4,
    "svg.hashsalt": "less",  # the same figure gives the same file
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``less plot``."""
    parser.add_argument("--tidy", type=Path, required=True)
    parser.add_argument("--curves", type=Path, nargs="*", default=[], help="loss curves")
    parser.add_argument("--out", type=Path, required=True, help="folder of figures")


def series(rows: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """(label, colour, rows) for each method and train sparsity."""
    shades = iter(LESS_SHADES * 3)
    for (method, sparsity), found in rows.groupby(
        ["method", "train_sparsity"], dropna=False, sort=False
    ):
        colour = COLOURS[method] if method != "less" else next(shades)
        yield label_of(method, sparsity), colour, found.sort_values("sparsity")


def panels(rows: pd.DataFrame, by: str) -> tuple[Any, list[tuple[Any, pd.DataFrame]]]:
    """A figure with a row of panels for each value of ``by`` (and model) and a column a policy."""
    if rows.empty:
        figure = plt.figure(figsize=(4, 1))
        figure.text(0.5, 0.5, "not measured in this experiment", ha="center", va="center")
        return figure, []
    down = rows[by] if rows["model"].nunique() == 1 else rows[by] + ", " + rows["model"]
    rows = rows.assign(down=down)
    downs, acrosses = (list(dict.fromkeys(rows[column])) for column in ("down", "policy"))
    figure, axes = plt.subplots(
        len(downs), len(acrosses), squeeze=False, sharex=True, sharey="row",
        figsize=(3.1 * len(acrosses) + 1.2, 2.5 * len(downs) + 0.6), layout="constrained",
    )  # fmt: skip
    found = []
    for i, down in enumerate(downs):
        for j, across in enumerate(acrosses):
            part = rows[(rows["down"] == down) & (rows["policy"] == across)]
            if part.empty:  # tasks may leave policies out; the panel above then shows the numbers
                axes[i, j].set_visible(False)
                axes[i - 1, j].tick_params(labelbottom=True)
                continue
            axes[i, j].set_title(f"{policy_title(across)}, {down}", fontsize=9)
            found.append((axes[i, j], part))
    return figure, found


def legend(figure: Any) -> None:
    """One legend under all panels."""
    found: dict[str, Any] = {}
    for axis in figure.axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if found:
        figure.legend(
            found.values(), found.keys(), loc="outside lower center", ncols=min(len(found), 6)
        )


def draw_lines(axis: Any, x: Any, rows: pd.DataFrame, label: str, colour: str) -> None:
    """Values with their intervals as a band."""
    axis.plot(x, rows["value"], "o-", color=colour, label=label)
    axis.fill_between(x, rows["low"], rows["high"], color=colour, alpha=0.12, linewidth=0)


def perplexity_figure(tidy: pd.DataFrame, curves: pd.DataFrame) -> Any:
    """Perplexity against sparsity.

    Without intervals: documents differ far more than methods do, and methods are compared on the
    same documents, in the table of paired differences.
    """
    rows = tidy[tidy["metric"] == "token_perplexity"]
    full = rows[rows["policy"].isna()].set_index(["model", "task"])["value"]
    figure, found = panels(rows[rows["policy"].notna()], "task")
    for axis, part in found:
        for label, colour, lines in series(part):
            axis.plot(100 * lines["sparsity"], lines["value"], "o-", color=colour, label=label)
        key = tuple(part[["model", "task"]].iloc[0])
        axis.axhline(full[key], color="black", linestyle="--", linewidth=1, label="Full cache")
        axis.set_xlabel("tokens kept (% of context)")
        axis.set_ylabel("perplexity")
        axis.set_xticks(sorted(100 * rows["sparsity"].dropna().unique()))
        if part["value"].max() > 5 * full[key]:
            axis.set_yscale("log")
    legend(figure)
    return figure


def recovered_gap_figure(tidy: pd.DataFrame, curves: pd.DataFrame) -> Any:
    """Recovered gap by policy and sparsity."""
    rows = tidy[(tidy["metric"] == "recovered_gap") & tidy["value"].notna()]
    figure, found = panels(rows, "task")
    cells = sorted(rows["sparsity"].unique())
    for axis, part in found:
        entries = list(series(part))
        width = 0.8 / len(entries)
        for place, (label, colour, bars) in enumerate(entries):
            x = [
                cells.index(s) + (place - (len(entries) - 1) / 2) * width for s in bars["sparsity"]
            ]
            # The percentile interval of a ratio need not hold its value.
            error = [(bars["value"] - bars["low"]).clip(0), (bars["high"] - bars["value"]).clip(0)]
            axis.bar(x, bars["value"], width, color=colour, label=label)
            axis.errorbar(x, bars["value"], error, fmt="none", ecolor="black", elinewidth=0.8)
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set_xticks(range(len(cells)), [f"{100 * s:g} %" for s in cells])
        axis.set_xlabel("tokens kept")
        axis.set_ylabel("recovered gap")
    legend(figure)
    return figure


def hellinger_figure(tidy: pd.DataFrame, curves: pd.DataFrame) -> Any:
    """Hellinger distance by layer."""
    rows = tidy[tidy["metric"] == "hellinger"].copy()
    rows["cell"] = [f"{100 * s:g} %" for s in rows["sparsity"]]
    figure, found = panels(rows, "cell")
    for axis, part in found:
        for label, colour, lines in series(part):
            lines = lines.sort_values("layer")
            draw_lines(axis, lines["layer"], lines, label, colour)
        axis.set_xlabel("layer")
        axis.set_ylabel("Hellinger distance")
        axis.set_ylim(bottom=0)
    legend(figure)
    return figure


def loss_curves_figure(tidy: pd.DataFrame, curves: pd.DataFrame) -> Any:
    """Validation loss against epochs, a line a layer, as a share of the sparse policy's loss."""
    rows = curves.assign(share=curves["validation_loss"] / curves["sparse_loss"])
    rows["cell"] = [f"trained at {100 * s:g} %" for s in rows["train_sparsity"]]
    figure, found = panels(rows, "cell")
    if not found:
        return figure
    scale = Normalize(rows["layer"].min(), max(rows["layer"].max(), 1))
    colours = plt.get_cmap("viridis")
    for axis, part in found:
        for layer, lines in part.groupby("layer"):
            axis.plot(lines["epoch"], lines["share"], color=colours(scale(layer)), linewidth=0.9)
        axis.set_xlabel("epoch")
        axis.set_ylabel("loss / sparse loss")
        axis.xaxis.get_major_locator().set_params(integer=True)
    bar = plt.cm.ScalarMappable(norm=scale, cmap=colours)
    figure.colorbar(bar, ax=figure.axes, label="layer", shrink=0.8)
    return figure


FIGURES: dict[str, Callable[[pd.DataFrame, pd.DataFrame], Any]] = {
    "perplexity": perplexity_figure,
    "recovered_gap": recovered_gap_figure,
    "hellinger": hellinger_figure,
    "loss_curves": loss_curves_figure,
}
"""Name of a figure's files to the view of the tidy table (and loss curves) it shows."""


def run(args: argparse.Namespace) -> None:
    """Write every figure that the measurements allow, as SVG and PNG."""
    tidy = load_table(args.tidy)
    curves = load_curves(args.curves)
    with plt.rc_context(STYLE):
        for name, draw in FIGURES.items():
            figure = draw(tidy, curves)
            for suffix in ("svg", "png"):
                with whole(args.out / f"{name}.{suffix}") as partial:
                    figure.savefig(partial, format=suffix, metadata=_undated(suffix))
            plt.close(figure)


def _undated(suffix: str) -> dict[str, Any]:
    """Metadata without a date or version, so that the same numbers give the same bytes."""
    return {"Date": None, "Creator": None} if suffix == "svg" else {"Software": None}
