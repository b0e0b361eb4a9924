"""Run a task of lm-evaluation-harness under a policy by every method, document by document."""

from __future__ import annotations

import argparse
import json
import shutil
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from ..measure.harness import Document, TeacherForced, measure, prepare
from ..measure.variants import attached, compared
from ..runtime.journal import Journal, identity
from ..runtime.progress import Progress
from ..storage.files import save_table
from ..transformer.weights import load_model, load_tokenizer
from .evaluate import add_cell_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``less-kv harness``."""
    parser.add_argument("--model", type=Path, required=True, help="transformers folder")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--context", type=int, required=True, help="longest sequence in tokens")
    parser.add_argument("--task", required=True, help="of the library or resources/tasks")
    parser.add_argument("--dataset", type=json.loads, help="data set that is measured on, as JSON")
    parser.add_argument("--dataset-file", nargs="?", type=Path, help="that it is read from")
    parser.add_argument("--shots", type=int, default=0, help="demonstrations in each prompt")
    parser.add_argument("--shots-from", type=json.loads, help="their data set, as JSON")
    parser.add_argument("--shots-file", nargs="?", type=Path, help="that they are read from")
    parser.add_argument("--limit", type=int, help="documents, the first ones (default: all)")
    parser.add_argument("--max-words", type=int, help="cut the data set's texts to so many words")
    add_cell_arguments(parser)
    parser.add_argument("--resume", type=Path, required=True, help="folder for unfinished cells")
    parser.add_argument("--out", type=Path, required=True)


def cell_identity(args: argparse.Namespace, found: list[Document]) -> str:
    """Hash of all that a row depends on."""
    names = (
        "dtype", "device", "context", "task", "policy", "budget", "scores", "methods",
        "kernel_size", "seed",
    )  # fmt: skip
    return identity(
        "harness",
        args.model,
        args.kernels,
        options={name: getattr(args, name) for name in names},
        sparsities=args.train_sparsities,
        requests=[[request.args for request in document.requests] for document in found],
        rows=[repr(document.doc) for document in found],
        library=version("lm_eval"),
    )


def run(args: argparse.Namespace) -> None:
    """Write one row a method, train sparsity and document."""
    task, found = prepare(args)
    model = load_model(args.model, args.dtype, args.device)
    cells = compared(args, model)
    library = TeacherForced(model, load_tokenizer(args.model), args.context)
    journal = Journal(args.resume / f"{cell_identity(args, found)}.jsonl")
    done = {(row["method"], row["train_sparsity"], row["document"]) for row in journal.rows}
    progress = Progress("harness", len(cells) * len(found) - len(done))
    for method, train_sparsity, budget, kernels in cells:
        with attached(model, args, budget, kernels):
            for document in found:
                which = {"method": method, "train_sparsity": train_sparsity, "budget": budget}
                if (method, train_sparsity, document.name) in done:
                    continue
                values = measure(library, task, document)
                journal.extend([which | {"document": document.name} | values])
                progress.step(f"{method}: " + ", ".join(f"{k} {v:g}" for k, v in values.items()))
    save_table(
        args.out,
        pd.DataFrame(journal.rows)
        .astype({"train_sparsity": float})
        .assign(policy=args.policy, **args.label),
    )
    shutil.rmtree(args.resume, ignore_errors=True)
