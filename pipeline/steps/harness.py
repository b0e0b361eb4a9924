"""Run a task of lm-evaluation-harness under a policy by every method, document by document."""

from __future__ import annotations

import argparse
import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.data import Row, load_rows
from pipeline.errors import ConfigError, DataError
from pipeline.files import save_table
from pipeline.harness import (
    ROLLING,
    Document,
    TeacherForced,
    documents,
    first_words,
    load_task,
    mean_metrics,
    measure,
)
from pipeline.journal import Journal, identity
from pipeline.models import load_model, load_tokenizer
from pipeline.progress import Progress
from pipeline.steps.evaluate import add_cell_arguments, attached, compared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``less harness``."""
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


def rows_of(spec: dict[str, Any] | None, file: Path | None) -> list[Row] | None:
    """The rows of a data set, if one is given."""
    return None if spec is None else load_rows(spec, file)


def cut(rows: list[Row] | None, field: str, count: int) -> list[Row]:
    """Rows with the text in ``field`` cut to ``count`` words.

    Raises:
        ConfigError: no rows were given, so there is nothing to cut.
        DataError: rows without such a text.
    """
    if rows is None:
        raise ConfigError("--max-words cuts the texts of a --dataset; give one.")
    for row in rows:
        if not isinstance(row.get(field), str):
            raise DataError(f"there is no text to cut in '{field}'; fields: {', '.join(row)}.")
    return [row | {field: first_words(row[field], count)} for row in rows]


def prepare(args: argparse.Namespace) -> tuple[Any, list[Document]]:
    """The task and its documents."""
    rows = rows_of(args.dataset, args.dataset_file)
    if args.max_words is not None:
        rows = cut(rows, (args.dataset or {}).get("field", "text"), args.max_words)
    pool = rows_of(args.shots_from, args.shots_file)
    task = load_task(args.task, args.shots, rows, pool)
    if args.max_words is not None and task.OUTPUT_TYPE != ROLLING:
        raise ConfigError(f"--max-words is for tasks of whole texts; '{args.task}' is none.")
    if task.OUTPUT_TYPE != ROLLING:
        mean_metrics(task)  # refuses a task that has nothing to write before it is run
    elif "word_perplexity" not in task.aggregation():
        raise ConfigError(f"the task '{args.task}' has no word_perplexity in its metric_list.")
    return task, documents(task, args.limit)


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
    """Write one row a method, train sparsity and document; see :func:`pipeline.harness.measure`."""
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
