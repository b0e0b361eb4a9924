"""Write summaries with a bounded cache by every method, sample by sample, and score them."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..measure.summaries import measure_summaries
from ..measure.variants import Compared
from ..runtime.options import add_compared, add_model
from ..transformer.interface import enable
from ..transformer.weights import load_model, load_tokenizer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``less-kv summaries``."""
    add_model(parser)
    parser.add_argument("--prompts", type=Path, required=True, help="from `less-kv prompts`")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.3, help="0: greedy")
    parser.add_argument("--batch-size", type=int, default=1, help="prompts continued together")
    add_compared(parser)
    parser.add_argument("--resume", type=Path, required=True, help="folder for unfinished cells")
    parser.add_argument("--out", type=Path, required=True)


def run(args: argparse.Namespace) -> None:
    """Write one row a method, train sparsity and sample."""
    measure_summaries(
        enable(load_model(args.model, args.dtype, args.device)),
        load_tokenizer(args.model),
        args.prompts,
        Compared.of(args),
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        batch_size=args.batch_size,
        folder=args.model,
        resume=args.resume,
        out=args.out,
    )
