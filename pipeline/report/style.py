"""What all figures share: colours, panels, legends, intervals, and how they are saved."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd

from ..experiment.methods import label_of, policy_title
from ..storage.files import whole

matplotlib.use("Agg")

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


def series(rows: pd.DataFrame, along: str = "sparsity") -> Iterator[tuple[str, str, pd.DataFrame]]:
    """(label, colour, rows sorted ``along``) for each method and train sparsity of a panel."""
    for (method, sparsity), found in rows.groupby(
        ["method", "train_sparsity"], dropna=False, sort=False
    ):
        shade = LESS_SHADES[int(found["shade"].iloc[0]) % len(LESS_SHADES)]
        colour = COLOURS[method] if method != "less" else shade
        yield label_of(method, sparsity), colour, found.sort_values(along)


def nothing(message: str) -> Any:
    """A figure that says why there is none."""
    figure = plt.figure(figsize=(7.5, 0.9))
    figure.text(0.5, 0.5, message.replace("`", ""), ha="center", va="center", wrap=True)
    return figure


def panels(rows: pd.DataFrame, by: str) -> tuple[Any, list[tuple[Any, pd.DataFrame]]]:
    """A figure with a row of panels for each value of ``by`` (and model) and a column a policy.

    Rows get a ``shade``, which is a train sparsity's in all panels: not all have all of them.
    """
    down = rows[by] if rows["model"].nunique() == 1 else rows[by] + ", " + rows["model"]
    shade = rows["train_sparsity"].rank(method="dense").fillna(1).astype(int) - 1
    rows = rows.assign(down=down, shade=shade)
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
        entry = 0.5 + 0.065 * max(map(len, found))  # inches, about
        columns = max(1, min(len(found), 6, int(figure.get_figwidth() / entry)))
        figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=columns)


def draw_lines(axis: Any, x: Any, rows: pd.DataFrame, label: str, colour: str) -> None:
    """Values with their intervals as a band."""
    axis.plot(x, rows["value"], "o-", color=colour, label=label)
    axis.fill_between(x, rows["low"], rows["high"], color=colour, alpha=0.12, linewidth=0)


def save(figure: Any, folder: Path, name: str) -> None:
    """The figure as SVG and PNG, without dates and versions: the same numbers, the same bytes."""
    undated = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}
    for suffix, metadata in undated.items():
        with whole(folder / f"{name}.{suffix}") as partial:
            figure.savefig(partial, format=suffix, metadata=metadata)
    plt.close(figure)
