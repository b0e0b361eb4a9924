"""Tables as one web page to sort and filter: it needs no network and opens from a folder.

A view can be linked: ``page.html#filter=h2o less&sort=5&down`` filters rows to those that hold
every word and sorts by the column at place 5, largest first.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import NamedTuple

import jinja2
import pandas as pd

from .. import resources

CHOICES = ("table", "model", "task", "policy", "sparsity", "method", "metric", "train_sparsity")
"""Columns with a menu of their values."""


class Section(NamedTuple):
    """A table, what is said before it, and a heading; one table alone needs none."""

    title: str
    table: pd.DataFrame
    lines: Sequence[str] = ()


def as_markdown(table: pd.DataFrame) -> str:
    """Return the table, numbers as they are written."""
    return f"{table.to_markdown(index=False, disable_numparse=True)}\n"


def resource(name: str) -> str:
    """Return the text of a page's part in :mod:`pipeline.resources`."""
    return files(resources).joinpath(name).read_text("utf-8")


def template(name: str) -> jinja2.Template:
    """Return a page in :mod:`pipeline.resources` to fill; every text is escaped."""
    return jinja2.Environment(autoescape=True, trim_blocks=True).from_string(resource(name))


def as_html(title: str, sections: Sequence[Section], notes: Sequence[str] = ()) -> str:
    """Return the page of tables."""
    parts = {"style": resource("tables.css"), "script": resource("tables.js"), "choices": CHOICES}
    page = template("tables.html")
    return page.render(title=title, sections=sections, notes=notes, **parts) + "\n"
