"""Cut windows of tokens from a data set: the input of dumping and of evaluation."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..text.documents import load_documents
from ..text.windows import sample_windows, save_windows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``less-kv sample``."""
    parser.add_argument("--dataset", type=json.loads, required=True, help="data set, as JSON")
    parser.add_argument("--dataset-file", nargs="?", type=Path, help="that it is read from")
    parser.add_argument("--model", type=Path, required=True, help="folder that holds the tokenizer")
    parser.add_argument("--length", type=int, required=True, help="tokens a window")
    parser.add_argument("--count", type=int, required=True, help="windows")
    parser.add_argument("--pack", action="store_true", help="join short documents")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)


def run(args: argparse.Namespace) -> None:
    """Write ``tokens`` (N, length) and ``words`` (N,), int32; document ids are in the header."""
    from ..transformer.weights import load_tokenizer

    documents = load_documents(args.dataset, args.dataset_file)
    windows = sample_windows(
        documents, load_tokenizer(args.model), args.length, args.count, args.seed, pack=args.pack
    )
    save_windows(args.out, windows, args.dataset, args.seed)
