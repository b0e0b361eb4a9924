"""Measured files as cells: what each is about, what it is compared with, which run it is of.

Files that vary something beside the grid say what in columns ``study`` (its name) and ``setting``
(its value, a number); in the others the study is "grid". A measured file of an earlier commit
counts as long as the code and settings that it depends on are the same: its column ``measured_by``
is a hash of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from ..errors import DataError
from ..experiment.methods import GRID
from ..storage.files import load_measured

Key = dict[str, Any]
"""Columns that name a row, and their values."""


def cell_of(table: pd.DataFrame) -> Key:
    """Return what a measured file is about; the same in all its rows."""
    return {name: table[name].iloc[0] for name in ("model", "task", "policy", "sparsity")}


class Part(NamedTuple):
    """A part of a measured file that is one cell."""

    kind: str
    study: str
    setting: float | None
    table: pd.DataFrame


def load_parts(paths: Sequence[Path]) -> list[Part]:
    """Read measured files, whose headers say their kind.

    Raises:
        DataError: one is missing, damaged, or does not say what it measures.
    """
    return [part for path in paths for part in parts(*load_measured(path))]


def parts(table: pd.DataFrame, kind: str) -> Iterator[Part]:
    """Split a file by study and setting; most have only the grid's."""
    table = table.assign(study=table.get("study", GRID), setting=table.get("setting"))
    for (study, setting), rows in table.groupby(["study", "setting"], dropna=False, sort=False):
        yield Part(kind, study, None if pd.isna(setting) else float(setting), rows)


def full_caches(cells: Sequence[Part]) -> Callable[[Part], pd.DataFrame]:
    """Return what finds the full cache of a part: its study's own, or the grid's."""

    def key(part: Part) -> tuple[Any, ...]:
        cell = cell_of(part.table)
        return part.study, part.setting, cell["model"], cell["task"]

    full = {key(part): part.table for part in cells if cell_of(part.table)["policy"] is None}

    def reference(part: Part) -> pd.DataFrame:
        own = key(part)
        return full[own if own in full else (GRID, None, *own[2:])]

    return reference


def of_one_run(cells: Iterable[Part], labels: Mapping[str, list[str]]) -> None:
    """Refuse files that this run did not ask for.

    Raises:
        DataError: a label that the experiment does not have, or a cell measured twice.
    """
    seen = set()
    for part in cells:
        cell = cell_of(part.table)
        for column, known in labels.items():
            label = part.table[column].iloc[0] if column in part.table else "of an earlier version"
            if pd.notna(label) and label not in known:
                raise DataError(
                    f"{cell} is of another run: the experiment has no {column} '{label}'. Give the "
                    "files of one experiment, all measured by this code; delete others."
                )
        named = (part.study, part.setting, part.kind, *cell.values())
        key = tuple(None if pd.isna(value) else value for value in named)
        if key in seen:
            raise DataError(f"{cell} was given twice; give the files of one run only.")
        seen.add(key)
