"""Summaries by every method: rows, restarts, tables and examples of them."""

import json

import pandas as pd
import pytest

from pipeline.__main__ import main
from pipeline.decoding.generate import Generated
from pipeline.experiment.methods import METHODS
from pipeline.measure import summaries as step
from pipeline.text.documents import Pair
from pipeline.transformer.weights import materialise

RANDOM = {
    "random": {
        "architecture": "llama", "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 512,
    },
    "seed": 0,
}  # fmt: skip

PAIRS = [Pair(f"d{i}", f"Text {i} " + "of words " * i, f"Short {i}.") for i in range(12)]


def test_rows_of_a_batch():
    """An empty text is scored; a text without the stop mark is whole, to its last character."""
    batch = [{"document": "a", "reference": "A cat sat."}, {"document": "b", "reference": "x"}]
    made = Generated(["A cat sat", ""], [9, 8], [3, 1], 2.0, 0, 0)
    first, second = step.scored(batch, made)
    assert first["text"] == "A cat sat"
    assert first["rouge1"] == 100
    assert (first["seconds"], first["tokens_per_second"]) == (1.0, 3.0)
    assert (second["text"], second["rougeL"]) == ("", 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("summaries")
    materialise(RANDOM, folder / "model")
    (folder / "pairs.jsonl").write_text(
        "".join(
            json.dumps({"id": pair.id, "article": pair.document, "summary": pair.summary}) + "\n"
            for pair in PAIRS
        )
    )
    return folder


def prompts(folder, count=4):
    out = folder / "prompts.json"
    spec = {"source": "jsonl", "path": str(folder / "pairs.jsonl"), "document_field": "article"}
    words = ["--dataset", json.dumps(spec), "--template", "xsum"]
    words += ["--model", str(folder / "model"), "--room", "140", "--count", str(count)]
    assert main(["prompts", *words, "--out", str(out)]) == 0
    return out


def write(folder, name, *options, policy="h2o", budget=20, new=10):
    out = folder / f"{name}.parquet"
    words = ["--model", str(folder / "model"), "--prompts", str(prompts(folder))]
    words += ["--max-new-tokens", str(new), "--resume", str(folder / "unfinished" / name)]
    if policy is not None:
        words += ["--policy", policy, "--budget", str(budget)]
        words += ["--methods", "baseline", "baseline_plus", "performer"]
    words += ["--label", json.dumps({"model": "m", "task": "t", "sparsity": policy and 0.1})]
    assert main(["summaries", *words, "--out", str(out), *options]) == 0
    return pd.read_parquet(out)


def timeless(table):
    return table.drop(columns=["seconds", "tokens_per_second"])


def test_rows(folder):
    table = write(folder, "rows")
    assert list(table["method"]) == [m for m in METHODS if m != "less" for _ in range(4)]
    assert set(table["skipped"]) == {len(json.loads(prompts(folder).read_text())["skipped"])}
    assert set(table["policy"]) == {"h2o"}
    assert table.groupby("method")["budget"].first().to_dict() == {
        "baseline": 20, "baseline_plus": 24, "performer": 20,
    }  # fmt: skip
    assert table["train_sparsity"].isna().all()
    assert table["new_tokens"].between(1, 10).all()
    assert not (folder / "unfinished" / "rows").exists()


@pytest.mark.parametrize("temperature", ["0", "1.0"])
def test_budget_beyond_the_length_is_the_full_cache(folder, temperature):
    full = write(folder, "full", "--temperature", temperature, policy=None)
    table = write(folder, "large", "--temperature", temperature, budget=400)
    for _, rows in table.groupby("method"):
        assert list(rows["text"]) == list(full["text"])


@pytest.mark.parametrize("temperature", ["0", "1.0"])
def test_a_sample_does_not_depend_on_its_batch(folder, temperature):
    alone = write(folder, "alone", "--temperature", temperature)
    together = write(folder, "together", "--temperature", temperature, "--batch-size", "3")
    pd.testing.assert_frame_equal(timeless(alone), timeless(together))


def test_killed_and_started_again(folder, monkeypatch):
    quiet = write(folder, "quiet", "--temperature", "1.0")
    calls = []

    def killed(*args, **kwargs):
        if len(calls) == 6:
            raise KeyboardInterrupt
        calls.append(args)
        return generate(*args, **kwargs)

    generate = step.generate
    monkeypatch.setattr(step, "generate", killed)
    with pytest.raises(KeyboardInterrupt):
        write(folder, "killed", "--temperature", "1.0")
    (journal,) = (folder / "unfinished" / "killed").iterdir()
    with journal.open("ab") as lines:
        lines.write(b'[{"method": "perf')
    calls.clear()
    monkeypatch.setattr(step, "generate", lambda *a, **k: calls.append(a) or generate(*a, **k))
    again = write(folder, "killed", "--temperature", "1.0")
    assert len(calls) == 3 * 4 - 6
    pd.testing.assert_frame_equal(timeless(again), timeless(quiet))


def test_samples_of_other_settings_are_not_taken_over(folder, monkeypatch):
    monkeypatch.setattr(step.shutil, "rmtree", lambda *a, **k: None)
    first = write(folder, "other", "--temperature", "1.0")
    changed = write(folder, "other", "--temperature", "2.0")
    assert list(changed["text"]) != list(first["text"])
    assert len(list((folder / "unfinished" / "other").iterdir())) == 2


def test_from_cells_to_table_and_examples(folder):
    full, cell = write(folder, "a", policy=None), write(folder, "b")
    cells = [str(folder / "a.parquet"), str(folder / "b.parquet")]
    words = ["--experiment", "x", "--config-hash", "0", "--out", str(folder / "tidy.parquet")]
    assert main(["tabulate", "--cells", *cells, *words]) == 0
    tidy = pd.read_parquet(folder / "tidy.parquet")
    means = tidy[tidy["metric"] == "rouge1"].set_index("method")["value"]
    assert means["performer"] == pytest.approx(
        cell.loc[cell["method"] == "performer", "rouge1"].mean()
    )
    assert means["full"] == pytest.approx(full["rouge1"].mean())
    differences = tidy[tidy["metric"] == "rougeL_over_baseline_plus"]
    assert set(differences["method"]) == {"baseline", "performer"}
    assert set(tidy["n"]) == {4}
    out = folder / "results"
    assert main(["tables", "--tidy", str(folder / "tidy.parquet"), "--out", str(out)]) == 0
    table = pd.read_csv(out / "tables" / "table5.csv")
    assert list(table["method"]) == ["Full cache", "Baseline", "Baseline+", "+Performer"]
    assert main(["examples", "--cells", *cells, "--out", str(out / "examples.html")]) == 0
    assert (out / "examples.md").read_text().count("**Baseline+**") == 4
