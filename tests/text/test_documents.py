import bz2
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.download import packages
from pipeline.download.packages import get_package
from pipeline.errors import ConfigError, DamagedError, DataError
from pipeline.storage.files import sha256
from pipeline.text import documents as data
from pipeline.text.documents import Document, load_documents, load_pairs, load_rows
from pipeline.text.wikipedia import plain_text
from pipeline.text.windows import sample_windows
from pipeline.transformer.weights import byte_tokenizer

SHARED = Path(__file__).parents[3] / "shared" / "data"
PROSE = "An aardvark digs for ants and termites at night. " * 30
MARKUP = """{{Infobox animal|name=Aardvark}}
[[File:Aardvark.jpg|thumb|A caption]]
The '''aardvark''' ({{lang|af|erdvark}}) is a [[mammal|burrowing mammal]].<ref>{{cite|x}}</ref>
{| class="wikitable"
| in a table
|}
== Habits ==
* It digs''' holes.<ref name="a">note</ref>

== References ==
A list of books.
[[Category:Mammals]]"""
PLAIN = "The aardvark is a burrowing mammal.\n\nHabits\n\nIt digs holes."


def page(title, text, namespace=0, redirect=False):
    mark = '<redirect title="Elsewhere" />' if redirect else ""
    return (
        f"<page><title>{title}</title><ns>{namespace}</ns><id>1</id>{mark}"
        f"<revision><id>2</id><text>{text}</text></revision></page>"
    )


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def packaged(tmp_path, monkeypatch):
    """Small files in the form of the packages' own, and the packages' table with their hashes."""
    pages = [
        page("Long", PROSE),
        page("Stub", "Nothing much."),
        page("Elsewhere", PROSE, redirect=True),
        page("Wikipedia:About", PROSE, namespace=4),
        page("Another", PROSE),
    ]
    dump = f'<mediawiki xmlns="http://mediawiki.org/x/">{"".join(pages)}</mediawiki>'
    (tmp_path / get_package("gensim").file).write_bytes(bz2.compress(dump.encode()))
    paper = {
        "title": "A title",
        "abstract": "An abstract.",
        "pdf_parse": {"body_text": [{"text": x} for x in ("First.", "EQUATION", "Second.")]},
    }
    listed = {
        "id": "P00-1",
        "sentences": {"abstract": ["A.", "B."], "introduction": ["C."], "conclusion": ["D."]},
        "summary": {"challenge": "Hard.", "approach": "Tried.", "outcome": "Worked."},
    }
    with zipfile.ZipFile(tmp_path / get_package("aclsum").file, "w") as archive:
        archive.writestr("aclsum/dataset/val.jsonl", json.dumps(listed))
        archive.writestr("aclsum/dataset/paper_jsons/P00-1.json", json.dumps(paper))
    known = {
        name: replace(package, sha256=sha256(tmp_path / package.file))
        for name, package in packages.packages().items()
        if package.source
    }
    monkeypatch.setattr(packages, "packages", lambda: known)
    return tmp_path


def file_of(folder, package):
    return folder / get_package(package).file


def test_wiki_markup_is_stripped():
    assert plain_text(MARKUP) == PLAIN


def test_wikipedia_has_articles_only(packaged):
    documents = load_documents({"source": "wikipedia_sample"}, file_of(packaged, "gensim"))
    assert [document.id for document in documents] == ["Long", "Another"]
    assert documents[0].text.startswith("Long\n\nAn aardvark")


def test_aclsum(packaged):
    spec = {"source": "aclsum", "split": "validation"}
    text = "A title\n\nAn abstract.\n\nFirst.\n\nSecond."
    assert load_documents(spec, file_of(packaged, "aclsum")) == [Document("P00-1", text)]
    assert load_pairs(spec, file_of(packaged, "aclsum")) == [
        ("P00-1", "A. B. C. D.", "Hard. Tried. Worked.")
    ]


def test_damaged_packages(packaged):
    for name, source in (("gensim", "wikipedia_sample"), ("aclsum", "aclsum")):
        path = file_of(packaged, name)
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(DamagedError, match=r"is damaged .*SHA-256.*make it again"):
            load_rows({"source": source, "split": "validation"}, path)


def test_local_lines(tmp_path):
    write_lines(tmp_path / "a.jsonl", [{"body": "one", "id": 7}, {"body": "two", "id": 8}])
    spec = {"source": "jsonl", "path": str(tmp_path / "a.jsonl"), "field": "body"}
    assert load_documents(spec) == [Document("7", "one"), Document("8", "two")]
    spec |= {"path": "elsewhere.jsonl", "limit": 1}
    assert load_documents(spec, tmp_path / "a.jsonl") == [Document("7", "one")]
    pair = spec | {"document_field": "body", "summary_field": "body"}
    assert load_pairs(pair, tmp_path / "a.jsonl") == [("7", "one", "one")]


def test_a_range_of_documents(tmp_path):
    """They keep the names that they have among all of them, which seed their windows."""
    rows = [{"text": text, "document": text, "summary": "s"} for text in "abcd"]
    write_lines(tmp_path / "a.jsonl", rows)
    spec = {"source": "jsonl", "path": str(tmp_path / "a.jsonl"), "documents": [1, 3]}
    assert load_rows(spec) == rows[1:3]
    assert load_documents(spec) == [Document("1", "b"), Document("2", "c")]
    assert load_pairs(spec) == [("1", "b", "s"), ("2", "c", "s")]
    assert load_rows(spec | {"documents": [2, None]}) == rows[2:]
    assert load_rows(spec | {"limit": 2}) == rows[1:2]


def test_every_row_has_a_name_of_its_own():
    """Measurements are paired by name: two rows of one would be counted as others."""
    rows = [{"id": "a"}, {"id": None}, {"id": "a"}, {}, {"id": 0}, {"id": "a"}]
    assert data._ids(rows) == ["a", "1", "a (row 2)", "3", "0", "a (row 5)"]


def test_a_local_copy_serves_instead_of_the_hub(tmp_path, offline):
    write_lines(tmp_path / "train.jsonl", [{"text": "one"}, {"text": "two"}])
    spec = {"source": "hub", "path": "allenai/c4", "split": "train", "local": "c4/train.jsonl"}
    documents = load_documents(spec, tmp_path / "train.jsonl")
    assert documents == [Document("0", "one"), Document("1", "two")]


@pytest.mark.parametrize("stream", [False, True])
def test_no_hub(offline, stream):
    spec = {"source": "hub", "path": "allenai/c4", "name": "en", "split": "train", "stream": stream}
    with pytest.raises(DataError, match=r"'hub allenai/c4 en train'.*data_dir, and local"):
        load_rows(spec)
    with pytest.raises(DataError, match=r"JSON lines at data_dir/c4\.jsonl"):
        load_rows(spec | {"local": "c4.jsonl"})


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ({"source": "hubb"}, ConfigError, "did you mean 'hub'"),
        ({"source": "aclsum"}, ConfigError, "'aclsum' needs 'split'"),
        ({"source": "aclsum", "split": "val"}, ConfigError, "did you mean 'validation'"),
        ({"source": "aclsum", "split": "test"}, DataError, "less-kv fetch --package aclsum"),
        ({"source": "jsonl", "path": "none.jsonl"}, DataError, "none.jsonl does not exist"),
        ({"source": "jsonl", "path": "empty.jsonl"}, DataError, "has no rows"),
        ({"source": "jsonl", "path": "bad.jsonl"}, DataError, "not one JSON object a line"),
        ({"source": "jsonl", "path": "list.jsonl"}, DataError, "line 1 is not an object"),
        ({"source": "jsonl", "path": "good.jsonl"}, DataError, "'text'; its fields: page"),
    ],
)
def test_errors(tmp_path, monkeypatch, spec, error, message):
    monkeypatch.chdir(tmp_path)
    for name, text in (("empty", ""), ("bad", "{"), ("list", "[]"), ("good", '{"page": "x"}')):
        Path(f"{name}.jsonl").write_text(text)
    with pytest.raises(error, match=message):
        load_documents(spec)


def texts(*lengths):
    return [Document(f"d{i}", (f"{i} words " * n)[:n]) for i, n in enumerate(lengths)]


def test_windows_are_text_of_their_documents():
    tokenizer = byte_tokenizer()
    documents = texts(50, 8, 100, 20, 7)
    windows = sample_windows(documents, tokenizer, 20, 3, seed=0)
    assert windows.tokens.shape == (3, 20)
    assert windows.tokens.dtype == torch.int32
    assert set(windows.ids) == {"d0", "d2", "d3"}
    by_id = {document.id: document.text for document in documents}
    for row, name, words in zip(windows.tokens, windows.ids, windows.words, strict=True):
        text = tokenizer.decode(row)
        assert text in by_id[name]
        assert words == len(text.split())


def test_windows_depend_on_seed_and_document_only():
    tokenizer = byte_tokenizer()
    documents = texts(*[60] * 12)
    all_of_them = sample_windows(documents, tokenizer, 20, 12, seed=0)
    again = sample_windows(documents[::-1], tokenizer, 20, 12, seed=0)
    assert torch.equal(again.tokens, all_of_them.tokens)
    fewer = sample_windows(documents, tokenizer, 20, 4, seed=0)
    assert fewer.ids == all_of_them.ids[:4]
    alone = sample_windows(documents[3:4], tokenizer, 20, 1, seed=0)
    assert torch.equal(alone.tokens[0], all_of_them.tokens[all_of_them.ids.index("d3")])
    other = sample_windows(documents, tokenizer, 20, 12, seed=1)
    assert other.ids != all_of_them.ids
    # starts: of 41 each, a dozen that were all alike would be no accident
    starts = {
        documents[int(name[1:])].text.index(tokenizer.decode(row))
        for row, name in zip(all_of_them.tokens, all_of_them.ids, strict=True)
    }
    assert len(starts) > 3


def test_short_documents_are_packed():
    tokenizer = byte_tokenizer()
    windows = sample_windows(texts(8, 8, 8, 8, 8), tokenizer, 20, 1, seed=0, pack=True)
    assert windows.tokens.shape == (1, 20)
    assert len(windows.ids[0].split(" + ")) == 3
    ends = (windows.tokens[0] == tokenizer.eos_token_id).nonzero().flatten()
    assert ends.tolist() == [8, 17]


def test_too_few_windows():
    with pytest.raises(
        DataError, match=r"3 windows of 20 tokens .* only 2 come of 3 documents.*or pack"
    ):
        sample_windows(texts(30, 5, 30), byte_tokenizer(), 20, 3, seed=0)
    with pytest.raises(DataError, match="only 1 come of 3 documents"):
        sample_windows(texts(30, 5, 5), byte_tokenizer(), 20, 3, seed=0, pack=True)


@pytest.mark.download
def test_real_packages(downloads):
    sizes = {"train": 100, "validation": 50, "test": 100}
    ids = {}
    for split, size in sizes.items():
        papers = load_documents({"source": "aclsum", "split": split}, file_of(downloads, "aclsum"))
        assert len(papers) == size
        assert sorted(len(paper.text.split()) for paper in papers)[size // 2] > 3000
        ids[split] = {paper.id for paper in papers}
        pairs = load_pairs({"source": "aclsum", "split": split}, file_of(downloads, "aclsum"))
        assert [pair.id for pair in pairs] == [paper.id for paper in papers]
        assert all(20 < len(pair.summary.split()) < 200 for pair in pairs)
    assert len(set.union(*ids.values())) == sum(sizes.values())

    articles = load_documents({"source": "wikipedia_sample"}, file_of(downloads, "gensim"))
    assert len(articles) == 103
    text = " ".join(article.text for article in articles)
    assert len(text.split()) > 400_000
    assert not any(mark in text for mark in ("[[", "{{", "''", "<ref", "&nbsp;"))


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not here")
def test_shared_data(offline):
    spec = {"source": "hub", "path": "EleutherAI/wikitext_document_level", "split": "test"}
    spec |= {"field": "page"}
    assert len(load_documents(spec, SHARED / "wikitext2" / "test.jsonl")) == 62
    spec = {"source": "hub", "path": "abisee/cnn_dailymail", "split": "test", "limit": 10}
    spec |= {"document_field": "article", "summary_field": "highlights"}
    assert len(load_pairs(spec, SHARED / "cnn_dailymail" / "test.jsonl")) == 10
