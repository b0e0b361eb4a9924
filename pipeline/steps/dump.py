"""Write the attention features of a model to disk: q, k, v of every layer, as it attends."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..runtime.options import add_model
from ..transformer.features import dump_features
from ..transformer.weights import load_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``less-kv dump``."""
    add_model(parser)
    parser.add_argument("--samples", type=Path, required=True)
    parser.add_argument("--layers", type=int, nargs=2, required=True, metavar=("START", "STOP"))
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True, help="folder of layer files")


def run(args: argparse.Namespace) -> None:
    """Write ``q`` (N, H, S, D), ``k``, ``v`` (N, G, S, D) float16 and ``o_weight`` a layer."""
    dump_features(
        load_model(args.model, args.dtype, args.device),
        args.samples,
        range(*args.layers),
        args.out,
        args.batch_size,
        {"model": str(args.model), "dtype": args.dtype},
    )
