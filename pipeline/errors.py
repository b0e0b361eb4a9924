"""Errors that are meant for people, and the lookups that raise them."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path


class LessError(Exception):
    """A problem the user can act on; the command line prints it without a traceback."""


class ConfigError(LessError):
    """The configuration asks for something that cannot be."""


class DataError(LessError):
    """A file or data set is missing, incomplete or not what it claims to be."""


class DamagedError(DataError):
    """A file between steps is not what was written.

    Attributes:
        output: the file, or the folder that stands and falls with it: what is to be made again.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        what: object,
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(f"{path} is damaged ({what}); make it again.")
        self.output = Path(path if folder is None else folder)


def unknown(kind: str, name: str, known: Iterable[str]) -> ConfigError:
    """Return the error of an unknown ``name``, which suggests the nearest known one."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return ConfigError(f"unknown {kind} '{name}'{hint} Known: {', '.join(names)}.")
