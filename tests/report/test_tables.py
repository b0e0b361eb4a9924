import pandas as pd
import pytest
from frames import (
    LLAMA,
    METHODS,
    METRICS,
    ROUGES,
    SCORES,
    SPARSITIES,
    curves_frame,
    more,
    run_step,
    scored,
    tidy_frame,
)

from pipeline.errors import DataError
from pipeline.report import rows as views
from pipeline.report import tables
from pipeline.report.contents import TABLES as CATALOGUE
from pipeline.report.metrics import STEP_PARTS
from pipeline.steps import tables as tables_step
from pipeline.storage.files import load_table


def view(name, tidy=None, curves=None, models=None):
    tidy = tidy_frame() if tidy is None else tidy
    curves = curves_frame() if curves is None else curves
    return tables.view(name, tables.Measured(tidy, curves, models or {}))


# --- the whole grid --------------------------------------------------------------------------


def test_a_table_of_the_whole_grid():
    table = view("perplexity")
    assert list(table.columns) == [
        "model", "task", "policy", "method", "2 %", "5 %", "10 %", "n"
    ], "sparsities in the order of numbers, not of text"  # fmt: skip
    labels = ["Full cache", "Baseline", "Baseline+", "LESS (5 %)", "LESS (10 %)"]
    assert list(table["method"]) == labels * 2
    assert list(table["policy"]) == ["Λ-masking"] * 5 + ["H2O"] * 5
    assert set(table["n"]) == {"7"}
    assert (table.loc[table["method"] == "Full cache", "5 %"] == "10.00 [9.00, 11.00]").all()
    one = table[(table["policy"] == "H2O") & (table["method"] == "LESS (5 %)")].iloc[0]
    assert one["2 %"] == "24.00 [23.00, 25.00]"
    assert one["10 %"] == "32.00 [31.00, 33.00]"


def test_models_do_not_mix():
    tidy = tidy_frame(models=("a", "b"))
    tidy.loc[tidy["model"] == "b", "value"] += 1
    table = view("perplexity", tidy)
    assert len(table) == 20
    full = table[table["method"] == "Full cache"].set_index(["model", "policy"])["2 %"]
    assert full["a", "H2O"] == "10.00 [9.00, 11.00]"
    assert full["b", "H2O"] == "11.00 [9.00, 11.00]"


@pytest.mark.parametrize("name", ["recovered_gap", "paired_difference"])
def test_tables_without_the_full_cache(name):
    table = view(name)
    assert "Full cache" not in set(table["method"])
    assert len(table) == 2 * len(METHODS)


def test_scores_in_percent_with_the_measured_gap_of_the_first():
    tidy = pd.concat([scored("mutual", name) for name in ("r@1", "mrr")], ignore_index=True)
    key = {"task": ["mutual"], "policy": "lambda", "sparsity": 0.05, "method": "less",
           "train_sparsity": 0.05, "n": 5}  # fmt: skip
    gap = more(**key, metric="recovered_gap", value=0.5, low=0.25, high=0.75)
    over = more(**key, metric="r@1_over_baseline_plus", value=0.05, low=0.01, high=0.09)
    table = view("scores", pd.concat([tidy, gap, over], ignore_index=True))
    less = table[table["method"] == "LESS (5 %)"].set_index("metric")
    assert less["5 %"].to_dict() == {
        "R@1 (%)": "70.00 [60.00, 80.00]", "MRR (%)": "70.00 [60.00, 80.00]",
        "R@1 (%) over Baseline+": "5.00 [1.00, 9.00]",
    }  # fmt: skip
    assert less["5 % gap"].to_dict() == {
        "R@1 (%)": "0.500 [0.250, 0.750]", "MRR (%)": "0.50", "R@1 (%) over Baseline+": ""
    }  # fmt: skip


@pytest.mark.parametrize("setting", [0, 1])
def test_scores_of_the_study_stand_beside_the_grids(setting):
    """The grid's own are of the other kind, and only of the cells that the study measured."""
    tidy = tidy_frame()
    chosen = tidy["method"].isin(["baseline", "less"]) & (tidy["metric"] == "word_perplexity")
    chosen &= (tidy["policy"] == "h2o") & (tidy["sparsity"] == SPARSITIES[0])
    study = tidy[chosen].assign(study="scores", setting=float(setting), value=1.0)
    table = view("policy_scores", pd.concat([tidy, study], ignore_index=True))
    table = table[table["metric"] == "word perplexity"].set_index("method")
    kinds = ["cached scores", "full scores"]
    studied, own = kinds[setting], kinds[1 - setting]
    assert list(table.columns[table.columns.isin(kinds)]) == kinds
    assert set(table["policy"]) == {"H2O"}
    assert table.loc["Baseline", studied].startswith("1.00")
    assert table.loc["Baseline", own].startswith(f"{20 + 100 * SPARSITIES[0]:.2f}")
    assert table.loc["Baseline+", studied] == ""


def test_hellinger_table_is_over_layers():
    table = view("hellinger")
    assert len(table) == 2 * len(SPARSITIES) * len(METHODS)
    assert (table["mean over layers"] == 0.15).all()
    assert (table["best"] == 0.1).all()
    assert (table["worst"] == 0.2).all()


def test_training_table():
    """Layer 0 ends at 1.2 of 2.0, layer 1 at 0.4 of 2.0."""
    table = view("training")
    assert len(table) == 2
    for column, value in {"loss / sparse loss": 0.4, "best layer": 0.2, "worst layer": 0.6,
                          "layers": 2}.items():  # fmt: skip
        assert table[column].tolist() == pytest.approx([value] * 2), column
    assert table["faults"].tolist() == ["none"] * 2


def test_training_table_names_the_layers_that_failed():
    curves = curves_frame()
    first, second = (curves["layer"] == layer for layer in (0, 1))
    curves.loc[first, ["fault", "became"]] = ["diverged in epoch 2", "sparse"]
    curves.loc[first, "validation_loss"] = float("nan")
    table = view("training", curves=curves)
    assert table["faults"].tolist() == ["layer 0: diverged in epoch 2 (now without a kernel)"] * 2
    assert table["layers"].tolist() == [2, 2], "a layer without a loss counts"
    curves.loc[second, "fault"] = "diverged in epoch 2"
    assert (
        view("training", curves=curves)["faults"].tolist()
        == [
            "layer 0: diverged in epoch 2 (now without a kernel); "
            "layer 1: diverged in epoch 2 (an earlier epoch is kept)"
        ]
        * 2
    )
    curves[["fault", "became"]] = ["does not beat the sparse policy", "keep"]
    assert (
        view("training", curves=curves)["faults"].tolist()
        == ["layers 0, 1: does not beat the sparse policy (kept all the same)"] * 2
    )


def test_what_a_study_measured_is_in_no_table_of_the_grid():
    other = tidy_frame().assign(study="kernel_size", setting=4.0)
    other["value"] += 100
    both = pd.concat([tidy_frame(), other], ignore_index=True)
    for name in tables.TABLES:
        pd.testing.assert_frame_equal(view(name, both), view(name))


# --- the paper's tables ----------------------------------------------------------------------


def test_table1_is_budgets_beside_the_papers():
    tidy = tidy_frame()
    tidy["budget"] = (tidy["sparsity"].fillna(0) * 4096 // 2 * 2).astype(int)
    tidy.loc[tidy["method"] == "baseline_plus", "budget"] += 4
    (row,) = view("table1", tidy, models=LLAMA).to_dict("records")
    assert row == {"model": "m_1", "context": 4096, "2 %": "80", "2 % paper": "80", "5 %": "204",
                   "5 % paper": "204", "10 %": "408", "10 % paper": "408"}  # fmt: skip
    assert "2 % paper" not in view("table1", tidy)


def test_table2_has_value_interval_paper_gap_and_n():
    tidy = tidy_frame()
    tidy["task"] = tidy["task"].replace("t", "wikitext")
    table = view("table2", tidy, models=LLAMA)
    assert set(table["policy"]) == {"H2O"}
    row = table[table["method"] == "LESS (5 %)"].iloc[0]
    assert row["2 %"] == "24.00 [23.00, 25.00]"
    assert row["2 % paper"] == "11.321"
    assert row["2 % gap"] == "24.000 [23.000, 25.000]", "the tidy table's, with its interval"
    assert row["n"] == "7"
    full = table[table["method"] == "Full cache"].iloc[0]
    assert (full["5 % paper"], full["5 % gap"]) == ("8.791", "")
    assert "2 % paper" not in view("table2", tidy)


def test_table3_is_lambda_at_5_percent_by_task():
    tidy = pd.concat(
        [tidy_frame(), scored("mutual", "r@1"), scored("boolq", "acc", n=9)], ignore_index=True
    )
    table = view("table3", tidy, models=LLAMA).set_index("method")
    assert set(table["sparsity"]) == {"5 %"}
    assert table.loc["LESS (5 %)", "mutual, R@1 (%)"] == "70.00 [60.00, 80.00]"
    assert table.loc["LESS (5 %)", "boolq, accuracy (%) paper"] == "78.65"
    # (0.7 - 0.6) / (0.8 - 0.6)
    assert table.loc["LESS (5 %)", "mutual, R@1 (%) gap"] == "0.50"
    assert table.loc["Baseline", "mutual, R@1 (%) gap"] == ""
    assert table.loc["Baseline+", "n"] == "7 / 5 / 9"


def test_there_is_no_gap_where_the_baseline_loses_nothing():
    table = view("table3", scored("boolq", "acc", SCORES | {"full": 0.6}))
    assert "boolq, accuracy (%) gap" not in table


def summaries(task, sparsity):
    return pd.concat(
        [scored(task, name, ROUGES, "h2o", sparsity) for name in ("rouge1", "rouge2", "rougeL")]
    )


def test_an_undefined_ratio_says_so():
    rows = pd.DataFrame(
        {"metric": "recovered_gap", "value": [0.5, float("nan"), float("nan")],
         "low": [0.25, -2.0, float("nan")], "high": [0.75, 3.0, float("nan")]}
    )  # fmt: skip
    assert views.texts(rows).tolist() == ["0.500 [0.250, 0.750]", "undefined", "undefined"]


@pytest.mark.parametrize(("paper", "sparsity"), [("falcon_7b", "10 %"), ("llama2_13b", "5 %"),
                                                 (None, "5 %")])  # fmt: skip
def test_table4_is_at_the_papers_sparsity_and_table5_at_all(paper, sparsity):
    tidy = pd.concat([summaries(t, s) for t in ("xsum", "news") for s in (0.05, 0.1)],
                     ignore_index=True).drop_duplicates()  # fmt: skip
    models = {"m_1": {"context": 4096, "paper": paper}}
    four, five = view("table4", tidy, models=models), view("table5", tidy, models=models)
    assert (set(four["task"]), set(four["sparsity"])) == ({"xsum"}, {sparsity})
    assert (set(five["task"]), set(five["sparsity"])) == ({"xsum", "news"}, {"5 %", "10 %"})
    less = four[four["method"] == "LESS (5 %)"].iloc[0]
    assert (less["Rouge-1"], less["Rouge-1 gap"]) == ("25.00 [24.90, 25.10]", "0.50")
    printed = {"falcon_7b": "8.17", "llama2_13b": "13.02"}
    assert less.get("Rouge-2 paper") == printed.get(paper)


def test_table6_and_table8_of_made_up_latencies():
    methods = {"full": 120.0, "baseline_plus": 80.0, "less": 90.0}
    rows = [scored("2048+2048x24", "latency_s", methods, "h2o")]
    rows.append(scored("2048+2048x24", "peak_memory_bytes", {"less": 3.0 * 2**30}, "h2o"))
    rows += [scored("2048+2048x24", f"step_ms.{part}", methods, "h2o") for part in STEP_PARTS]
    tidy = pd.concat(rows, ignore_index=True)
    six = view("table6", tidy, models=LLAMA).set_index("method")
    assert six.loc["LESS (5 %)", "latency (s)"] == "90.0 [89.9, 90.1]"
    assert six.loc["LESS (5 %)", "latency (s) paper"] == "95.1"
    assert six.loc["LESS (5 %)", "peak memory (GiB)"] == "3.00 [3.00, 3.00]"
    assert six.loc["Full cache", "latency (s) paper"] == "116.7"
    assert not [column for column in six if "gap" in column]
    eight = view("table8", tidy, models=LLAMA).set_index("method")
    assert eight.loc["LESS (5 %)", "kernels (ms) paper"] == "0.87"
    assert eight.loc["Full cache", "total (ms) paper"] == "50.71"
    parts = [column for column in eight if column.endswith("(ms)")]
    assert [part.removesuffix(" (ms)") for part in parts] == list(STEP_PARTS.values())


def test_table7_has_a_column_a_policy():
    table = view("table7")
    assert list(table.columns) == [
        "model", "task", "sparsity", "method", "Λ-masking", "Λ-masking gap", "H2O", "H2O gap", "n"
    ]  # fmt: skip
    assert list(table["method"])[:2] == ["Full cache", "Baseline"]


# --- files -----------------------------------------------------------------------------------


def test_every_table_of_the_catalogue_in_every_format(tmp_path):
    assert list(tables.TABLES) == list(CATALOGUE)
    tidy = tidy_frame()
    out = run_step(tables_step, tmp_path, tidy, curves_frame())
    for name in CATALOGUE:
        for suffix in ("md", "csv", "tex", "html"):
            assert (out / "tables" / f"{name}.{suffix}").stat().st_size > 20
    pd.testing.assert_frame_equal(load_table(out / "results.parquet"), tidy, check_dtype=False)
    pd.testing.assert_frame_equal(pd.read_csv(out / "results.csv"), tidy, check_dtype=False)
    csv = pd.read_csv(out / "tables" / "perplexity.csv", dtype=str)
    pd.testing.assert_frame_equal(csv, view("perplexity", tidy), check_dtype=False)
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
def test_what_was_not_measured_says_so_in_one_line(tmp_path, methods, fidelity, trained):
    tidy = tidy_frame(methods=methods, fidelity=fidelity)
    tidy = tidy[~tidy["metric"].isin(METRICS[2:])]
    out = run_step(tables_step, tmp_path, tidy, curves_frame() if trained else None)
    expected = {f"table{number}" for number in (4, 5, 6, 8)}
    expected |= {"recovered_gap", "paired_difference", "scores", "policy_scores"}
    expected |= {"operators", "conditions"}
    expected |= set() if fidelity else {"hellinger"}
    expected |= set() if trained else {"training"}
    found = {
        path.stem: path.read_text(encoding="utf-8") for path in (out / "tables").glob("*.md")
        if "Not measured" in path.read_text(encoding="utf-8")
    }  # fmt: skip
    assert set(found) == expected
    for name, text in found.items():
        assert text == f"{CATALOGUE[name].missing}\n"
        assert CATALOGUE[name].needs in text
        assert list(pd.read_csv(out / "tables" / f"{name}.csv")["not measured"]) == [text.strip()]


def test_an_experiment_of_the_full_cache_alone():
    tidy = tidy_frame(methods=[])
    for name in set(tables.TABLES) - {"training"}:
        assert tables.MISSING in view(name, tidy.query("method == 'full'")), name


@pytest.mark.parametrize("column", ["experiment", "config", "commit"])
def test_rows_of_two_runs_are_refused(tmp_path, column):
    tidy = tidy_frame()
    tidy.loc[tidy.index[-1], column] = "other"
    with pytest.raises(DataError, match=r"tidy\.parquet mixes runs .*other.* run `tabulate` again"):
        run_step(tables_step, tmp_path, tidy, curves_frame())
    assert not (tmp_path / "out").exists()
