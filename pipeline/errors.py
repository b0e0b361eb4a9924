"""Errors that are meant for people, and the lookups that raise them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LessError(Exception):
    """A problem the user can act on; the command line prints it without a traceback."""


class ConfigError(LessError):
    """The configuration asks for something that cannot be."""


class DataError(LessError):
    """A file or data set is missing, incomplete or not what it claims to be."""


def unknown(kind: str, name: str, known: Iterable[str]) -> ConfigError:
    """A :class:`ConfigError` for an unknown ``name``, with the nearest known one suggested."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return ConfigError(f"unknown {kind} '{name}'{hint} Known: {', '.join(names)}.")
