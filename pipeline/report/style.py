"""What all figures share: colours, panels, legends, intervals, and how they are saved."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd

from ..experiment.methods import FULL, METHODS, label_of, policy_title
from ..storage.files import whole

matplotlib.use("Agg")

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


def colour_of(method: str, shade: int = 0) -> str:
    """Return the colour of a method; ``shade`` is the place of its train sparsity among all."""
    if method == FULL:
        return "#000000"
    colors = METHODS[method].colors
    return colors[shade % len(colors)]


def series(rows: pd.DataFrame, along: str = "sparsity") -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yield (label, colour, rows sorted ``along``) of each method and train sparsity of a panel."""
    for (method, sparsity), lines in rows.groupby(
        ["method", "train_sparsity"], dropna=False, sort=False
    ):
        colour = colour_of(method, int(lines["shade"].iloc[0]))
        yield label_of(method, sparsity), colour, lines.sort_values(along)


def nothing(message: str) -> Any:
    """Draw a figure that says why there is none."""
    figure = plt.figure(figsize=(7.5, 0.9))
    figure.text(0.5, 0.5, message.replace("`", ""), ha="center", va="center", wrap=True)
    return figure


def panels(rows: pd.DataFrame, by: str) -> tuple[Any, list[tuple[Any, pd.DataFrame]]]:
    """Make a figure: a row of panels for each value of ``by`` (and model), a column a policy.

    Rows get a ``shade``, which is a train sparsity's in all panels: not all have all of them.
    """
    down = rows[by] if rows["model"].nunique() == 1 else rows[by] + ", " + rows["model"]
    shade = rows["train_sparsity"].rank(method="dense").fillna(1).astype(int) - 1
    rows = rows.assign(down=down, shade=shade)
    downs, acrosses = (list(dict.fromkeys(rows[column])) for column in ("down", "policy"))
    figure, axes = plt.subplots(
        len(downs),
        len(acrosses),
        squeeze=False,
        sharex=True,
        sharey="row",
        figsize=(3.1 * len(acrosses) + 1.2, 2.5 * len(downs) + 0.6),
        layout="constrained",
    )
    shown = []
    for i, down in enumerate(downs):
        for j, across in enumerate(acrosses):
            part = rows[(rows["down"] == down) & (rows["policy"] == across)]
            if part.empty:  # tasks may leave policies out; the panel above then shows the numbers
                axes[i, j].set_visible(False)
                axes[i - 1, j].tick_params(labelbottom=True)
                continue
            axes[i, j].set_title(f"{policy_title(across)}, {down}", fontsize=9)
            shown.append((axes[i, j], part))
    return figure, shown


def legend(figure: Any) -> None:
    """Draw one legend under all panels."""
    handles: dict[str, Any] = {}
    for axis in figure.axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        entry = 0.5 + 0.065 * max(map(len, handles))  # inches, about
        columns = max(1, min(len(handles), 6, int(figure.get_figwidth() / entry)))
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns)


def draw_lines(axis: Any, x: Any, rows: pd.DataFrame, label: str, colour: str) -> None:
    """Draw values with their intervals as a band."""
    axis.plot(x, rows["value"], "o-", color=colour, label=label)
    axis.fill_between(x, rows["low"], rows["high"], color=colour, alpha=0.12, linewidth=0)


def save(figure: Any, folder: Path, name: str) -> None:
    """Write the figure as SVG and PNG, without dates and versions: same numbers, same bytes."""
    undated = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}
    for suffix, metadata in undated.items():
        with whole(folder / f"{name}.{suffix}") as partial:
            figure.savefig(partial, format=suffix, metadata=metadata)
    plt.close(figure)
