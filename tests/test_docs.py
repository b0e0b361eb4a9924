"""What the documents name is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PLACES = "pipeline|workflow|experiments|profiles|envs|benchmarks|docs|tests"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_that_a_page_names_exists(page):
    named = re.findall(rf"(?<![\w/.-])(?:{PLACES})/[\w./-]+", page.read_text())
    missing = {path for path in named if not (ROOT / path.rstrip(".")).exists()}
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_somewhere(page):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    missing = {link for link in links if not (page.parent / link).exists()}
    assert not missing


def test_the_tree_on_the_first_page_is_the_tree():
    """Each folder of `pipeline/` and each module of its root stands in docs/how_it_works.md."""
    page = (ROOT / "docs" / "how_it_works.md").read_text()
    tree = page.split("    pipeline/\n", 1)[1].split("\n\n", 1)[0]
    named = set(re.findall(r"[a-z_]+", tree))
    package = ROOT / "pipeline"
    folders = {path.parent.name for path in package.glob("*/__init__.py")}
    modules = {path.stem for path in package.glob("*.py") if not path.stem.startswith("__")}
    assert folders | modules | {path.stem for path in (package / "ops").glob("[a-z]*.py")} <= named
