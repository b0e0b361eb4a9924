"""Summaries of the full cache, baseline+ and LESS side by side, as a web page and as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jinja2
import pandas as pd

from ..experiment.methods import FULL, label_of, policy_title

SHOWN = (FULL, "baseline_plus", "less")
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Summaries side by side</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem; padding: 0 1rem;
       color: #222; background: #fff; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
.texts { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: .75rem; }
figure { margin: 0; padding: .6rem .8rem; border: 1px solid #ddd; border-radius: 4px; }
figure.reference { background: #f4f4f4; grid-column: 1 / -1; }
figcaption { font-weight: 600; margin-bottom: .3rem; }
figcaption small { font-weight: normal; color: #555; }
p { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; }
.none { color: #777; font-style: italic; }
</style>
</head>
<body>
<h1>Summaries side by side</h1>
<p>{{ note }}</p>
{% for section in sections %}
<h2>{{ section.title }}</h2>
{% for example in section.examples %}
<h3>{{ example.document }}</h3>
<div class="texts">
<figure class="reference"><figcaption>Reference</figcaption><p>{{ example.reference }}</p></figure>
{% for text in example.texts %}
<figure>
<figcaption>{{ text.label }} <small>{{ text.facts }}</small></figcaption>
{% if text.text %}<p>{{ text.text }}</p>{% else %}<p class="none">empty</p>{% endif %}
</figure>
{% endfor %}
</div>
{% endfor %}
{% endfor %}
</body>
</html>
"""
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
    """The first ``count`` documents of every cell, with the full cache's text from its own file."""
    rows = pd.concat(tables, ignore_index=True)
    rows = rows[rows["method"].isin(SHOWN)]
    full = rows[rows["method"] == FULL]
    cells = rows[rows["method"] != FULL].groupby(
        ["model", "task", "policy", "sparsity"], sort=False
    )
    for (model, task, policy, sparsity), found in cells:
        same = full[(full["model"] == model) & (full["task"] == task)]
        everything = pd.concat([same, found])
        documents = list(dict.fromkeys(same["document"]))[:count]
        yield Section(
            f"{task}: {model}, {policy_title(policy)} at {100 * sparsity:g} %",
            [example(everything[everything["document"] == name]) for name in documents],
        )


def example(rows: pd.DataFrame) -> Example:
    """One document's rows, a text a method."""
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


def as_html(found: Sequence[Section], note: str) -> str:
    """A page that needs nothing else; every text is escaped."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True)
    return environment.from_string(PAGE).render(sections=found, note=note) + "\n"


def as_markdown(found: Sequence[Section], note: str) -> str:
    """The same as quotes under headings."""
    parts = ["# Summaries side by side", note]
    for section in found:
        parts.append(f"## {plain(section.title)}")
        for shown in section.examples:
            parts += [f"### {plain(shown.document)}", "**Reference**", quote(shown.reference)]
            for text in shown.texts:
                parts += [f"**{plain(text.label)}** ({text.facts})", quote(text.text or "(empty)")]
    return "\n\n".join(parts) + "\n"


def plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return MARKS.sub(r"\\\1", text.replace("&", "&amp;"))


def quote(text: str) -> str:
    """A Markdown quote that keeps line breaks."""
    return "\n".join(f"> {plain(line)}  " for line in text.splitlines())
