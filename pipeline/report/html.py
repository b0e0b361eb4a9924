"""Tables as one web page to sort and filter: it needs no network and opens from a folder.

A view can be linked: ``page.html#filter=h2o less&sort=5&down`` filters rows to those that hold
every word and sorts by the column at place 5, largest first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jinja2
import pandas as pd

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 1.5rem; color: #222; background: #fff; }
h1 { font-size: 1.3rem; }
h2 { font-size: 1.1rem; margin-top: 2rem; }
.tools:not([hidden]) { display: flex; flex-wrap: wrap; gap: .5rem; align-items: center;
                       margin: .8rem 0; }
.tools input { flex: 1 1 14rem; max-width: 28rem; }
.tools input, .tools select { font: inherit; padding: .2rem .4rem; }
.tools output { color: #555; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: left; border-bottom: 1px solid #ddd; }
td { white-space: nowrap; }
td.long { white-space: normal; min-width: 18rem; }
th { border-bottom: 2px solid #888; vertical-align: bottom; }
th button { all: unset; cursor: pointer; }
th button:focus-visible { outline: 2px solid #0072b2; }
th[aria-sort=ascending] button::after { content: " \\25B2"; }
th[aria-sort=descending] button::after { content: " \\25BC"; }
tbody tr:hover { background: #f2f6fa; }
"""

SCRIPT = """
"use strict";
const number = text => {
  const found = text.match(/^[-+]?[0-9.]+(e[-+]?[0-9]+)?/i);
  return found ? parseFloat(found[0]) : NaN;
};
const compare = (a, b) => {
  const [x, y] = [number(a), number(b)];
  if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y) || a.localeCompare(b);
  return x - y;
};
const asked = new URLSearchParams(decodeURIComponent(location.hash.slice(1)));

document.querySelectorAll("section:has(table)").forEach(section => {
  const body = section.querySelector("tbody");
  const heads = [...section.querySelectorAll("th")];
  const words = section.querySelector("input");
  const count = section.querySelector("output");
  const rows = [...body.rows].map(row => ({row, cells: [...row.cells].map(c => c.textContent)}));
  const choices = [];

  const sort = (place, down) => {
    heads.forEach((head, i) => {
      if (i === place) head.ariaSort = down ? "descending" : "ascending";
      else head.removeAttribute("aria-sort");
    });
    const sign = down ? -1 : 1;
    // Empty cells stay last either way.
    [...rows].sort((a, b) => {
      const [x, y] = [a.cells[place], b.cells[place]];
      return (x === "") - (y === "") || sign * compare(x, y);
    }).forEach(found => body.append(found.row));
  };
  const filter = () => {
    const wanted = words.value.toLowerCase().split(/\\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach(({row, cells}) => {
      const text = cells.join("\\n").toLowerCase();
      row.hidden = !wanted.every(word => text.includes(word))
        || !choices.every(([place, choice]) => !choice.value || cells[place] === choice.value);
      shown += !row.hidden;
    });
    count.value = `${shown} of ${rows.length} rows`;
  };

  heads.forEach((head, place) => {
    head.querySelector("button").onclick = () => sort(place, head.ariaSort === "ascending");
    const values = [...new Set(rows.map(({cells}) => cells[place]))];
    if (!head.hasAttribute("data-choice") || values.length < 2) return;
    const choice = document.createElement("select");
    choice.ariaLabel = head.textContent;
    choice.append(new Option(`${head.textContent}: all`, ""), ...values.map(v => new Option(v)));
    choice.onchange = filter;
    choices.push([place, choice]);
    count.before(choice);
  });
  words.oninput = filter;
  words.value = asked.get("filter") ?? "";
  if (asked.has("sort")) sort(Number(asked.get("sort")), asked.has("down"));
  filter();
});
"""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>{{ style|safe }}</style>
</head>
<body>
<h1>{{ title }}</h1>
{% for line in notes %}
<p>{{ line }}</p>
{% endfor %}
{% for section in sections %}
<section>
{% if section.title %}
<h2>{{ section.title }}</h2>
{% endif %}
{% for line in section.lines %}
<p>{{ line }}</p>
{% endfor %}
{% if section.table|length %}
<div class="tools"{% if section.table|length < 6 %} hidden{% endif %}>
<input type="search" placeholder="Filter: h2o less" aria-label="Filter rows"><output></output>
</div>
<div class="scroll">
<table>
<thead><tr>
{% for name in section.table.columns %}
<th{% if name in choices %} data-choice{% endif %}><button type="button">{{ name }}</button></th>
{% endfor %}
</tr></thead>
<tbody>
{% for row in section.table.itertuples(index=False, name=None) %}
<tr>
{% for cell in row %}
<td{% if cell|string|length > 48 %} class="long"{% endif %}>{{ cell }}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table>
</div>
{% endif %}
</section>
{% endfor %}
<script>{{ script|safe }}</script>
</body>
</html>
"""

CHOICES = ("table", "model", "task", "policy", "sparsity", "method", "metric", "train_sparsity")
"""Columns with a menu of their values."""


class Section(NamedTuple):
    """A table, what is said before it, and a heading; one table alone needs none."""

    title: str
    table: pd.DataFrame
    lines: Sequence[str] = ()


def as_markdown(table: pd.DataFrame) -> str:
    """The table, numbers as they are written."""
    return f"{table.to_markdown(index=False, disable_numparse=True)}\n"


def as_html(title: str, sections: Sequence[Section], notes: Sequence[str] = ()) -> str:
    """The page; every text is escaped."""
    page = jinja2.Environment(autoescape=True, trim_blocks=True).from_string(PAGE)
    own = {"style": STYLE, "script": SCRIPT, "choices": CHOICES}
    return page.render(title=title, sections=sections, notes=notes, **own) + "\n"
