"""Pages of tables in a browser, opened from a folder: they sort, filter and need no network."""

import re
from html import unescape
from urllib.parse import quote

import pandas as pd
import pytest
from frames import curves_frame, tidy_frame
from helpers import browse

from pipeline.report import tables
from pipeline.report.html import Section, as_html

HOSTILE = "<b>bold</b> & </script><script>missing()</script>"
ROWS = pd.DataFrame(
    {
        "task": ["b", "a", "a", "c", HOSTILE],
        "value": ["9.50 [1.00, 2.00]", "10.25 [3.00, 4.00]", "-1.00 [0.00, 1.00]", "", "1e2"],
        "method": ["LESS (5 %)", "Baseline", "LESS (10 %)", "Baseline+", "x"],
    }
)


def rows(document):
    """Texts of the cells of rows that are shown, in order."""
    body = document.split("<tbody>")[1].split("</tbody>")[0]
    found = re.findall(r"<tr([^>]*)>(.*?)</tr>", body, re.S)
    shown = [row for marks, row in found if "hidden" not in marks]
    return [[unescape(x) for x in re.findall(r"<td[^>]*>(.*?)</td>", row, re.S)] for row in shown]


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "page.html"
    path.write_text(as_html("Title", [Section("", ROWS)]), encoding="utf-8")
    return path


def seen(page, part=""):
    document, errors, asked = browse(page, page.parent, f"#{part}" if part else "")
    assert not errors
    assert not asked
    return document


def test_a_page_shows_every_cell_as_text(page):
    document = seen(page)
    assert rows(document) == ROWS.to_numpy().tolist()
    assert "5 of 5 rows" in document
    assert ">task: all<" in document, "a menu of the values of a column"


@pytest.mark.parametrize(
    ("part", "column", "expected"),
    [
        ("sort=1", 1, ["-1.00 [0.00, 1.00]", "9.50 [1.00, 2.00]", "10.25 [3.00, 4.00]", "1e2", ""]),
        ("sort=1&down", 1,
         ["1e2", "10.25 [3.00, 4.00]", "9.50 [1.00, 2.00]", "-1.00 [0.00, 1.00]", ""]),
        ("sort=0", 0, [HOSTILE, "a", "a", "b", "c"]),
    ],
)  # fmt: skip
def test_sorting_is_by_number_where_there_is_one(page, part, column, expected):
    document = seen(page, part)
    assert [row[column] for row in rows(document)] == expected
    assert f'aria-sort="{"descending" if "down" in part else "ascending"}"' in document


@pytest.mark.parametrize(
    ("words", "expected"),
    [("less", ["b", "a"]), ("LESS a", ["a"]), ("10.25", ["a"]), ("none of these", [])],
)
def test_filtering_keeps_rows_with_every_word(page, words, expected):
    document = seen(page, quote(f"filter={words}", safe="="))
    assert [row[0] for row in rows(document)] == expected
    assert f"{len(expected)} of 5 rows" in document


def test_clicks_menus_and_typing(page):
    """What links do, done by hand: a heading twice, then a choice, then a word."""
    script = """<script>
    const heading = document.querySelectorAll("th button")[1];
    heading.click(); heading.click();
    const menu = document.querySelector("select");
    menu.value = "a"; menu.onchange();
    const field = document.querySelector("input");
    field.value = "baseline"; field.oninput();
    </script></body>"""
    page.write_text(page.read_text(encoding="utf-8").replace("</body>", script), encoding="utf-8")
    document = seen(page)
    assert 'aria-sort="descending"' in document
    assert [row[2] for row in rows(document)] == ["Baseline"]


def test_a_page_of_several_tables_and_of_none(tmp_path):
    path = tmp_path / "page.html"
    found = [Section("One", ROWS, ["Said before."]), Section("Two", ROWS.head(0), ["Nothing."]),
             Section("Three", ROWS.head(2))]  # fmt: skip
    path.write_text(as_html("Title", found, ["A note."]), encoding="utf-8")
    document = seen(path, "filter=baseline")
    for text in ("A note.", "Said before.", "Nothing.", "2 of 5 rows", "1 of 2 rows"):
        assert text in document


@pytest.mark.parametrize("name", ["table2", "table6"])
def test_tables_of_a_run_open_measured_or_not(tmp_path, name):
    measured = tables.Measured(tidy_frame(), curves_frame())
    tables.write(tables.view(name, measured), tmp_path, name)
    document = seen(tmp_path / f"{name}.html")
    csv = pd.read_csv(tmp_path / f"{name}.csv", dtype=str, keep_default_na=False)
    assert rows(document) == csv.to_numpy().tolist()


def test_a_page_with_errors_would_be_seen(tmp_path):
    page = tmp_path / "page.html"
    page.write_text("<img src='http://example.invalid/x.png'><script>missing()</script>")
    _, errors, asked = browse(page, tmp_path)
    assert errors
    assert asked == {"http://example.invalid/x.png"}
