import json
from pathlib import Path

import datasets
import lm_eval
import numpy as np
import pandas as pd
import pytest
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM

from pipeline.__main__ import main
from pipeline.attention import attach
from pipeline.measure import harness, tasks
from pipeline.policies import get_policy
from pipeline.transformer.weights import load_model, load_tokenizer, materialise

ROOT = Path(__file__).parents[2]

DATA = ROOT.parent / "shared" / "data"

CONTEXT = 64

WEIGHTS = {
    "random": {
        "architecture": "llama", "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 128, "initializer_range": 0.2,
    },
    "seed": 0,
}  # fmt: skip

PAGES = [
    {"page": " = Rain = \n \n It rained , then stopped @-@ twice . The 's end . \n" * n}
    for n in (1, 3, 2)
]

QUESTIONS = [
    {"passage": f"Note {i}. The answer is {'yes' if i % 3 else 'no'}.", "idx": i,
     "question": f"is number {i} right", "label": int(i % 3 > 0)}
    for i in range(12)
]  # fmt: skip

DIALOGUES = [
    {"article": f"m : where is number {i} ? f : not here .", "answers": "ABCD"[i % 4],
     "options": [f"m : then {word} .", "m : no , it is .", f"m : {word} , why ?", "f : so ?"]}
    for i, word in enumerate(["soon", "late", "far", "there", "now", "never"])
]  # fmt: skip

BOOKS = [{"text": "One two three four five. " * n, "short_book_title": str(n)} for n in (2, 9, 30)]

ROWS = {"wikitext": PAGES, "boolq": QUESTIONS, "mutual": DIALOGUES, "pg19": BOOKS}

MEASURED = {"wikitext": "test", "boolq": "validation", "mutual": "validation", "pg19": "test"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("harness")
    materialise(WEIGHTS, folder / "model")
    for name, rows in ROWS.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder / "model")


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(folder / "model")


@pytest.fixture(scope="module")
def index():
    """The library's tasks and ours; reading them takes seconds."""
    return lm_eval.tasks.TaskManager(include_path=str(tasks.OWN_TASKS))


def stock(model, tokenizer, index, name, rows, shots=0, pool=None, context=CONTEXT, **options):
    """The library's own evaluation of a plain model: its metrics, and samples in order."""
    tables = {"train": datasets.Dataset.from_list(rows if pool is None else pool)}
    tables[MEASURED[name]] = datasets.Dataset.from_list(rows)
    fields = {"task": name, "custom_dataset": lambda **_: tables}
    found = lm_eval.simple_evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, max_length=context),
        tasks=[{"group": "g", "task": [fields]}], num_fewshot=shots, task_manager=index,
        bootstrap_iters=0, **options,
    )  # fmt: skip
    samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
    return found["results"][name], samples


def words(folder, name, out, *options):
    spec = json.dumps({"source": "jsonl", "path": str(folder / f"{name}.jsonl")})
    return [
        "harness", "--model", str(folder / "model"), "--task", name, "--dataset", spec,
        "--context", str(CONTEXT), "--label",
        json.dumps({"model": "m", "task": name, "sparsity": None}),
        "--resume", str(folder / "unfinished" / out), "--out", str(folder / f"{out}.parquet"),
        *options,
    ]  # fmt: skip


def run(folder, name, out, *options):
    assert main(words(folder, name, out, *options)) == 0
    return pd.read_parquet(folder / f"{out}.parquet")


def said(capsys, folder, name, *options):
    assert main(words(folder, name, "refused", *options)) == 1
    return capsys.readouterr().err.splitlines()[-1]


def policy(budget, *methods):
    return ["--policy", "h2o", "--budget", str(budget), "--methods", *(methods or ["baseline"])]


@pytest.mark.parametrize("name", ["wikitext", "pg19"])
@pytest.mark.parametrize("options", [[], policy(2 * CONTEXT)], ids=["full", "attached"])
def test_perplexity_is_the_librarys(folder, model, tokenizer, index, name, options):
    """Windows, words of the text as it was, and sums; a budget that holds all changes nothing."""
    metrics, samples = stock(model, tokenizer, index, name, ROWS[name])
    table = run(folder, name, "rolling", *options)
    found = np.exp(table["nll"].sum() / table["words"].sum())
    assert found == pytest.approx(metrics["word_perplexity,none"], rel=1e-5)
    for row, sample in zip(table.itertuples(), samples, strict=True):
        assert row.document == str(sample["doc_id"])
        assert (row.nll, row.words) == pytest.approx(
            (-sample["word_perplexity"][0], sample["word_perplexity"][1]), rel=1e-5
        )
        assert row.tokens == len(tokenizer(sample["arguments"][0][0])["input_ids"])
    assert table["tokens"].max() > 2 * CONTEXT, "more than a window"


@pytest.mark.parametrize("options", [[], policy(2 * CONTEXT)], ids=["full", "attached"])
@pytest.mark.parametrize("limit", [5, 12])
def test_accuracy_is_the_librarys(folder, model, tokenizer, index, options, limit):
    metrics, samples = stock(model, tokenizer, index, "boolq", QUESTIONS, limit=limit)
    table = run(folder, "boolq", "scores", "--limit", str(limit), *options)
    assert list(table["score.acc"]) == [sample["acc"] for sample in samples]
    assert table["score.acc"].mean() == metrics["acc,none"]
    assert len(table) == limit
    assert 0 < table["score.acc"].mean() < 1, "a model that is always right or wrong shows nothing"


def test_ranks_of_mutual(folder, model, tokenizer, index):
    """The library's ranks; its r@1 and r@2 are of pairs, not of log-likelihoods."""
    _, samples = stock(model, tokenizer, index, "mutual", DIALOGUES)
    table = run(folder, "mutual", "dialogues", *policy(2 * CONTEXT))
    assert list(table["score.mrr"]) == [sample["mrr"] for sample in samples]
    assert list(table["score.r@1"]) == list((table["score.mrr"] == 1).astype(float))
    assert list(table["score.r@2"]) == list((table["score.mrr"] >= 0.5).astype(float))
    assert table["score.mrr"].nunique() > 2


def test_demonstrations_by_the_step(folder, capsys):
    spec = json.dumps(
        {"source": "jsonl", "path": str(folder / "boolq.jsonl"), "documents": [6, 12]}
    )
    table = run(folder, "boolq", "shots", "--shots", "2", "--shots-from", spec, "--limit", "3")
    assert len(table) == 3
    message = said(capsys, folder, "boolq", "--shots", "2")
    assert "draws demonstrations from its split 'train'; name" in message
    message = said(capsys, folder, "boolq", "--shots", "7", "--shots-from", spec)
    assert "cannot read the data of the task 'boolq': Sample larger than population" in message


def test_rows_of_a_cell(folder, model, tokenizer):
    table = run(folder, "pg19", "cell", *policy(8, "baseline", "baseline_plus", "performer"))
    assert list(table["method"]) == [
        method for method in ("baseline", "baseline_plus", "performer") for _ in BOOKS
    ]
    assert set(table["document"]) == {"0", "1", "2"}
    assert dict(zip(table["method"], table["budget"], strict=True)) == {
        "baseline": 8, "baseline_plus": 12, "performer": 8,
    }  # fmt: skip
    assert table["train_sparsity"].isna().all()
    assert table.groupby("document")["nll"].nunique().loc["2"] == 3, "methods differ"
    task = tasks.load_task("pg19", 0, BOOKS)
    with attach(model, get_policy("h2o", 8), None, "cached"):
        library = harness.TeacherForced(model, tokenizer, CONTEXT)
        found = [harness.measure(library, task, book) for book in tasks.documents(task)]
    assert [book["nll"] for book in found] == list(table["nll"][:3])


def test_a_smaller_budget_changes_the_numbers(folder):
    nll = [run(folder, "pg19", "b", *policy(n))["nll"].sum() for n in (4, 16, 2 * CONTEXT)]
    assert len(set(nll)) == 3


def test_killed_and_started_again(folder, monkeypatch):
    options = policy(8, "baseline", "performer")
    quiet = run(folder, "wikitext", "quiet", *options)
    measure, measured = harness.measure, []

    def killed(*args):
        if len(measured) == 4:
            raise KeyboardInterrupt
        measured.append(args)
        return measure(*args)

    monkeypatch.setattr(harness, "measure", killed)
    with pytest.raises(KeyboardInterrupt):
        run(folder, "wikitext", "killed", *options)
    monkeypatch.setattr(harness, "measure", lambda *a: measured.append(a) or measure(*a))
    measured.clear()
    again = run(folder, "wikitext", "killed", *options)
    assert len(measured) == 2 * 3 - 4
    pd.testing.assert_frame_equal(again, quiet)
    assert not (folder / "unfinished" / "killed").exists()


def test_documents_of_other_settings_are_not_taken_over(folder, monkeypatch):
    monkeypatch.setattr(harness.shutil, "rmtree", lambda *a, **k: None)
    first = run(folder, "pg19", "other")
    cut = run(folder, "pg19", "other", "--max-words", "20")
    assert list(cut["nll"]) != list(first["nll"])
    assert len(list((folder / "unfinished" / "other").iterdir())) == 2


def test_texts_are_cut_to_words(folder):
    table = run(folder, "pg19", "cut", "--max-words", "20")
    assert list(table["words"]) == [10, 20, 20]


LONG = 1024

REAL = {
    "wikitext": ("wikitext2/test.jsonl", 1),
    "boolq": ("boolq/validation.jsonl", 4),
    "mutual": ("mutual/validation.jsonl", 2),
}
"""The first documents of each benchmark; the page of WikiText is cut to fit a window."""


@pytest.fixture(scope="module")
def real(smollm2, tmp_path_factory):
    """A folder with SmolLM2 and a few rows of real benchmarks."""
    if not DATA.is_dir():
        pytest.skip("no benchmark data here")
    folder = tmp_path_factory.mktemp("real")
    (folder / "model").symlink_to(smollm2, target_is_directory=True)
    for name, (path, count) in REAL.items():
        rows = tasks.load_rows({"source": "jsonl", "path": path}, DATA / path)
        rows = rows[:count]
        if name == "wikitext":
            rows = [row | {"page": tasks.first_words(row["page"], 700)} for row in rows]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def library_model(real):
    """SmolLM2 as the library would load it: nothing of ours in it."""
    return AutoModelForCausalLM.from_pretrained(real / "model", dtype="float32").eval()


@pytest.mark.download
@pytest.mark.parametrize("name", REAL)
def test_smollm2_scores_as_in_the_library(real, library_model, index, monkeypatch, name):
    """Unattached and attached with a budget that holds all; perplexity to four digits."""
    rows = [json.loads(line) for line in (real / f"{name}.jsonl").read_text().splitlines()]
    tokenizer = load_tokenizer(real / "model")
    metrics, samples = stock(library_model, tokenizer, index, name, rows, context=LONG)
    score = {"boolq": "acc", "mutual": "mrr"}.get(name)
    answers = []

    def spied(self, requests, **options):
        answers.extend(HFLM.loglikelihood(self, requests, **options))
        return answers[-len(requests) :]

    monkeypatch.setattr(harness.TeacherForced, "loglikelihood", spied)
    for options in ([], policy(LONG)):
        table = run(real, name, f"{name}{len(options)}", "--context", str(LONG), *options)
        if score:
            assert list(table[f"score.{score}"]) == [sample[score] for sample in samples]
            given = [answer for sample in samples for answer in sample["filtered_resps"]]
            assert [flag for _, flag in answers] == [flag for _, flag in given]
            assert [x for x, _ in answers] == pytest.approx([x for x, _ in given], rel=5e-5)
            answers.clear()
        else:
            assert 700 < table["tokens"].item() <= LONG, "one window, nearly full"
            found = np.exp(table["nll"].sum() / table["words"].sum())
            assert found == pytest.approx(metrics["word_perplexity,none"], rel=5e-5)
