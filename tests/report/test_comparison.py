"""The paper's numbers, and ours beside them."""

import argparse

import pandas as pd
import pytest
import yaml
from frames import LLAMA, ROUGES, more, scored, tidy_frame

from pipeline.errors import ConfigError, DataError
from pipeline.experiment.schema import SCHEMA
from pipeline.report import paper
from pipeline.report.comparison import compared, differences, orderings, paired, unmeasured
from pipeline.report.metrics import METRICS
from pipeline.steps import compare as compare_step
from pipeline.storage.files import save_table

CONFIG = {
    "models": {"m_1": {"context": 4096, "paper": "llama2_7b"}},
    "train": {"dataset": "c4", "sequences": 512,
              "kernel": {"kernel_size": 8, "hidden_size": 512, "dropout": 0.3},
              "recipe": {"epochs": 40, "batch_size": 2, "learning_rate": 0.001,
                         "halve_every": 10, "beta2": 0.999, "query_stride": 1}},
    "grid": {"scores": "full", "policies": ["h2o", "lambda"],
             "methods": ["baseline", "baseline_plus", "less"],
             "train_sparsities": [0.05], "test_sparsities": [0.05]},
    "tasks": {"wikitext": {"kind": "perplexity"},
              "xsum": {"kind": "summaries", "policies": ["h2o"], "sparsities": [0.05]},
              "boolq": {"kind": "harness", "max_words": 90}},
}  # fmt: skip
LIKE_PAPER = {"full": 8.791, "baseline": 9.863, "baseline_plus": 9.842, "less": 9.657}


def measured(values=LIKE_PAPER):
    """Word perplexity on WikiText under H2O at 5 %, its gap, and the paired difference."""
    words = scored("wikitext", "word_perplexity", values, "h2o", n=20)
    key = {"task": ["wikitext"], "policy": "h2o", "sparsity": 0.05, "n": 20}
    gap = more(**key, method="less", train_sparsity=0.05, metric="recovered_gap", value=0.19,
               low=0.1, high=0.3)  # fmt: skip
    paired = more(**key, method="less", train_sparsity=0.05, metric="nats_over_baseline_plus",
                  value=-0.02, low=-0.03, high=-0.01)  # fmt: skip
    return pd.concat([words, gap, paired], ignore_index=True)


# --- the numbers -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "printed"),
    [
        (("table1", "falcon_7b", None, None, 0.05, "baseline", "budget"), "102"),
        (("table2", "llama2_7b", "pg19", "h2o", 0.02, "less", "word_perplexity", 0.1), "41.204"),
        (("table2", "llama2_7b", "wikitext", None, None, "full", "word_perplexity"), "8.791"),
        (("table3", "llama2_7b", "boolq", "lambda", 0.05, "baseline_plus", "acc"), "77.46"),
        (("table4", "falcon_7b", "xsum", "h2o", 0.1, "less", "rouge2", 0.05), "8.17"),
        (("table5", "llama2_7b", "multi_news", "h2o", 0.05, "less", "rougeL", 0.05), "14.14"),
        (("table6", "llama2_7b", "2048+2048x64", None, None, "full", "throughput"), "OOM"),
        (("table7", "llama2_7b", "pg19", "lambda", 0.05, "less", "word_perplexity", 0.05), "3900"),
        (("table8", "llama2_7b", None, "h2o", 0.05, "less", "step_ms.kernels", 0.05), "0.87"),
        (("table4", "llama2_13b", "xsum", None, None, "full", "rouge1"), "33.14"),
        (("table5", "llama2_7b", "xsum", None, None, "full", "rougeL"), "25.40"),
        (("table2", "llama2_7b", "boolq", "h2o", 0.02, "less", "word_perplexity", 0.1), None),
        (("table8", "llama2_7b", None, None, None, "full", "step_ms.kernels"), None),
    ],
)  # fmt: skip
def test_numbers_by_key(key, printed):
    assert paper.printed(*key) == printed


def test_every_number_has_one_key_and_a_known_metric():
    numbers = paper.numbers()
    assert not numbers.duplicated(["table", *paper.KEYS]).any()
    assert set(numbers["metric"]) <= set(METRICS)
    assert set(numbers["model"]) == set(paper.models())
    assert numbers["table"].nunique() == 8
    assert (numbers["value"].isna() == (numbers["printed"] == "OOM")).all()
    accuracy = numbers[numbers["metric"].isin(["acc", "r@1"])]
    assert accuracy["value"].between(0.5, 0.9).all(), "fractions, as in the tidy table"


def test_tables_that_repeat_each_other_agree():
    numbers = paper.numbers().query("metric == 'word_perplexity'")
    spread = numbers.groupby(paper.KEYS, dropna=False)["value"].agg(["min", "max", "count"])
    assert (spread["count"] > 1).sum() >= 10
    assert (spread["max"] - spread["min"]).max() < 0.006, "printed with fewer digits"


def test_the_schema_knows_the_papers_models():
    schema = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))
    known = schema["properties"]["models"]["additionalProperties"]["properties"]["paper"]
    assert set(known["enum"]) == {*paper.models(), None}
    assert known["default"] is None


def test_a_model_that_is_not_the_papers():
    with pytest.raises(ConfigError, match="did you mean 'llama2_7b'"):
        paper.setup("llama2_70b")


# --- beside ours -----------------------------------------------------------------------------


def test_the_same_numbers_have_no_difference():
    table = compared(
        paired(measured(), "m_1", "llama2_7b"), same=True, changed=False, config=CONFIG
    )
    two = table[table["table"] == "2"].set_index("method")
    assert list(two.index) == ["Full cache", "Baseline", "Baseline+", "LESS (5 %)"]
    assert two["difference"].str.fullmatch(r"[+-]0\.00").all()
    assert set(two["why"]) == {"one window a document, 20 of 62 documents, within the interval"}
    assert two.loc["LESS (5 %)", ["paper gap", "our gap", "n"]].tolist() == [
        "0.19", "0.190 [0.100, 0.300]", "20"
    ]  # fmt: skip
    # Table 1 has the budget, 3 the full cache alone, 7 the same cells with fewer digits.
    assert list(table.groupby("table").size()) == [1, 4, 1, 4]


def test_differences_are_ours_less_the_papers_in_its_unit():
    tidy = pd.concat([measured(), scored("boolq", "acc")], ignore_index=True)
    table = compared(paired(tidy, "m_1", "llama2_7b"), same=True, changed=True, config=CONFIG)
    three = table[table["task"] == "boolq"].set_index("method")
    assert three.loc["LESS (5 %)", "difference"] == "-8.65", "0.70 and 78.65 %"
    assert three.loc["LESS (5 %)", "our gap"] == "0.50"
    assert three.loc["LESS (5 %)", "paper gap"] == "0.44"
    assert three.loc["Full cache", "why"] == (
        "other settings, documents cut to 90 words, 5 of 3270 documents, within the interval"
    )


def test_another_model_is_compared_by_gap_alone():
    tidy = pd.concat([measured(), scored("2048+2048x24", "latency_s", ROUGES, "h2o")])
    table = compared(paired(tidy, "m_1", "llama2_7b"), same=False, changed=False, config=CONFIG)
    assert set(table["metric"]) == {"word perplexity"}, "seconds of other models say nothing"
    assert set(table["difference"]) == {""}
    assert all(why.startswith("other model: compare gaps") for why in table["why"])


@pytest.mark.parametrize(
    ("less", "low", "verdict", "sure"),
    [(9.657, -0.03, "better", "yes"), (9.9, 0.01, "worse", "yes"), (9.8, -0.3, "better", "no")],
)
def test_who_is_better(less, low, verdict, sure):
    tidy = measured(LIKE_PAPER | {"less": less})
    tidy.loc[tidy["metric"] == "nats_over_baseline_plus", ["low", "high"]] = [low, low + 0.02]
    if sure == "no":
        tidy.loc[tidy["metric"] == "nats_over_baseline_plus", "high"] = 0.1
    (row,) = orderings(paired(tidy, "m_1", "llama2_7b"), tidy, "m_1").to_dict("records")
    assert (row["method"], row["paper"]) == ("LESS (5 %)", "better")
    assert (row["ours"], row["decided"]) == (verdict, sure)


def test_settings_that_are_not_the_papers():
    assert differences({**CONFIG, "context": 4096}, "llama2_7b").empty
    found = differences({**CONFIG, "context": 4096}, "falcon_7b").set_index("setting")
    assert found.to_dict("index") == {
        "context": {"paper": 2048, "here": 4096}, "train.sequences": {"paper": 1024, "here": 512}
    }  # fmt: skip


def test_what_is_missing_has_a_reason_and_nothing_is_forgotten():
    tidy = pd.concat([measured(), tidy_frame().query("metric == 'hellinger'")], ignore_index=True)
    found = paired(tidy, "m_1", "llama2_7b")
    assert len(found) == len(paper.numbers().query("model == 'llama2_7b'"))
    grid = CONFIG["grid"] | {"test_sparsities": [0.05, 0.1]}
    counted = unmeasured(found, CONFIG | {"grid": grid})
    assert counted["numbers"].sum() + found["ours"].notna().sum() == len(found)
    why = counted.set_index(["table", "task", "why"])["numbers"]
    assert why["3", "mutual", "no task `mutual`"] == 4
    assert why["2", "wikitext", "no 0.02 in `test_sparsities`"] == 6
    assert why["2", "wikitext", "no `performer` in `grid.methods`"] == 2
    assert why["5", "xsum", "`xsum` leaves it out"] == 12
    assert why["5", "xsum", "no 0.02 in `train_sparsities`"] == 3
    assert why["7", "wikitext", "no `tova` in `grid.policies`"] == 3
    assert why["8", "", "needs `latency`"] == 11


def step(folder, tidy, config):
    import json

    parser = argparse.ArgumentParser()
    compare_step.add_arguments(parser)
    save_table(folder / "tidy.parquet", tidy)
    words = ["--tidy", str(folder / "tidy.parquet"), "--config", json.dumps(config)]
    compare_step.run(parser.parse_args([*words, "--out", str(folder / "paper_vs_ours.md")]))
    return (folder / "paper_vs_ours.md").read_text(encoding="utf-8")


def test_the_page_and_the_text(tmp_path):
    text = step(tmp_path, measured(), CONFIG)
    assert "m_1 is Llama 2 7B." in text
    assert "Settings as there." in text
    assert "LESS is better than Baseline+ in 1 of 1 of the paper's comparisons" in text
    page = (tmp_path / "paper_vs_ours.html").read_text(encoding="utf-8")
    assert page.count("<section>") == 4
    other = step(tmp_path, measured(), CONFIG | {"models": {"m_1": {"context": 64, "paper": None}}})
    assert "m_1 is none of the paper's models; it stands beside Llama 2 7B." in other
    assert "| context   | 4096    | 64     |" in other


def test_two_runs_are_refused(tmp_path):
    tidy = measured()
    tidy.loc[0, "commit"] = "other"
    with pytest.raises(DataError, match="mixes runs"):
        step(tmp_path, tidy, CONFIG)


def test_models_of_the_paper_are_those_of_the_tables():
    assert LLAMA["m_1"]["paper"] in paper.models()
