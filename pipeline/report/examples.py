"""Summaries of the full cache, baseline+ and LESS side by side, as a web page and as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ..experiment.methods import FULL, label_of, policy_title, trained_methods
from ..storage.files import whole
from .html import template

MARKS = re.compile(r"([\\`*_\[\]<>#|~])")
"""What Markdown would take for its own."""


@dataclass(frozen=True)
class Text:
    """What one method wrote."""

    label: str
    facts: str
    text: str


@dataclass(frozen=True)
class Example:
    """One document's summaries."""

    document: str
    reference: str
    texts: list[Text]


@dataclass(frozen=True)
class Section:
    """Examples of one cell of the grid."""

    title: str
    examples: list[Example]


def sections(tables: Sequence[pd.DataFrame], count: int) -> Iterator[Section]:
    """Yield the first ``count`` documents of every cell, the full cache's text beside."""
    rows = pd.concat(tables, ignore_index=True)
    rows = rows[rows["method"].isin([FULL, "baseline_plus", *trained_methods()])]
    full = rows[rows["method"] == FULL]
    cells = rows[rows["method"] != FULL].groupby(
        ["model", "task", "policy", "sparsity"], sort=False
    )
    for (model, task, policy, sparsity), own in cells:
        same = full[(full["model"] == model) & (full["task"] == task)]
        everything = pd.concat([same, own])
        documents = list(dict.fromkeys(same["document"]))[:count]
        yield Section(
            f"{task}: {model}, {policy_title(policy)} at {100 * sparsity:g} %",
            [example(everything[everything["document"] == name]) for name in documents],
        )


def example(rows: pd.DataFrame) -> Example:
    """Return one document's rows, a text a method."""
    return Example(
        document=rows["document"].iloc[0],
        reference=rows["reference"].iloc[0],
        texts=[
            Text(
                label_of(row.method, row.train_sparsity),
                f"Rouge-L {row.rougeL:.1f}, {row.new_tokens} tokens",
                row.text.strip(),
            )
            for row in rows.itertuples()
        ],
    )


def as_html(shown: Sequence[Section], note: str) -> str:
    """Return a page that needs nothing else; every text is escaped."""
    return template("examples.html").render(sections=shown, note=note) + "\n"


def as_markdown(shown: Sequence[Section], note: str) -> str:
    """Return the same as quotes under headings."""
    parts = ["# Summaries side by side", note]
    for section in shown:
        parts.append(f"## {plain(section.title)}")
        for each in section.examples:
            parts += [f"### {plain(each.document)}", "**Reference**", quote(each.reference)]
            for text in each.texts:
                parts += [f"**{plain(text.label)}** ({text.facts})", quote(text.text or "(empty)")]
    return "\n\n".join(parts) + "\n"


def plain(text: str) -> str:
    """Return text that Markdown shows as it is."""
    return MARKS.sub(r"\\\1", text.replace("&", "&amp;"))


def quote(text: str) -> str:
    """Return a Markdown quote that keeps line breaks."""
    return "\n".join(f"> {plain(line)}  " for line in text.splitlines())


def write(tables: Sequence[pd.DataFrame], count: int, out: Path) -> None:
    """Write ``count`` documents of every cell as a page to ``out``, Markdown beside it."""
    shown = list(sections(tables, count))
    note = (
        f"The first {count} documents of each task in the order they were drawn, not chosen "
        "by result. Prompts are not shown; documents too long for one were passed over."
    )
    texts = {out: as_html(shown, note), out.with_suffix(".md"): as_markdown(shown, note)}
    for path, text in texts.items():
        with whole(path) as partial:
            partial.write_text(text, encoding="utf-8")
