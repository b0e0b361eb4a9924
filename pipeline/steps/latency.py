"""Time prompts and their continuations by every method, in turns, in one process."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..errors import ConfigError
from ..experiment.latency import FORMS, Contender, Setting
from ..measure.latency import measure_latency
from ..transformer.interface import enable
from ..transformer.weights import load_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``less-kv latency``."""
    parser.add_argument("--model", nargs="?", type=Path, help="transformers folder")
    parser.add_argument("--weights", type=json.loads, help="in its place random ones, as JSON")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--setting", type=Setting.of, required=True, help="prompt+new x batch")
    parser.add_argument("--contenders", type=json.loads, required=True, help="as JSON")
    parser.add_argument("--sizes", type=json.loads, default={}, help="of kernels, as JSON")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--forms", choices=FORMS, nargs="+", default=list(FORMS))
    parser.add_argument("--label", type=json.loads, default={}, help="columns to add, as JSON")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="one row a repetition")
    parser.add_argument("--operators", type=Path, required=True, help="one row an operator")


def run(args: argparse.Namespace) -> None:
    """Write times, and what they are made of."""
    if not (args.weights or args.model):
        raise ConfigError("give --model or --weights.")
    measure_latency(
        enable(load_model(args.weights or args.model, args.dtype, args.device)),
        args.setting,
        [Contender(**entry) for entry in args.contenders],
        args.sizes,
        repetitions=args.repetitions,
        forms=args.forms,
        seed=args.seed,
        label=args.label,
        out=args.out,
        operators=args.operators,
    )
