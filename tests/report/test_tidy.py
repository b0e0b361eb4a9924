"""The tidy table: what becomes of the rows of each kind."""

from math import log

import numpy as np
import pandas as pd
import pytest

from pipeline.errors import DataError, LessError
from pipeline.report import tidy
from pipeline.report.statistics import (
    resamples,
)
from pipeline.steps import tabulate as tabulate_step
from pipeline.text.rouge import ROUGE


def cell(methods, policy="h2o", sparsity=0.1, documents=("a", "b")):
    """Measurements: method name, train sparsity and losses of each document (2 tokens, 1 word)."""
    return pd.DataFrame(
        [
            {
                "method": method, "train_sparsity": trained, "budget": 4, "document": document,
                "tokens": 2, "words": 1, "nll": nll, "policy": policy, "model": "m", "task": "t",
                "sparsity": sparsity,
            }
            for method, trained, losses in methods
            for document, nll in zip(documents, losses, strict=True)
        ]
    )  # fmt: skip


FULL = cell([("full", None, [2 * log(2)] * 2)], policy=None, sparsity=None)

CELL = [
    ("baseline", None, [2 * log(4)] * 2),
    ("baseline_plus", None, [2 * log(3.5)] * 2),
    ("less", 0.05, [2 * log(3)] * 2),
    ("less", 0.1, [2 * log(2.5)] * 2),
]


def values(table):
    rows = tidy.perplexity_rows(table, FULL, resamples(2, 100, 0))
    return {(r["method"], r["train_sparsity"], r["metric"]): r["value"] for r in
            pd.DataFrame(rows).fillna({"train_sparsity": 0}).to_dict("records")}  # fmt: skip


def test_rows_of_a_cell():
    found = values(cell(CELL))
    token = {k[:2]: v for k, v in found.items() if k[2] == "token_perplexity"}
    assert token == pytest.approx(
        {("baseline", 0): 4, ("baseline_plus", 0): 3.5, ("less", 0.05): 3, ("less", 0.1): 2.5}
    )
    words = {k[:2]: v for k, v in found.items() if k[2] == "word_perplexity"}
    assert words == pytest.approx({k: v**2 for k, v in token.items()})
    gaps = {k[:2]: v for k, v in found.items() if k[2] == "recovered_gap"}
    assert gaps == pytest.approx(  # per word: from 16, the baseline, to 4, the full cache
        {("baseline_plus", 0): 3.75 / 12, ("less", 0.05): 7 / 12, ("less", 0.1): 9.75 / 12}
    )
    nats = {k[:2]: v for k, v in found.items() if k[2] == "nats_over_baseline_plus"}
    assert nats == pytest.approx(
        {("baseline", 0): log(4 / 3.5), ("less", 0.05): log(3 / 3.5), ("less", 0.1): log(2.5 / 3.5)}
    )


def test_documents_are_matched_by_name_not_by_order():
    losses = [2 * log(4), 2 * log(8)]
    straight = values(cell([("baseline", None, losses), ("less", 0.1, losses)]))
    table = cell([("baseline", None, losses)])
    turned = cell([("less", 0.1, losses[::-1])], documents=("b", "a"))
    assert values(pd.concat([table, turned])) == straight


def test_other_documents_cannot_be_paired():
    with pytest.raises(DataError, match="measured on other documents than the full cache; rerun"):
        values(cell([("baseline", None, [1.0, 1.0])], documents=("a", "c")))


def test_a_document_measured_twice_cannot_be_paired():
    twice = cell([("baseline", None, [1.0, 1.0])], documents=("a", "a"))
    with pytest.raises(DataError, match="rerun"):
        values(twice.assign(document="a"))


def test_what_is_not_measured_gives_no_rows():
    metrics = {metric for _, _, metric in values(cell([("less", 0.1, [1.0, 1.0])]))}
    assert metrics == {"token_perplexity", "word_perplexity"}


def scored(methods, policy="h2o"):
    """As :func:`cell`: method name, train sparsity and r@1 and mrr of each document."""
    table = cell([(name, trained, [0, 0]) for name, trained, *_ in methods], policy)
    for place, metric in ((2, "score.r@1"), (3, "score.mrr")):
        table[metric] = [value for row in methods for value in row[place]]
    return table.drop(columns=["tokens", "words", "nll"])


def test_scores_of_a_cell():
    full = scored([("full", None, [1, 1], [1, 1])], policy=None)
    table = scored(
        [("baseline", None, [0, 0], [0.5, 0.25]), ("baseline_plus", None, [0, 1], [0.5, 1]),
         ("less", 0.1, [1, 1], [1, 0.5])]
    )  # fmt: skip
    rows = pd.DataFrame(tidy.score_rows(table, full, resamples(2, 100, 0)))
    found = rows.pivot(index="method", columns="metric", values="value")
    assert list(dict.fromkeys(rows["metric"])) == [
        "r@1", "mrr", "r@1_over_baseline_plus", "mrr_over_baseline_plus", "recovered_gap",
    ]  # fmt: skip
    assert found.loc["less", ["r@1", "mrr"]].tolist() == [1, 0.75]
    assert found.loc["less", "mrr_over_baseline_plus"] == 0
    assert found.loc["baseline", "r@1_over_baseline_plus"] == -0.5
    assert found["recovered_gap"].dropna().to_dict() == {"baseline_plus": 0.5, "less": 1}
    (of_full,) = tidy.score_rows(full.drop(columns="score.mrr"), full, resamples(2, 100, 0))
    assert (of_full["method"], of_full["metric"], of_full["value"]) == ("full", "r@1", 1)


def test_tidy_table_of_files(tmp_path):
    from pipeline.storage.files import load_table, save_table

    distances = pd.DataFrame(
        {"method": "less", "train_sparsity": 0.1, "budget": 4, "document": ["a", "b"] * 2,
         "layer": [0, 0, 1, 1], "hellinger": [0.2, 0.4, 0.5, 0.7], "model": "m",
         "task": "fidelity", "policy": "h2o", "sparsity": 0.1}
    )  # fmt: skip
    paths = []
    # the full cache need not come first
    for name, table, kind in (
        ("cell", cell(CELL), "perplexity"),
        ("layers", distances, "fidelity"),
        ("full", FULL, "perplexity"),
    ):
        paths.append(str(tmp_path / f"{name}.parquet"))
        save_table(paths[-1], table, kind)
    import argparse

    parser = argparse.ArgumentParser()
    tabulate_step.add_arguments(parser)
    out = tmp_path / "tidy.parquet"
    words = ["--experiment", "e", "--config-hash", "h", "--seed", "3", "--bootstrap", "100"]
    words += ["--labels", '{"model": ["m"], "task": ["t", "fidelity"], "policy": ["h2o"]}']
    tabulate_step.run(parser.parse_args(["--cells", *paths, *words, "--out", str(out)]))
    table = load_table(out)
    assert table["commit"].nunique() == 1
    assert list(table.columns) == tidy.COLUMNS
    assert set(table["study"]) == {"grid"}
    assert table["setting"].isna().all()
    assert table["setting"].dtype == float
    assert set(zip(table["experiment"], table["config"], table["seed"], strict=True)) == {
        ("e", "h", 3)
    }
    layers = table[table["metric"] == "hellinger"].set_index("layer")
    assert layers["value"].to_dict() == pytest.approx({0: 0.3, 1: 0.6})
    assert layers.loc[0, "low"] == pytest.approx(0.2)
    assert layers.loc[0, "high"] == pytest.approx(0.4)
    assert set(layers["n"]) == {2}
    assert table["policy"].isna().sum() == 2, "token and word perplexity of the full cache"
    assert not table.duplicated(["policy", "method", "train_sparsity", "layer", "metric"]).any()


@pytest.mark.parametrize("kind", ["", "harness"])
def test_a_file_must_say_what_it_measures(tmp_path, kind):
    from pipeline.storage.files import save_table

    save_table(tmp_path / "a.parquet", cell(CELL), kind or None)
    said = "unknown kind of measurements 'harness'" if kind else "does not say what it measures"
    with pytest.raises(LessError, match=said):
        tidy.tabulate([tmp_path / "a.parquet"], {}, 10, 0, tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_intervals_pair_documents():
    """A method that beats another by the same on every document has no spread in difference."""
    from pipeline.report.statistics import resamples
    from pipeline.report.tidy import summary_rows

    scores = np.array([10.0, 50.0, 90.0])
    rows = [
        {"model": "m", "task": "t", "policy": policy, "sparsity": 0.1, "budget": 1,
         "method": method, "train_sparsity": None, "document": str(i),
         **dict.fromkeys(ROUGE, score + better)}
        for policy, method, better in ((None, "full", 3), ("h2o", "baseline_plus", 0),
                                       ("h2o", "less", 2))
        for i, score in enumerate(scores)
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    full, cell = table[table["policy"].isna()], table[table["policy"].notna()]
    found = pd.DataFrame(summary_rows(cell, full, resamples(3, 200, 0)))
    difference = found[found["metric"] == "rougeL_over_baseline_plus"].iloc[0]
    assert (difference["value"], difference["low"], difference["high"]) == (2, 2, 2)
    less = found[(found["metric"] == "rougeL") & (found["method"] == "less")].iloc[0]
    assert less["low"] < less["value"] == 52 < less["high"]
