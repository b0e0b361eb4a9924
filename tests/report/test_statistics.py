import warnings
from math import exp, log

import numpy as np
import pandas as pd
import pytest

from pipeline.errors import DataError, LessError
from pipeline.report import cells, statistics, tidy
from pipeline.report.statistics import (
    estimate,
    estimate_share,
    mean,
    mean_difference,
    perplexity,
    resamples,
)
from pipeline.steps import tabulate as tabulate_step

# --- by hand ---------------------------------------------------------------------------------


def test_perplexity():
    """exp((ln 8 + ln 2) / 4) = 2; documents weigh by their length, not each the same."""
    assert perplexity(np.log([8.0, 2.0]), np.array([2, 2])) == pytest.approx(2)
    assert perplexity(np.log([16.0, 1.0]), np.array([4, 0])) == pytest.approx(2)
    assert perplexity(np.array([3 * log(2), log(16)]), np.array([3, 1])) == pytest.approx(exp(
        7 * log(2) / 4))  # fmt: skip
    rows = np.log([[8.0, 2.0], [1.0, 1.0]])
    assert perplexity(rows, np.array([2, 2])).tolist() == pytest.approx([2, 1])


@pytest.mark.parametrize(
    ("method", "gap"), [(4, 0), (2, 1), (3, 0.5), (6, -1), (1, 1.5), (3.5, 0.25)]
)
def test_recovered_gap(method, gap):
    """Baseline 4, full cache 2: linear in perplexity, not in its logarithm."""
    one, draws = np.array([1]), resamples(1, 10, 0)
    found = estimate_share(
        perplexity, np.log([method]), np.log([4.0]), np.log([2.0]), one, draws=draws
    )
    assert found.value == pytest.approx(gap, abs=1e-12)


@pytest.mark.parametrize(
    ("method", "gap"), [([0.5, 0.7], 0.75), ([0.2, 0.4], 0), ([0.6, 0.6], 0.75)]
)
def test_recovered_share_of_a_mean(method, gap):
    base, full = np.array([0.2, 0.4]), np.array([0.8, 0.6])
    found = estimate_share(mean, np.array(method), base, full, draws=resamples(2, 50, 0))
    assert found.value == pytest.approx(gap)


def test_mean_difference():
    units = np.array([10, 30])
    assert mean_difference(np.array([5.0, 9.0]), np.array([3.0, 3.0]), units) == pytest.approx(0.2)


def test_blocks_of_resamples_are_as_all_at_once(monkeypatch):
    rng = np.random.default_rng(0)
    method, base, full = (x + rng.random(7) for x in (1.0, 2.0, 0.0))
    units, draws = np.arange(1, 8), resamples(7, 100, 0)

    def found():
        share = estimate_share(perplexity, method, base, full, units, draws=draws)
        return estimate(perplexity, method, units, draws=draws), share

    whole = found()
    monkeypatch.setattr(statistics, "BLOCK", 7 * 33)
    assert found() == whole


def test_resamples():
    draws = resamples(5, 1000, seed=1)
    assert draws.shape == (1000, 5)
    assert set(draws.flatten()) == set(range(5))
    assert (draws == resamples(5, 1000, seed=1)).all()
    assert (draws != resamples(5, 1000, seed=2)).any()


def test_one_document_has_no_spread():
    found = estimate(perplexity, np.log([4.0]), np.array([2]), draws=resamples(1, 100, 0))
    assert (found.value, found.low, found.high, found.n) == (2, 2, 2, 1)


# --- intervals -------------------------------------------------------------------------------


def test_differences_are_paired():
    """Documents differ by far more than methods: only pairing sees the difference."""
    rng = np.random.default_rng(0)
    units = np.full(30, 100)
    base = rng.uniform(100, 500, 30)
    draws = resamples(30, 500, 0)
    found = estimate(mean_difference, base + 1, base, units, draws=draws)
    assert (found.value, found.low, found.high) == pytest.approx((0.01, 0.01, 0.01))
    alone = estimate(lambda a, n: a.sum(-1) / n.sum(-1), base, units, draws=draws)
    assert alone.high - alone.low > 0.5


def test_gap_is_paired():
    """A method half way in every document has half the gap, whatever documents are drawn."""
    rng = np.random.default_rng(1)
    one = np.ones(25)
    full, base = rng.uniform(1, 2, 25), rng.uniform(3, 5, 25)
    draws = resamples(25, 300, 0)
    found = estimate_share(perplexity, base, base, full, one, draws=draws)
    assert (found.value, found.low, found.high) == (0, 0, 0)
    found = estimate_share(perplexity, full, base, full, one, draws=draws)
    assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1))


def test_intervals_cover_the_truth():
    rng = np.random.default_rng(0)
    one = np.ones(40)
    draws = resamples(40, 400, 0)
    truth, trials = exp(2.0), 400
    inside = 0
    for _ in range(trials):
        found = estimate(perplexity, rng.normal(2.0, 0.5, 40), one, draws=draws)
        assert found.low <= found.value <= found.high
        inside += found.low <= truth <= found.high
    assert 0.90 <= inside / trials <= 0.975


def test_a_gap_that_does_not_exist_is_nan():
    one, same = np.ones(5), np.arange(1.0, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = estimate_share(perplexity, same, same, same, one, draws=resamples(5, 100, 0))
    assert np.isnan([found.value, found.low, found.high]).all()


@pytest.mark.parametrize(("lost", "defined"), [(0.1, False), (1.0, True)])
def test_a_gap_of_a_loss_that_may_be_none_is_nan(lost, defined):
    """The baseline is worse on average, but by less than documents differ: a share of what?"""
    noise = np.random.default_rng(0).normal(0, 1, 40)
    full = np.zeros(40)
    found = estimate_share(
        mean, (full - noise - lost) / 2, full - noise - lost, full, draws=resamples(40, 500, 0)
    )
    assert np.isfinite([found.value, found.low, found.high]).all() == defined


# --- the tidy table --------------------------------------------------------------------------


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


def test_studies_are_cells_of_their_own():
    """The full cache is the study's, or the grid's where the study has none."""
    grid = list(cells.parts(pd.concat([FULL]), "perplexity"))
    assert [(part.study, part.setting) for part in grid] == [("grid", None)]
    study = pd.concat([cell(CELL[:1]).assign(study="width", setting=n) for n in (8, 16)])
    own = cell([("full", None, [1.0, 1.0])], policy=None).assign(study="width", setting=16)
    both = [*grid, *cells.parts(study, "perplexity"), *cells.parts(own, "perplexity")]
    assert [(part.study, part.setting) for part in both[1:]] == [
        ("width", 8.0), ("width", 16.0), ("width", 16.0),
    ]  # fmt: skip
    reference = cells.full_caches(both)
    assert reference(both[1])["nll"].tolist() == FULL["nll"].tolist()
    assert reference(both[2])["nll"].tolist() == [1.0, 1.0]


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


# --- one run ---------------------------------------------------------------------------------


def part(study="grid", setting=None, kind="perplexity", **changed):
    key = {"model": "m", "task": "t", "policy": "h2o", "sparsity": 0.1, "measured_by": "code"}
    key |= changed
    table = pd.DataFrame({name: [value] for name, value in key.items()})
    return cells.Part(kind, study, setting, table)


LABELS = {"model": ["m"], "task": ["t"], "policy": ["h2o"], "measured_by": ["code"]}


def test_cells_of_one_run_are_taken():
    full = part(policy=None, sparsity=np.nan)
    other = [part(kind="fidelity"), part(sparsity=0.2), full]
    studies = [part("kernel_size", 4), part("kernel_size", 16), part("scores", 1)]
    cells.of_one_run([part(), *other, *studies], LABELS)
    cells.of_one_run([part(model="anything")], {})


@pytest.mark.parametrize("column", LABELS)
def test_cells_of_another_run_are_refused(column):
    with pytest.raises(DataError, match=f"another run: the experiment has no {column} 'other'"):
        cells.of_one_run([part(), part(**{column: "other"})], LABELS)


def test_cells_that_do_not_say_what_measured_them_are_refused():
    old = part()
    old.table.drop(columns="measured_by", inplace=True)
    with pytest.raises(DataError, match="no measured_by 'of an earlier version'"):
        cells.of_one_run([old], LABELS)


@pytest.mark.parametrize(
    "cell", [part(), part(policy=None, sparsity=np.nan), part("kernel_size", 4)]
)
def test_a_cell_measured_twice_is_refused(cell):
    with pytest.raises(DataError, match="given twice; give the files of one run only"):
        cells.of_one_run([cell, cell], LABELS)


def test_the_commit_of_a_run(monkeypatch):
    from pipeline.runtime import code as revision

    for commit, changed, short in (("a" * 40, False, "a" * 12), ("b" * 40, True, "b" * 12 + "+"),
                                   (None, None, "unknown")):  # fmt: skip
        monkeypatch.setattr(revision, "commit", lambda c=commit, d=changed: {
            "commit": c, "changed": d})  # fmt: skip
        assert revision.short_commit() == short
