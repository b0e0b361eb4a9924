"""Tasks of lm-evaluation-harness: their documents, and which cannot be measured."""

import json
from pathlib import Path

import datasets
import lm_eval
import pytest
from lm_eval.models.huggingface import HFLM

from pipeline.__main__ import main
from pipeline.errors import ConfigError, DataError
from pipeline.measure import tasks
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


@pytest.mark.parametrize("name", ["wikitext", "pg19", "boolq", "mutual", "arc_easy", "hellaswag"])
def test_a_task_is_found_without_reading_all_of_them(index, name):
    found = tasks.manager_of(name)
    assert found.task_index[name].cfg == index.task_index[name].cfg
    assert len(found.all_subtasks) < len(index.all_subtasks) / 100


def words(folder, name, out, *options):
    spec = json.dumps({"source": "jsonl", "path": str(folder / f"{name}.jsonl")})
    return [
        "harness", "--model", str(folder / "model"), "--task", name, "--dataset", spec,
        "--context", str(CONTEXT), "--label",
        json.dumps({"model": "m", "task": name, "sparsity": None}),
        "--resume", str(folder / "unfinished" / out), "--out", str(folder / f"{out}.parquet"),
        *options,
    ]  # fmt: skip


def said(capsys, folder, name, *options):
    assert main(words(folder, name, "refused", *options)) == 1
    return capsys.readouterr().err.splitlines()[-1]


def test_ranks_by_hand():
    results = [(-3.0, False), (-5.0, True), (-1.0, False), (-4.0, False)]
    found = {gold: list(tasks.ranks({"answers": gold}, results).values()) for gold in "ABCD"}
    assert found == {"A": [0, 1, 1 / 2], "B": [0, 0, 1 / 4], "C": [1, 1, 1], "D": [0, 0, 1 / 3]}


def test_the_librarys_ranks_still_need_correcting(index):
    """Where this fails, the library was corrected and `CORRECTED` can go."""
    fields = {"task": "mutual", "custom_dataset": lambda **_: dict.fromkeys(
        ("train", "validation"), datasets.Dataset.from_list(DIALOGUES))}  # fmt: skip
    task = index.load({"group": "g", "task": [fields]})["tasks"]["mutual"]
    worst = [(-1.0, False), (-9.0, False), (-2.0, False), (-3.0, False)]
    assert task.process_results({"answers": "B"}, worst)["r@1"] == 1


@pytest.mark.parametrize("shots", [1, 3])
def test_demonstrations_are_the_librarys(folder, model, tokenizer, index, shots):
    pool, rows = QUESTIONS[6:], QUESTIONS[:6]
    _, samples = stock(model, tokenizer, index, "boolq", rows, shots, pool)
    task = tasks.load_task("boolq", shots, rows, pool)
    first, again = tasks.documents(task), tasks.documents(task)
    for document, other, sample in zip(first, again, samples, strict=True):
        asked = [request.args for request in document.requests]
        assert asked == [tuple(arguments) for arguments in sample["arguments"]]
        assert asked == [request.args for request in other.requests]
        assert asked[0][0].count("Question:") == shots + 1


@pytest.mark.parametrize(
    ("count", "text"), [(1, " a"), (2, " a\n b"), (3, " a\n b  c"), (4, " a\n b  c ")]
)
def test_first_words(count, text):
    assert tasks.first_words(" a\n b  c ", count) == text.rstrip()
    assert tasks.first_words("  ", count) == "  "


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bolq", "has a task 'bolq'; did you mean 'boolq'?"),
        ("gsm8k", "the task 'gsm8k' generates text"),
        ("squadv2", "the task 'squadv2' generates text"),
        ("mmlu", "has a task 'mmlu'"),  # a group
    ],
)
def test_tasks_that_cannot_be_measured(name, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        tasks.load_task(name, 0, [{}])


def test_a_task_of_texts_needs_word_perplexity(folder, capsys, monkeypatch):
    load = tasks.load_task

    def without(*args):
        task = load(*args)
        monkeypatch.setattr(task, "aggregation", lambda: {"bits_per_byte": None})
        return task

    monkeypatch.setattr(tasks, "load_task", without)
    assert "'wikitext' has no word_perplexity" in said(capsys, folder, "wikitext")


def test_rows_that_are_not_the_tasks(folder, capsys):
    with pytest.raises(DataError, match="rows of the task 'boolq' lack a field that it reads"):
        tasks.load_task("boolq", 0, [{"text": "x"}])
    with pytest.raises(DataError, match=r"rows of the task 'wikitext' lack a field .*page"):
        tasks.load_task("wikitext", 0, [{"text": "x"}])
    spec = json.dumps({"source": "jsonl", "path": str(folder / "pg19.jsonl"), "field": "page"})
    message = said(capsys, folder, "pg19", "--dataset", spec, "--max-words", "9")
    assert "there is no text to cut in 'page'; fields: text, short_book_title" in message
    message = said(capsys, folder, "boolq", "--max-words", "9")
    assert "no text to cut in 'text'" in message


def test_a_hub_that_cannot_be_reached(folder, capsys, offline):
    with pytest.raises(DataError) as caught:
        tasks.load_task("pg19")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("cannot read the data of the task 'pg19'")
    assert "give the task a `dataset` with a copy as JSON lines" in message
    spec = {"source": "hub", "path": "deepmind/pg19", "split": "test", "local": "pg19/test.jsonl"}
    message = said(capsys, folder, "pg19", "--dataset", json.dumps(spec))
    assert "Without the hub, put a copy as JSON lines at data_dir/pg19/test.jsonl" in message


@pytest.mark.parametrize(
    ("name", "path", "words"),
    [("wikitext", "wikitext2/test.jsonl", 241_211), ("pg19", "pg19/test.jsonl", None),
     ("boolq", "boolq/validation.jsonl", None), ("mutual", "mutual/validation.jsonl", None)],
)  # fmt: skip
def test_real_rows(folder, name, path, words):
    """Every document of a benchmark becomes requests; WikiText has the words it is known for."""
    if not DATA.is_dir():
        pytest.skip("no benchmark data here")
    rows = tasks.load_rows({"source": "jsonl", "path": path}, DATA / path)
    found = tasks.documents(tasks.load_task(name, 0, rows))
    assert len(found) == len(rows)
    assert [document.name for document in found] == [str(i) for i in range(len(rows))]
    if words is not None:
        counted = sum(len(document.doc["page"].split()) for document in found)
        assert counted == words
