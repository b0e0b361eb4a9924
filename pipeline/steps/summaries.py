"""Write summaries with a bounded cache by every method, sample by sample, and score them."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..cache import LessCache
from ..decoding.generate import Decoding, Generated, generate
from ..kernels import Kernel
from ..measure.summaries import Sample, batches
from ..measure.variants import compared
from ..policies import get_policy
from ..runtime.journal import Journal, identity
from ..runtime.progress import Progress
from ..storage.files import load_sealed, save_table
from ..text.rouge import rouge
from ..transformer.interface import enable
from ..transformer.weights import load_model, load_tokenizer
from .evaluate import add_cell_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``less-kv summaries``.

    ``--scores`` is taken with the other arguments of a cell, but a cache that is bounded can only
    score what it holds: the prompt's rows in full, then cached keys.
    """
    parser.add_argument("--model", type=Path, required=True, help="transformers folder")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--prompts", type=Path, required=True, help="from `less-kv prompts`")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.3, help="0: greedy")
    parser.add_argument("--batch-size", type=int, default=1, help="prompts continued together")
    add_cell_arguments(parser)
    parser.add_argument("--resume", type=Path, required=True, help="folder for unfinished cells")
    parser.add_argument("--out", type=Path, required=True)


def cell_identity(args: argparse.Namespace) -> str:
    """Hash of all that a summary depends on."""
    names = (
        "dtype", "device", "max_new_tokens", "temperature", "batch_size", "policy", "budget",
        "methods", "kernel_size", "seed",
    )  # fmt: skip
    return identity(
        "summaries",
        args.model,
        [args.prompts, *args.kernels],
        options={name: getattr(args, name) for name in names},
        sparsities=args.train_sparsities,
    )


def bounded_cache(model: Any, policy: str, budget: int, kernels: list[Kernel] | None) -> LessCache:
    """The cache of a method."""
    return LessCache(model.config, get_policy(policy, budget), kernels)


def scored(batch: Sequence[Sample], made: Generated) -> list[dict[str, Any]]:
    """A row for each sample of a batch; the batch's time is shared evenly."""
    seconds = made.seconds / len(batch)
    return [
        {
            "document": sample["document"],
            "prompt_tokens": prompt_tokens,
            "new_tokens": new_tokens,
            "seconds": seconds,
            "tokens_per_second": new_tokens / seconds,
            "text": text,
            "reference": sample["reference"],
            **rouge(text, sample["reference"]),
        }
        for sample, text, prompt_tokens, new_tokens in zip(
            batch, made.texts, made.prompt_tokens, made.new_tokens, strict=True
        )
    ]


def run(args: argparse.Namespace) -> None:
    """Write one row a method, train sparsity and sample: text, scores, lengths and time."""
    prompts = load_sealed(args.prompts)
    model = enable(load_model(args.model, args.dtype, args.device))
    tokenizer = load_tokenizer(args.model)
    cells = compared(args, model)
    journal = Journal(args.resume / f"{cell_identity(args)}.jsonl")
    done = {(row["method"], row["train_sparsity"], row["document"]) for row in journal.rows}
    decoding = Decoding(args.max_new_tokens, args.temperature, prompts["stop"])
    progress = Progress("summaries", len(cells) * len(prompts["samples"]) - len(done))
    for method, train_sparsity, budget, kernels in cells:
        cache = None if args.policy is None else bounded_cache(model, args.policy, budget, kernels)
        for batch in batches(prompts["samples"], args.batch_size):
            if (method, train_sparsity, batch[0]["document"]) in done:
                continue
            if cache is not None:
                cache.reset()
            texts, seeds = ([sample[key] for sample in batch] for key in ("prompt", "seed"))
            made = generate(model, tokenizer, texts, decoding, cache, seeds)
            which = {"method": method, "train_sparsity": train_sparsity, "budget": budget}
            rows = [which | row for row in scored(batch, made)]
            journal.extend(rows)
            for row in rows:
                progress.step(f"{method}: {row['tokens_per_second']:.1f} tokens a second")
    save_table(
        args.out,
        pd.DataFrame(journal.rows)
        .astype({"train_sparsity": float})
        .assign(policy=args.policy, skipped=len(prompts["skipped"]), **args.label),
    )
    shutil.rmtree(args.resume, ignore_errors=True)
