"""Text: documents, document–summary pairs and task rows from packages, the hub or local files.

A data set is named in config by a mapping with a ``source``; each source has one reader that
gives rows (dicts), and documents and pairs are views of rows. Sources and their keys:

- ``aclsum``: ``split`` (train, validation, test). Rows: id, title, text, document, summary.
- ``wikipedia_sample``. Rows: id, text.
- ``jsonl``: ``path``.
- ``hub``: ``path``, ``split``, and optionally ``name``, ``revision``, ``stream``.

Readers are given the file that a data set is read from: the package's file, JSON lines, or for the
hub JSON lines that stand for it, if there are any. Which file that is, the workflow decides.

Any source takes ``limit`` (rows to read), ``documents`` (which of them, ``[start, stop]``), and
``field``, ``document_field`` and ``summary_field`` (which field is which; by default text,
document, summary).
"""

from __future__ import annotations

import bz2
import json
import random
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.etree import ElementTree

import torch

from pipeline.errors import ConfigError, DataError, unknown
from pipeline.packages import checked
from pipeline.retry import persistently

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = dict[str, Any]
Spec = Mapping[str, Any]

ACLSUM_SPLITS = {"train": "train", "validation": "val", "test": "test"}
SHORTEST_ARTICLE_WORDS = 200
"""Wikipedia pages with less prose are stubs or lists of links."""
END_MATTER = re.compile(
    r"^==\s*(?:See also|Notes|Notes and references|References|Footnotes|Citations|Sources"
    r"|Bibliography|Further reading|External links)\s*==\s*$",
    re.MULTILINE | re.IGNORECASE,
)
NOT_PROSE = {"ref", "references", "table", "gallery", "math", "timeline", "imagemap"}
NOT_TEXT_LINKS = ("file:", "image:", "category:")
TABLE_LINES = ("{|", "|", "!")
"""What is left of tables that are not closed."""


@dataclass(frozen=True)
class Document:
    """A text and the name it has in its data set."""

    id: str
    text: str


class Pair(NamedTuple):
    """A document and its reference summary."""

    id: str
    document: str
    summary: str


class Windows(NamedTuple):
    """Token windows of one length."""

    tokens: torch.Tensor
    """int32 (N, length)."""
    ids: list[str]
    """The document of each window; several, as "a + b", where short ones were packed."""
    words: list[int]
    """Whitespace-separated words in each window's text."""


def load_documents(spec: Spec, file: Path | None = None) -> list[Document]:
    """The texts of a data set, in its order; raises as :func:`load_rows`."""
    field = spec.get("field", "text")
    return [Document(name, _field(row, field, spec)) for name, row in _named_rows(spec, file)]


def load_pairs(spec: Spec, file: Path | None = None) -> list[Pair]:
    """The document–summary pairs of a data set, in its order; raises as :func:`load_rows`."""
    document, summary = (spec.get(f"{x}_field", x) for x in ("document", "summary"))
    return [
        Pair(name, _field(row, document, spec), _field(row, summary, spec))
        for name, row in _named_rows(spec, file)
    ]


def load_rows(spec: Spec, file: Path | None = None) -> list[Row]:
    """The rows of a data set.

    Args:
        spec: what to read, see the module's documentation.
        file: what it is read from; None for the hub, and for the ``path`` of ``jsonl``.

    Raises:
        ConfigError: an unknown source, or one that lacks a key.
        DataError: a file is missing or damaged, the hub cannot be reached, or there are no rows.
    """
    return [row for _, row in _named_rows(spec, file)]


def _named_rows(spec: Spec, file: Path | None) -> list[tuple[str, Row]]:
    """As :func:`load_rows`, with a name for each, the same whichever ``documents`` are wanted."""
    source = _key(spec, "source")
    if source not in READERS:
        raise unknown("data source", source, READERS)
    rows = list(islice(READERS[source](spec, file), spec.get("limit")))
    if not rows:
        raise DataError(f"{_name(spec)} has no rows.")
    start, stop = spec.get("documents", (0, None))
    return list(zip(_ids(rows), rows, strict=True))[start:stop]


def _name(spec: Spec) -> str:
    """What to call a data set in a message."""
    parts = (spec.get(key) for key in ("source", "path", "name", "split"))
    return " ".join(str(part) for part in parts if part is not None)


def _key(spec: Spec, key: str) -> Any:
    """A key that ``spec`` must have."""
    if key not in spec:
        raise ConfigError(f"data set '{_name(spec)}' needs '{key}'.")
    return spec[key]


def _ids(rows: Sequence[Row]) -> list[str]:
    """A name for each row, no two alike: its id or else its place, and both where an id repeats."""
    found: dict[str, None] = {}
    for place, row in enumerate(rows):
        name = str(place if row.get("id") is None else row["id"])
        found[name if name not in found else f"{name} (row {place})"] = None
    return list(found)


def _field(row: Row, field: str, spec: Spec) -> str:
    """The text in ``field`` of a row."""
    if not isinstance(row.get(field), str):
        raise DataError(f"{_name(spec)} has no text in '{field}'; its fields: {', '.join(row)}.")
    return row[field]  # type: ignore[no-any-return]


def _aclsum(spec: Spec, file: Path | None) -> Iterator[Row]:
    """Whole papers (title, abstract, paragraphs), and what their summaries were written from."""
    split = _key(spec, "split")
    if split not in ACLSUM_SPLITS:
        raise unknown("split of aclsum", split, ACLSUM_SPLITS)
    with zipfile.ZipFile(checked("aclsum", file)) as archive:
        listing = archive.read(f"aclsum/dataset/{ACLSUM_SPLITS[split]}.jsonl").decode()
        for row in map(json.loads, listing.splitlines()):
            paper = json.loads(archive.read(f"aclsum/dataset/paper_jsons/{row['id']}.json"))
            body = [paragraph["text"] for paragraph in paper["pdf_parse"]["body_text"]]
            parts = [paper["title"], paper["abstract"], *body]
            sections = [row["sentences"][x] for x in ("abstract", "introduction", "conclusion")]
            yield {
                "id": row["id"],
                "title": paper["title"],
                # a formula that the papers' converter could not read leaves this one word
                "text": "\n\n".join(x for x in parts if x and x != "EQUATION"),
                "document": " ".join(sentence for part in sections for sentence in part),
                "summary": " ".join(
                    row["summary"][x] for x in ("challenge", "approach", "outcome")
                ),
            }


def _wikipedia_sample(spec: Spec, file: Path | None) -> Iterator[Row]:
    """Articles of the dump in its order, without redirects, stubs and pages about Wikipedia."""
    with bz2.open(checked("gensim", file)) as dump:
        for title, markup in _articles(dump):
            text = plain_text(markup)
            if len(text.split()) >= SHORTEST_ARTICLE_WORDS:
                yield {"id": title, "text": f"{title}\n\n{text}"}


def _articles(dump: Any) -> Iterator[tuple[str, str]]:
    """(title, markup) of the articles in a MediaWiki export."""
    for _, page in ElementTree.iterparse(dump):
        if page.tag.endswith("}page"):
            redirect = page.find("{*}redirect") is not None
            if not redirect and page.findtext("{*}ns") == "0":
                text = page.findtext("{*}revision/{*}text", "")
                yield page.findtext("{*}title", ""), text
            page.clear()  # the whole tree of a dump would not fit in memory


def plain_text(markup: str) -> str:
    """The prose of a wiki page: no tables, notes, pictures, categories, end matter or markup."""
    import mwparserfromhell
    from mwparserfromhell.nodes import Node, Tag, Wikilink
    from mwparserfromhell.wikicode import Wikicode

    def is_noise(node: Node) -> bool:
        if isinstance(node, Tag):
            return str(node.tag).strip().lower() in NOT_PROSE
        return isinstance(node, Wikilink) and str(node.title).lower().startswith(NOT_TEXT_LINKS)

    def prune(code: Wikicode) -> None:  # the library's own remove searches the tree each time
        code.nodes = [node for node in code.nodes if not is_noise(node)]
        for node in code.nodes:
            if isinstance(node, Tag) and node.contents is not None:
                prune(node.contents)

    # quotes for bold and italic are often unbalanced, and then hide the markup inside them
    code = mwparserfromhell.parse(END_MATTER.split(markup, maxsplit=1)[0], skip_style_tags=True)
    prune(code)
    text = re.sub(r"'{2,}|\s*\([\s,;]*\)", "", code.strip_code())  # also what templates left empty
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "\n\n".join(line for line in lines if line and not line.startswith(TABLE_LINES))


def _jsonl(spec: Spec, file: Path | None) -> Iterator[Row]:
    """Rows of a local file."""
    return _read_jsonl(file or Path(_key(spec, "path")))


def _read_jsonl(path: Path) -> Iterator[Row]:
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError(f"line {number} is not an object")
                yield row
    except FileNotFoundError:
        raise DataError(f"{path} does not exist.") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not one JSON object a line ({error}).") from error


def _hub(spec: Spec, file: Path | None) -> Iterator[Row]:
    """Rows of a hub data set, or of its local copy."""
    if file is not None:
        yield from _read_jsonl(file)
        return

    import datasets

    from pipeline.hub import first_line, lasting

    path, split = _key(spec, "path"), _key(spec, "split")

    def attempt(number: int) -> Iterable[Row]:
        return datasets.load_dataset(  # type: ignore[no-any-return]
            path,
            spec.get("name"),
            split=split,
            revision=spec.get("revision"),
            streaming=spec.get("stream", False),
        )

    def final(error: Exception) -> bool:
        told = (ValueError, datasets.exceptions.DatasetNotFoundError)
        return isinstance(error, told) or lasting(error)

    datasets.disable_progress_bars()
    try:
        yield from persistently(attempt, final)
    except Exception as error:  # those of its network library have no base that it names
        raise DataError(
            f"cannot read the data set '{_name(spec)}': {first_line(error)}. Without the hub, put "
            f"a copy as JSON lines at {Path('data_dir') / spec.get('local', '…')} and name both "
            "in config (data_dir, and local in the data set)."
        ) from error


READERS: dict[str, Callable[[Spec, Path | None], Iterator[Row]]] = {
    "aclsum": _aclsum,
    "wikipedia_sample": _wikipedia_sample,
    "jsonl": _jsonl,
    "hub": _hub,
}


def sample_windows(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    count: int,
    seed: int,
    *,
    pack: bool = False,
) -> Windows:
    """Random windows of ``length`` tokens, one from each document that is long enough.

    A document's rank and where its window starts depend on ``seed`` and its id alone; the first in
    rank are taken, so order does not matter and fewer windows are a prefix of more. With ``pack``,
    shorter documents, one after another in rank, are joined by the end-of-text token until they
    fill a window.

    Raises:
        DataError: there are not ``count`` windows in the documents.
    """
    tokens: list[list[int]] = []
    ids: list[str] = []
    packed: list[int] = []
    packed_ids: list[str] = []

    def drawn(document: Document) -> tuple[float, random.Random]:
        """Its rank, and what its place is drawn from: made anew, since each takes 2.5 kB."""
        draw = random.Random(f"{seed} {document.id}")
        return draw.random(), draw

    ranked = sorted(documents, key=lambda document: drawn(document)[0])
    for document in ranked:
        if len(tokens) == count:
            break
        draw = drawn(document)[1]
        text = tokenizer(document.text, add_special_tokens=False, verbose=False)["input_ids"]
        if len(text) >= length:
            start = draw.randint(0, len(text) - length)
            tokens.append(text[start : start + length])
            ids.append(document.id)
        elif pack:
            packed += [*([tokenizer.eos_token_id] if packed else []), *text]
            packed_ids.append(document.id)
            if len(packed) >= length:
                tokens.append(packed[:length])
                ids.append(" + ".join(packed_ids))
                packed, packed_ids = [], []
    if len(tokens) < count:
        raise DataError(
            f"{count} windows of {length} tokens are wanted, but only {len(tokens)} come of "
            f"{len(ranked)} documents: ask for fewer or shorter ones, or give more text"
            f"{'' if pack else ', or pack short documents'}."
        )
    words = [len(str(tokenizer.decode(window)).split()) for window in tokens]
    return Windows(torch.tensor(tokens, dtype=torch.int32).reshape(-1, length), ids, words)
