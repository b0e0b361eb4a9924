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
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ..download.packages import checked
from ..download.retry import persistently
from ..errors import ConfigError, DataError, unknown
from .wikipedia import SHORTEST_ARTICLE_WORDS, articles, plain_text

Row = dict[str, Any]
Spec = Mapping[str, Any]

ACLSUM_SPLITS = {"train": "train", "validation": "val", "test": "test"}


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


def load_documents(spec: Spec, file: Path | None = None) -> list[Document]:
    """Return the texts of a data set, in its order; raises as :func:`load_rows`."""
    field = spec.get("field", "text")
    return [Document(name, _field(row, field, spec)) for name, row in _named_rows(spec, file)]


def load_pairs(spec: Spec, file: Path | None = None) -> list[Pair]:
    """Return the document–summary pairs of a data set; raises as :func:`load_rows`."""
    document, summary = (spec.get(f"{x}_field", x) for x in ("document", "summary"))
    return [
        Pair(name, _field(row, document, spec), _field(row, summary, spec))
        for name, row in _named_rows(spec, file)
    ]


def load_rows(spec: Spec, file: Path | None = None) -> list[Row]:
    """Return the rows of a data set.

    Args:
        spec: what to read, see the module's documentation.
        file: what it is read from; None for the hub, and for the ``path`` of ``jsonl``.

    Raises:
        ConfigError: an unknown source, or one that lacks a key.
        DataError: a file is missing or damaged, the hub cannot be reached, or there are no rows.
    """
    return [row for _, row in _named_rows(spec, file)]


def _named_rows(spec: Spec, file: Path | None) -> list[tuple[str, Row]]:
    """Do as :func:`load_rows`, with a name for each, whichever ``documents`` are wanted."""
    source = _key(spec, "source")
    if source not in READERS:
        raise unknown("data source", source, READERS)
    rows = list(islice(READERS[source](spec, file), spec.get("limit")))
    if not rows:
        raise DataError(f"{_name(spec)} has no rows.")
    start, stop = spec.get("documents", (0, None))
    return list(zip(_ids(rows), rows, strict=True))[start:stop]


def _name(spec: Spec) -> str:
    """Return what to call a data set in a message."""
    parts = (spec.get(key) for key in ("source", "path", "name", "split"))
    return " ".join(str(part) for part in parts if part is not None)


def _key(spec: Spec, key: str) -> Any:
    """Return a key that ``spec`` must have."""
    if key not in spec:
        raise ConfigError(f"data set '{_name(spec)}' needs '{key}'.")
    return spec[key]


def _ids(rows: Sequence[Row]) -> list[str]:
    """Return a name for each row, no two alike.

    Its id or else its place, and both where an id repeats.
    """
    names: dict[str, None] = {}
    for place, row in enumerate(rows):
        name = str(place if row.get("id") is None else row["id"])
        names[name if name not in names else f"{name} (row {place})"] = None
    return list(names)


def _field(row: Row, field: str, spec: Spec) -> str:
    """Return the text in ``field`` of a row."""
    if not isinstance(row.get(field), str):
        raise DataError(f"{_name(spec)} has no text in '{field}'; its fields: {', '.join(row)}.")
    return row[field]  # type: ignore[no-any-return]


def _aclsum(spec: Spec, file: Path | None) -> Iterator[Row]:
    """Yield whole papers, and the parts that their summaries were written from."""
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
    """Yield articles of the dump in order: no redirects, stubs and pages about Wikipedia."""
    with bz2.open(checked("gensim", file)) as dump:
        for title, markup in articles(dump):
            text = plain_text(markup)
            if len(text.split()) >= SHORTEST_ARTICLE_WORDS:
                yield {"id": title, "text": f"{title}\n\n{text}"}


def _jsonl(spec: Spec, file: Path | None) -> Iterator[Row]:
    """Yield rows of a local file."""
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
    """Yield rows of a hub data set, or of its local copy."""
    if file is not None:
        yield from _read_jsonl(file)
        return

    import datasets

    from ..download.hub import first_line, lasting

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
