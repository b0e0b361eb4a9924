"""Run a task of lm-evaluation-harness under a policy by every method, document by document."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..measure.harness import measure_task
from ..measure.tasks import Question
from ..measure.variants import Compared
from ..runtime.options import add_compared, add_model
from ..transformer.weights import load_model, load_tokenizer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``less-kv harness``."""
    add_model(parser)
    parser.add_argument("--context", type=int, required=True, help="longest sequence in tokens")
    parser.add_argument("--task", required=True, help="of the library or resources/tasks")
    parser.add_argument("--dataset", type=json.loads, help="data set that is measured on, as JSON")
    parser.add_argument("--dataset-file", nargs="?", type=Path, help="that it is read from")
    parser.add_argument("--shots", type=int, default=0, help="demonstrations in each prompt")
    parser.add_argument("--shots-from", type=json.loads, help="their data set, as JSON")
    parser.add_argument("--shots-file", nargs="?", type=Path, help="that they are read from")
    parser.add_argument("--limit", type=int, help="documents, the first ones (default: all)")
    parser.add_argument("--max-words", type=int, help="cut the data set's texts to so many words")
    add_compared(parser)
    parser.add_argument("--resume", type=Path, required=True, help="folder for unfinished cells")
    parser.add_argument("--out", type=Path, required=True)


def run(args: argparse.Namespace) -> None:
    """Write one row a method, train sparsity and document."""
    measure_task(
        load_model(args.model, args.dtype, args.device),
        load_tokenizer(args.model),
        Question(
            args.task,
            args.dataset,
            args.dataset_file,
            args.shots,
            args.shots_from,
            args.shots_file,
            args.limit,
            args.max_words,
        ),
        Compared.of(args),
        context=args.context,
        folder=args.model,
        resume=args.resume,
        out=args.out,
    )
