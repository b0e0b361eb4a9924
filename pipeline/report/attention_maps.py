"""Figures of attention itself: maps of single heads, and the rank of what a policy leaves out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm

from ..experiment.methods import METHODS, policy_title

FAINTEST = 1e-4
"""Probabilities below this are drawn as none."""
COLUMNS = 3
"""Maps of a head: full, sparse, corrected."""


class Maps(NamedTuple):
    """Attention maps of one model: name to (T, T) probabilities, and the file's header."""

    model: str
    maps: Mapping[str, np.ndarray]
    header: Mapping[str, Any]

    @property
    def heads(self) -> list[tuple[int, int]]:
        """(layer, head) of every map, in the order that was asked for."""
        return [(layer, head) for layer, head in self.header["heads"]]

    def titles(self, policy: str) -> dict[str, str]:
        """Return titles of a head's maps under a policy, by their kind."""
        name, method = policy_title(policy), self.header["method"]
        return {
            "full": "Full cache",
            policy: name,
            f"{policy}+{method}": f"{name} + {METHODS[method].title}",
        }


def load_maps(paths: Sequence[Path]) -> list[Maps]:
    """Read the maps of every file; a file's name is its model's."""
    from ..storage.tensors import load_tensors  # only where there are maps: it brings torch

    loaded = []
    for path in paths:
        tensors, header = load_tensors(path, "attention maps")
        maps = {name: tensor.float().numpy() for name, tensor in tensors.items()}
        loaded.append(Maps(path.stem, maps, header))
    return loaded


def draw_maps(drawn: Sequence[Maps], policy: str, places: slice) -> Any:
    """Draw full, sparse and corrected maps side by side, a row a head; None where there is none.

    Colours are logarithmic from :data:`FAINTEST`; black is what a query gives nothing to. Rows are
    queries, columns keys.

    Args:
        places: which of a model's heads.
    """
    rows = [
        (maps, layer, head)
        for maps in drawn
        if policy in maps.header["policies"]
        for layer, head in maps.heads[places]
    ]
    if not rows:
        return None
    figure, axes = plt.subplots(
        len(rows),
        COLUMNS,
        squeeze=False,
        sharex="row",
        sharey="row",
        figsize=(2.6 * COLUMNS + 1, 2.7 * len(rows) + 0.3),
        layout="constrained",
    )
    colours = plt.get_cmap("inferno").with_extremes(bad="black", under="black")
    for line, (maps, layer, head) in zip(axes, rows, strict=True):
        tokens = maps.header["tokens"]
        for axis, (kind, title) in zip(line, maps.titles(policy).items(), strict=True):
            shown = maps.maps.get(f"l{layer}.h{head}.{kind}")
            if shown is None:  # without kernels there is no corrected map
                axis.set_visible(False)
                continue
            axis.set_facecolor("white")
            future = np.triu(np.ones(shown.shape, bool), 1)
            image = axis.imshow(
                np.where(shown < FAINTEST, 0, shown),
                cmap=colours,
                norm=LogNorm(FAINTEST, 1),
                alpha=np.where(future, 0.0, 1.0),
                extent=(0, tokens, tokens, 0),
                interpolation="nearest",
            )
            axis.set_title(title, fontsize=9)
            axis.grid(False)
            axis.set_xlabel("key")
        several = f"{maps.model}\n" if len(drawn) > 1 else ""
        line[0].set_ylabel(f"{several}layer {layer}, head {head}\nquery")
    figure.colorbar(image, ax=axes, label="attention probability", shrink=0.8, extend="min")
    return figure


ROUNDING = 1e-6
"""Smallest part of the largest singular value that float32 tells from zero."""


def draw_spectrum(rows: pd.DataFrame) -> Any:
    """Draw singular values of the residual beside the full output's, and what a low rank leaves.

    The sparse selection is top-k of each query's own row, as in the paper: no policy of a cache.

    A line is the median over heads and layers, its band their middle half.
    """
    if rows.empty:
        return None
    groups = list(rows.groupby(["model", "kept"], sort=False))
    figure, axes = plt.subplots(
        len(groups), 2, squeeze=False, figsize=(8, 2.9 * len(groups) + 0.4), layout="constrained"
    )
    for line, ((model, kept), lines) in zip(axes, groups, strict=True):
        spread(line[0], lines, "full", "full attention output", "#000000")
        spread(line[0], lines, "residual", f"residual: full less top-{kept}", "#0072B2")
        spread(line[1], lines, "recovered", f"top-{kept} plus the residual at rank r", "#D55E00")
        line[0].set_title(f"Spectrum, {model}", fontsize=9)
        line[0].set_xlabel("place of the singular value")
        line[0].set_ylabel("singular value / largest of full")
        line[1].set_title(f"Recovery by rank, {model}", fontsize=9)
        line[1].set_xlabel("rank r")
        line[1].set_ylabel("relative error of the output")
        for axis in line:
            axis.set_yscale("log")
            axis.legend()
    return figure


def spread(axis: Any, rows: pd.DataFrame, kind: str, label: str, colour: str) -> None:
    """Draw the median and the middle half by index."""
    by_index = rows[rows["kind"] == kind].groupby("index")["value"]
    low, middle, high = (by_index.quantile(share) for share in (0.25, 0.5, 0.75))
    known = middle > ROUNDING
    low, middle, high = (line.where(known) for line in (low.clip(ROUNDING), middle, high))
    axis.plot(middle.index, middle, color=colour, label=label)
    axis.fill_between(middle.index, low, high, color=colour, alpha=0.15, linewidth=0)
