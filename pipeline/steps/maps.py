"""Attention maps of chosen heads, full and approximated, and the spectrum of what is left out."""

from __future__ import annotations

import argparse
from itertools import zip_longest
from pathlib import Path

from ..errors import ConfigError
from ..measure.maps import Shown, measure_maps
from ..policies import get_policy
from ..runtime.options import add_model
from ..training.checkpoint import kernels_for
from ..transformer.weights import load_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``less-kv maps``."""
    add_model(parser)
    parser.add_argument("--samples", type=Path, required=True, help="the first window is shown")
    parser.add_argument(
        "--heads", type=layer_and_head, nargs="+", required=True, metavar="LAYER:HEAD"
    )
    parser.add_argument("--policies", nargs="+", required=True)
    parser.add_argument(
        "--kernels", type=Path, nargs="*", default=[], help="for each policy; none: the bare ones"
    )
    parser.add_argument("--method", default="less", help="what the kernels are trained for")
    parser.add_argument("--budget", type=int, required=True, help="tokens")
    parser.add_argument("--scores", default="cached", help="cached or full")
    parser.add_argument("--out", type=Path, required=True, help="maps (safetensors)")
    parser.add_argument("--spectrum", type=Path, required=True, help="singular values (parquet)")


def layer_and_head(text: str) -> tuple[int, int]:
    """Return (3, 5) of ``3:5``."""
    layer, _, head = text.partition(":")
    return int(layer), int(head)


def run(args: argparse.Namespace) -> None:
    """Write maps named ``l<layer>.h<head>.<kind>`` and the spectra of the same heads."""
    if len(args.kernels) not in (0, len(args.policies)):
        raise ConfigError(
            f"{len(args.policies)} --policies have {len(args.kernels)} --kernels; give one for "
            "each, in the same order, or none."
        )
    model = load_model(args.model, args.dtype, args.device)
    shown = [
        Shown(get_policy(name, args.budget), None if path is None else kernels_for(model, path))
        for name, path in zip_longest(args.policies, args.kernels)
    ]
    measure_maps(
        model, args.samples, args.heads, shown, args.method, args.scores, args.out, args.spectrum
    )
