"""Cut windows of tokens from documents."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..errors import DataError
from ..storage.tensors import save_tensors
from .documents import Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Windows(NamedTuple):
    """Token windows of one length."""

    tokens: torch.Tensor
    """int32 (N, length)."""
    ids: list[str]
    """The document of each window; several, as "a + b", where short ones were packed."""
    words: list[int]
    """Whitespace-separated words in each window's text."""


def sample_windows(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    count: int,
    seed: int,
    *,
    pack: bool = False,
) -> Windows:
    """Return random windows of ``length`` tokens, one from each document that is long enough.

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
        """Return its rank, and what its place is drawn from: made anew, since each takes 2.5 kB."""
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


def save_windows(path: Path, windows: Windows, dataset: Any, seed: int) -> None:
    """Write ``tokens`` (N, length) and ``words`` (N,), int32; document ids are in the header."""
    words = torch.tensor(windows.words, dtype=torch.int32)
    tensors = {"tokens": windows.tokens, "words": words}
    save_tensors(path, tensors, "samples", documents=windows.ids, dataset=dataset, seed=seed)
