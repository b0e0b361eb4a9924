"""Measure teacher-forced perplexity under a policy by every method, window by window."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..measure.perplexity import measure_perplexity
from ..measure.variants import Compared
from ..runtime.options import add_compared, add_model
from ..transformer.weights import load_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``less-kv evaluate``."""
    add_model(parser)
    parser.add_argument("--samples", type=Path, required=True)
    add_compared(parser)
    parser.add_argument("--out", type=Path, required=True)


def run(args: argparse.Namespace) -> None:
    """Write one row a method, train sparsity and window."""
    model = load_model(args.model, args.dtype, args.device)
    measure_perplexity(model, args.samples, Compared.of(args), args.out)
