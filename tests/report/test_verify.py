"""`less-kv verify` on the committed results, as they are and with something changed."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from pipeline.__main__ import main
from pipeline.storage.files import load_json, save_json

ROOT = Path(__file__).parents[2]
COMMITTED = sorted(path.parent for path in ROOT.glob("results/*/provenance.json"))


def verify(folder, capsys):
    """(exit status, names that do not hold, what was said)."""
    status = main(["verify", str(folder)])
    said = capsys.readouterr()
    names = said.err.partition("do not hold: ")[2].strip().rstrip(".").split(", ")
    return status, set(names) - {""}, said.out + said.err


@pytest.fixture
def results(tmp_path):
    """A copy of committed results, without what only a run builds."""
    pages = shutil.ignore_patterns("*.html")
    return shutil.copytree(COMMITTED[0], tmp_path / "results" / "mine", ignore=pages)


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda path: path.name)
def test_committed_results_hold(folder, tmp_path, capsys):
    """As a clone has them: without the pages that git does not carry."""
    copy = tmp_path / "results" / folder.name
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.html", "examples.*"))
    status, names, said = verify(copy, capsys)
    assert (status, names) == (0, set()), said
    assert "Every file is as recorded" in said


def edit(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def another_number(results):
    text = (results / "tables" / "perplexity.md").read_text()
    digit = next(character for character in text if character.isdigit() and character != "9")
    edit(results / "tables" / "perplexity.md", digit, "9")
    return {"tables/perplexity.md"}


def another_figure(results):
    with (results / "figures" / "perplexity.png").open("ab") as image:
        image.write(b"\0")
    return {"figures/perplexity.png"}


def missing_table(results):
    (results / "tables" / "table1.csv").unlink()
    return {"tables/table1.csv"}


def file_of_another(results):
    (results / "tables" / "table9.md").write_text("| a |\n")
    return {"tables/table9.md"}


def another_configuration(results):
    config = load_json(results / "config.json")
    save_json(results / "config.json", config | {"bootstrap": 4000})
    return {"config.json"}


@pytest.mark.parametrize(
    "change",
    [another_number, another_figure, missing_table, file_of_another, another_configuration],
)
def test_what_changed_is_named(results, change, capsys):
    expected = change(results)
    status, names, said = verify(results, capsys)
    assert status == 1
    assert names == expected, said


def test_a_changed_tidy_table_is_named_with_all_that_no_longer_follows(results, capsys):
    tidy = pd.read_parquet(results / "results.parquet")
    tidy.loc[tidy["metric"] == "token_perplexity", "value"] *= 1.5
    tidy.to_parquet(results / "results.parquet", index=False)
    status, names, said = verify(results, capsys)
    assert status == 1
    assert {"results.parquet", "results.csv", "tables/perplexity.md"} <= names
    assert "results.parquet: changed since it was recorded" in said
    assert "results.csv: does not follow from results.parquet" in said
    assert not [name for name in names if name.startswith("figures/")]


def test_a_table_recorded_anew_must_still_follow(results, capsys):
    """Whoever changes a number and its hash is found by the tidy table."""
    another_number(results)
    record = load_json(results / "provenance.json")
    from pipeline.storage.files import sha256

    name = "tables/perplexity.md"
    record["results"][name] = sha256(results / name)
    save_json(results / "provenance.json", record)
    status, names, _ = verify(results, capsys)
    assert (status, names) == (1, {name})


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda x: (x / "results.parquet").write_bytes(b"PAR1"), "results.parquet"),
        (lambda x: (x / "provenance.json").write_text("{"), "provenance.json is damaged"),
        (lambda x: (x / "provenance.json").write_text("[]"), "not the record of a run"),
        (lambda x: (x / "config.json").unlink(), "config.json does not exist"),
        (lambda x: shutil.rmtree(x), "is not a folder of results"),
    ],
)
def test_damage_is_a_plain_error(results, damage, said, capsys):
    damage(results)
    status, _, text = verify(results, capsys)
    assert status == 1
    assert said in text


def test_records_of_earlier_versions_say_what_to_do(results, capsys):
    record = load_json(results / "provenance.json")
    record["results"] = {"results.csv": record["results"]["results.csv"]}
    save_json(results / "provenance.json", record)
    status, _, said = verify(results, capsys)
    assert status == 1
    assert "make it anew: snakemake" in said


def test_inputs_that_are_here_are_checked(results, capsys):
    record = load_json(results / "provenance.json")
    name = next(iter(record["inputs"]))
    other = results.parent.parent / name
    other.parent.mkdir(parents=True)
    other.write_bytes(b"another input")
    status, names, _ = verify(results, capsys)
    assert (status, names) == (1, {name})


def test_a_record_names_what_the_results_came_from():
    for folder in COMMITTED:
        record = json.loads((folder / "provenance.json").read_text())
        assert len(record["code"]["commit"]) == 40
        assert {"torch", "transformers", "numba"} <= set(record["packages"])
        assert record["hardware"]["processor"]
        assert record["inputs"]
