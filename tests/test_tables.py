import argparse

import numpy as np
import pandas as pd
import pytest

from pipeline.catalogue import TABLES as CATALOGUE
from pipeline.files import load_table, save_table
from pipeline.steps import tables
from pipeline.steps.tabulate import COLUMNS

METHODS = [("baseline", None), ("baseline_plus", None), ("less", 0.05), ("less", 0.1)]
SPARSITIES = [0.1, 0.02, 0.05]
METRICS = [
    "token_perplexity", "word_perplexity", "recovered_gap", "nats_over_baseline_plus", "acc",
]  # fmt: skip


def tidy_frame(models=("m_1",), methods=METHODS, fidelity=True):
    rows = []
    for model in models:
        for metric in METRICS[:2]:
            rows.append({"model": model, "task": "t", "method": "full", "metric": metric,
                         "value": 10.0, "low": 9.0, "high": 11.0, "n": 7})  # fmt: skip
        for policy in ("lambda", "h2o"):
            for sparsity in SPARSITIES:
                for place, (method, trained) in enumerate(methods):
                    key = {"model": model, "policy": policy, "sparsity": sparsity,
                           "method": method, "train_sparsity": trained}  # fmt: skip
                    for metric in METRICS:
                        value = 20 + 100 * sparsity + place
                        found = {"value": value, "low": value - 1, "high": value + 1, "n": 7}
                        rows.append(key | found | {"task": "t", "metric": metric})
                    for layer in range(2 if fidelity else 0):
                        value = 0.1 * (layer + 1)
                        rows.append(key | {"task": "fidelity", "metric": "hellinger",
                                           "layer": layer, "value": value, "low": value,
                                           "high": value, "n": 2})  # fmt: skip
    frame = pd.DataFrame(rows).assign(experiment="e", config="c", seed=0, budget=4)
    return frame.reindex(columns=COLUMNS)


def curves_frame(models=("m_1",)):
    return pd.DataFrame(
        [
            {"model": model, "policy": policy, "train_sparsity": 0.1, "layer": layer,
             "epoch": epoch, "train_loss": 1.0, "sparse_loss": 2.0, "learning_rate": 0.1,
             "validation_loss": 2.0 - 0.4 * epoch * (layer + 1)}
            for model in models for policy in ("h2o", "lambda")
            for layer in range(2) for epoch in range(3)
        ]
    )  # fmt: skip


def run_step(step, folder, tidy, curves):
    """The step as the command line runs it."""
    parser = argparse.ArgumentParser()
    step.add_arguments(parser)
    save_table(folder / "tidy.parquet", tidy)
    words = ["--tidy", str(folder / "tidy.parquet"), "--out", str(folder / "out"), "--curves"]
    if curves is not None:
        save_table(folder / "curves.parquet", curves)
        words.append(str(folder / "curves.parquet"))
    step.run(parser.parse_args(words))
    return folder / "out"


def test_perplexity_table():
    table = tables.perplexity_table(tidy_frame())
    assert list(table.columns) == [
        "model", "task", "policy", "n", "method", "2 %", "5 %", "10 %"
    ], "sparsities in the order of numbers, not of text"  # fmt: skip
    labels = ["Full cache", "Baseline", "Baseline+", "LESS (5 %)", "LESS (10 %)"]
    assert list(table["method"]) == labels * 2
    assert list(table["policy"]) == ["H2O"] * 5 + ["Λ-masking"] * 5
    assert set(table["n"]) == {7}
    assert (table.loc[table["method"] == "Full cache", "5 %"] == "10.00 [9.00, 11.00]").all()
    one = table[(table["policy"] == "H2O") & (table["method"] == "LESS (5 %)")].iloc[0]
    assert one["2 %"] == "24.00 [23.00, 25.00]"
    assert one["10 %"] == "32.00 [31.00, 33.00]"


def test_models_do_not_mix():
    tidy = tidy_frame(models=("a", "b"))
    tidy.loc[tidy["model"] == "b", "value"] += 1
    table = tables.perplexity_table(tidy)
    assert len(table) == 20
    full = table[table["method"] == "Full cache"].set_index(["model", "policy"])["2 %"]
    assert full["a", "H2O"] == "10.00 [9.00, 11.00]"
    assert full["b", "H2O"] == "11.00 [9.00, 11.00]"


@pytest.mark.parametrize("name", ["recovered_gap", "paired_difference", "scores"])
def test_tables_without_the_full_cache(name):
    table = tables.TABLES[name](tidy_frame())
    assert "Full cache" not in set(table["method"])
    assert len(table) == 2 * len(METHODS)


def test_scores_table():
    """Hundredfold, a row for each metric; a task's metrics that others lack leave no holes."""
    tidy = tidy_frame()
    other = tidy[tidy["metric"] == "acc"].assign(task="u", metric="mrr")
    gain = tidy[tidy["metric"] == "acc"].assign(metric="acc_over_baseline_plus")
    table = tables.scores_table(pd.concat([tidy, other, gain]))
    assert table.groupby("task")["metric"].agg(set).to_dict() == {
        "t": {"Accuracy", "Accuracy over Baseline+"}, "u": {"MRR"},
    }  # fmt: skip
    one = table[(table["metric"] == "MRR") & (table["policy"] == "H2O")].set_index("method")
    assert one.loc["LESS (5 %)", "2 %"] == "2400.0 [2300.0, 2500.0]"
    assert not table.isna().any().any()


def test_hellinger_table_is_over_layers():
    table = tables.hellinger_table(tidy_frame())
    assert len(table) == 2 * len(SPARSITIES) * len(METHODS)
    assert (table["mean over layers"] == 0.15).all()
    assert (table["best"] == 0.1).all()
    assert (table["worst"] == 0.2).all()


def test_training_table():
    """Layer 0 ends at 1.2 of 2.0, layer 1 at 0.4 of 2.0."""
    table = tables.training_table(curves_frame())
    assert len(table) == 2
    for column, value in {"loss / sparse loss": 0.4, "best layer": 0.2, "worst layer": 0.6,
                          "layers": 2}.items():  # fmt: skip
        assert np.allclose(table[column], value), column


def test_every_table_of_the_catalogue_in_every_format(tmp_path):
    assert {*tables.TABLES, "training"} == set(CATALOGUE)
    tidy = tidy_frame()
    out = run_step(tables, tmp_path, tidy, curves_frame())
    for name in CATALOGUE:
        for suffix in ("md", "csv", "tex"):
            assert (out / "tables" / f"{name}.{suffix}").stat().st_size > 50
    pd.testing.assert_frame_equal(load_table(out / "results.parquet"), tidy, check_dtype=False)
    pd.testing.assert_frame_equal(pd.read_csv(out / "results.csv"), tidy, check_dtype=False)
    csv = pd.read_csv(out / "tables" / "perplexity.csv")
    pd.testing.assert_frame_equal(csv, tables.perplexity_table(tidy), check_dtype=False)
    lines = (out / "tables" / "perplexity.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2 + len(csv)
    assert all(line.startswith("|") and line.endswith("|") for line in lines)
    tex = (out / "tables" / "perplexity.tex").read_text(encoding="utf-8")
    assert r"m\_1" in tex
    assert r"10 \%" in tex


@pytest.mark.parametrize(
    ("methods", "fidelity", "trained"),
    [([("baseline", None)], True, False), (METHODS[2:], False, True), (METHODS, False, False)],
)
def test_what_was_not_measured_is_an_empty_table(tmp_path, methods, fidelity, trained):
    tidy = tidy_frame(methods=methods, fidelity=fidelity)
    tidy = tidy[~tidy["metric"].isin(METRICS[2:])]
    out = run_step(tables, tmp_path, tidy, curves_frame() if trained else None)
    for name in CATALOGUE:
        csv = pd.read_csv(out / "tables" / f"{name}.csv")
        empty = {"recovered_gap", "paired_difference", "summaries", "scores"}
        empty |= set() if fidelity else {"hellinger"}
        empty |= set() if trained else {"training"}
        assert csv.empty == (name in empty), name
        assert len(csv.columns) >= 4
