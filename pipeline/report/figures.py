"""Draw the figures from the tidy table: each as SVG and PNG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.colors import Normalize

from ..experiment.latency import Setting
from ..storage.files import load_table
from ..text.rouge import ROUGE
from .attention_maps import Maps, draw_maps, draw_spectrum
from .contents import FIGURES as CATALOGUE
from .metrics import METRICS, PRIMARY, STEP_PARTS
from .rows import BLOCK, of_grid, with_full
from .style import STYLE, colour_of, draw_lines, legend, nothing, panels, save, series
from .wide import title

SPECTRUM = ["layer", "head", "kind", "index", "value", "kept", "model"]


@dataclass(frozen=True)
class Measured:
    """What figures are views of.

    Attributes:
        tidy: the tidy table.
        curves: loss curves of the trainings.
        maps: attention maps of each model.
        spectra: singular values of single heads' outputs, of all models.
    """

    tidy: pd.DataFrame
    curves: pd.DataFrame
    maps: Sequence[Maps] = ()
    spectra: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=SPECTRUM))


def load_spectra(paths: Sequence[Path]) -> pd.DataFrame:
    """Read the spectra of every file; a file's name begins with its model's."""
    spectra = [load_table(path).assign(model=path.name.split(".spectrum")[0]) for path in paths]
    return pd.concat(spectra, ignore_index=True) if spectra else pd.DataFrame(columns=SPECTRUM)


def perplexity(measured: Measured) -> Any:
    """Draw perplexity against sparsity.

    Without intervals: documents differ far more than methods do, and methods are compared on the
    same documents, in the table of paired differences.
    """
    rows = of_grid(measured.tidy, "token_perplexity")
    full = rows[rows["policy"].isna()].set_index(["model", "task"])["value"]
    rows = rows[rows["policy"].notna()]
    if rows.empty:
        return None
    figure, shown = panels(rows, "task")
    for axis, part in shown:
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


def recovered_gap(measured: Measured) -> Any:
    """Draw the recovered gap in perplexity by policy and sparsity."""
    texts = of_grid(measured.tidy, "word_perplexity")["task"]
    rows = of_grid(measured.tidy, "recovered_gap").dropna(subset="value")
    rows = rows[rows["task"].isin(texts)]  # gaps of accuracies and ROUGE are mostly noise
    if rows.empty:
        return None
    figure, shown = panels(rows, "task")
    cells = sorted(rows["sparsity"].unique())
    for axis, part in shown:
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


def hellinger(measured: Measured) -> Any:
    """Draw the Hellinger distance by layer."""
    rows = of_grid(measured.tidy, "hellinger")
    if rows.empty:
        return None
    rows["cell"] = [f"{100 * s:g} %" for s in rows["sparsity"]]
    figure, shown = panels(rows, "cell")
    for axis, part in shown:
        for label, colour, lines in series(part, "layer"):
            draw_lines(axis, lines["layer"], lines, label, colour)
        axis.set_xlabel("layer")
        axis.set_ylabel("Hellinger distance")
    for axis, _ in shown:  # only now: a limit set earlier would hold for the panels that share it
        axis.set_ylim(bottom=0)
    legend(figure)
    return figure


def kernel_size(measured: Measured) -> Any:
    """Draw a score against kernel size R at equal numbers held, and Baseline+, which holds as many.

    The grid's own R is the grid's cell: Baseline+ has R/2 tokens more. Without intervals, as for
    perplexity: documents differ far more than sizes do.
    """
    tidy = measured.tidy
    rows = tidy[(tidy["study"] == "kernel_size") & tidy["metric"].isin(PRIMARY)]
    if rows.empty:
        return None
    rows = rows[rows["metric"] == min(rows["metric"], key=PRIMARY.index)]
    keys = [*BLOCK, "metric"]
    grid = of_grid(tidy, *PRIMARY).merge(rows[keys].drop_duplicates(), on=keys)
    plus = grid[grid["method"] == "baseline_plus"].set_index(keys)
    own = grid[grid["train_sparsity"] == grid["sparsity"]]
    if len(own) and len(plus):
        more = own.join(plus["budget"].rename("plus"), on=keys)["plus"] - own["budget"]
        rows = pd.concat([rows, own.assign(setting=2.0 * more)], ignore_index=True)
    rows = rows.drop_duplicates([*keys, "method", "train_sparsity", "setting"])
    rows["cell"] = rows["task"] + ", " + title(rows["sparsity"])
    figure, shown = panels(rows, "cell")
    for axis, part in shown:
        for label, colour, lines in series(part, "setting"):
            axis.plot(lines["setting"], lines["value"], "o-", color=colour, label=label)
        key = tuple(part[keys].iloc[0])
        if key in plus.index:
            style: dict[str, Any] = {"color": colour_of("baseline_plus"), "linestyle": "--"}
            axis.axhline(plus.loc[key, "value"], label="Baseline+", **style)
        settings_axis(axis, part, "kernel size R")
    legend(figure)
    return figure


def prompt_length(measured: Measured) -> Any:
    """Draw ROUGE against the length of the prompt, a row of panels for each kind."""
    tidy = measured.tidy
    rows = with_full(tidy[(tidy["study"] == "prompt_length") & tidy["metric"].isin(ROUGE)])
    if rows.empty:
        return None
    rows["cell"] = rows["task"] + ", " + title(rows["sparsity"]) + ", " + title(rows["metric"])
    figure, shown = panels(rows, "cell")
    for axis, part in shown:
        for label, colour, lines in series(part, "setting"):
            draw_lines(axis, lines["setting"], lines, label, colour)
        settings_axis(axis, part, "tokens of the prompt")
    legend(figure)
    return figure


def of_settings(tidy: pd.DataFrame, *metrics: str) -> pd.DataFrame:
    """Return rows of the latency study with the full cache's in every block.

    Prompt, new tokens and batch have columns of their own.
    """
    rows = with_full(of_grid(tidy, *metrics))
    parts = [Setting.of(task) for task in rows["task"]]
    for name in ("prompt", "new_tokens", "batch"):
        rows[name] = [getattr(part, name) for part in parts]
    return rows.assign(length=rows["prompt"] + rows["new_tokens"])


def against(metric: str, along: str, label: str, fixed: Sequence[str]) -> Callable[[Measured], Any]:
    """Return what draws a metric of the latency study ``along`` a column.

    A panel shows where the other columns agree.

    Where memory did not suffice a cross stands on the axis.
    """

    def view(measured: Measured) -> Any:
        rows = of_settings(measured.tidy, metric)
        rows["cell"] = [
            ", ".join(f"{name.replace('_', ' ')} {row[name]}" for name in fixed)
            for row in rows.to_dict("records")
        ]
        several = rows.groupby(["model", "policy", "cell"])[along].transform("nunique") > 1
        rows = rows[several.astype(bool)].copy()
        if rows.empty:
            return None
        figure, shown = panels(rows, "cell")
        for axis, part in shown:
            for text, colour, lines in series(part, along):
                scaled = lines.assign(
                    **{n: lines[n] * METRICS[metric].scale for n in ("value", "low", "high")}
                )
                draw_lines(axis, scaled[along], scaled, text, colour)
                for place in lines.loc[lines["value"].isna(), along]:
                    (cross,) = axis.plot(
                        place, 0.03, "x", color=colour, transform=axis.get_xaxis_transform()
                    )
                    cross.set_in_layout(False)
            ticks = sorted(rows[along].unique())  # panels share the axis
            axis.set_xscale("log", base=2)
            axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axis.minorticks_off()
            axis.set_xlabel(label)
            axis.set_ylabel(METRICS[metric].title)
        for axis, _ in shown:
            axis.set_ylim(bottom=0)
        legend(figure)
        return figure

    return view


PART_COLOURS = ("#999999", "#E69F00", "#0072B2", "#009E73", "#CC79A7")
SHOWN_SETTINGS = 3
"""Settings whose steps are drawn: those that the configuration names first."""


def step_parts(measured: Measured) -> Any:
    """Draw the parts of a decode step as stacked bars, a bar a method."""
    tidy, names = measured.tidy, [part for part in STEP_PARTS if part != "total"]
    rows = with_full(of_grid(tidy, *(f"step_ms.{part}" for part in names)))
    tasks = list(dict.fromkeys(rows["task"]))[:SHOWN_SETTINGS]
    rows = rows[rows["task"].isin(tasks)]
    if rows.empty:
        return None
    rows["cell"] = rows["task"] + ", " + title(rows["sparsity"])
    figure, shown = panels(rows, "cell")
    for axis, part in shown:
        entries = [(label, lines) for label, _, lines in series(part, "metric")]
        left = [0.0] * len(entries)
        for name, colour in zip(names, PART_COLOURS, strict=True):
            values = [
                max(lines.loc[lines["metric"] == f"step_ms.{name}", "value"].sum(), 0.0)
                for _, lines in entries
            ]
            axis.bar(range(len(entries)), values, 0.7, left, color=colour, label=STEP_PARTS[name])
            left = [a + b for a, b in zip(left, values, strict=True)]
        labels = [label.replace(" (", "\n(") for label, _ in entries]
        axis.set_xticks(range(len(entries)), labels)
        axis.set_ylabel("ms a decode step")
    legend(figure)
    return figure


def settings_axis(axis: Any, part: pd.DataFrame, label: str) -> None:
    """Show settings as ticks on a logarithmic axis, the metric beside it."""
    settings = sorted(part["setting"].unique())
    axis.set_xscale("log", base=2)
    axis.set_xticks(settings, [f"{setting:g}" for setting in settings])
    axis.minorticks_off()
    axis.set_xlabel(label)
    axis.set_ylabel(METRICS[part["metric"].iloc[0]].title)


def loss_curves(measured: Measured) -> Any:
    """Draw validation loss as a share of the sparse policy's against epochs, a line a layer."""
    curves = measured.curves
    if curves.empty:
        return None
    rows = curves.assign(share=curves["validation_loss"] / curves["sparse_loss"])
    rows["cell"] = [f"trained at {100 * s:g} %" for s in rows["train_sparsity"]]
    figure, shown = panels(rows, "cell")
    scale = Normalize(rows["layer"].min(), max(rows["layer"].max(), 1))
    colours = plt.get_cmap("viridis")
    for axis, part in shown:
        for layer, lines in part.groupby("layer"):
            axis.plot(lines["epoch"], lines["share"], color=colours(scale(layer)), linewidth=0.9)
        axis.set_xlabel("epoch")
        axis.set_ylabel("loss / sparse loss")
        axis.xaxis.get_major_locator().set_params(integer=True)
    bar = plt.cm.ScalarMappable(norm=scale, cmap=colours)
    figure.colorbar(bar, ax=figure.axes, label="layer", shrink=0.8)
    return figure


def maps(policy: str, places: slice) -> Callable[[Measured], Any]:
    """Return a figure of attention maps of some heads under a policy."""
    return lambda measured: draw_maps(measured.maps, policy, places)


FIGURES: dict[str, Callable[[Measured], Any]] = {
    "figure1": maps("h2o", slice(0, 1)),
    "figure3": lambda measured: draw_spectrum(measured.spectra),
    "figure6": hellinger,
    "figure7": kernel_size,
    "figure8": prompt_length,
    "figure9": maps("h2o", slice(1, 2)),
    "figure10": maps("h2o", slice(2, None)),
    "figure11": maps("lambda", slice(None)),
    "throughput": against("throughput", "batch", "batch", ["prompt", "new_tokens"]),
    "latency": against("latency_s", "length", "tokens", ["batch", "new_tokens"]),
    "memory": against("peak_memory_bytes", "length", "tokens", ["batch", "new_tokens"]),
    "step_parts": step_parts,
    "perplexity": perplexity,
    "recovered_gap": recovered_gap,
    "loss_curves": loss_curves,
}
"""Name of a figure's files to the view it shows; None where nothing was measured for it."""


def drawn(name: str, measured: Measured) -> Any:
    """Draw a figure, or one that says what would measure it."""
    return FIGURES[name](measured) or nothing(CATALOGUE[name].missing)


def plot(measured: Measured, folder: Path) -> None:
    """Write every figure, as SVG and PNG."""
    with plt.rc_context(STYLE):
        for name in FIGURES:
            save(drawn(name, measured), folder, name)
