"""Time prompts and their continuations by every method, in turns, in one process.

Each repetition builds a method's cache anew, warms it up, and times one prompt and its
continuation, from the prompt's arrival to the last token. What runs out of memory is a result:
a row without times. Prompts are random tokens and kernels are untrained: neither changes how long
anything takes.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from ..errors import ConfigError
from ..experiment.latency import FORMS, Contender, Setting
from ..experiment.methods import FULL, METHODS
from ..measure.latency import Bench, conditions, is_of, operator_rows, parts_of, repetitions
from ..measure.operators import copy_bandwidth, untrained_kernels
from ..storage.files import save_table
from ..transformer.interface import enable
from ..transformer.weights import load_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``less-kv latency``."""
    parser.add_argument("--model", nargs="?", type=Path, help="transformers folder")
    parser.add_argument("--weights", type=json.loads, help="in its place random ones, as JSON")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--setting", type=Setting.of, required=True, help="prompt+new x batch")
    parser.add_argument("--contenders", type=json.loads, required=True, help="as JSON")
    parser.add_argument("--kernel", type=json.loads, default={}, help="sizes, as JSON")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--forms", choices=FORMS, nargs="+", default=list(FORMS))
    parser.add_argument("--label", type=json.loads, default={}, help="columns to add, as JSON")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="one row a repetition")
    parser.add_argument("--operators", type=Path, required=True, help="one row an operator")


@torch.no_grad()
def run(args: argparse.Namespace) -> None:
    """Write times, and what they are made of."""
    if not (args.weights or args.model):
        raise ConfigError("give --model or --weights.")
    model = enable(load_model(args.weights or args.model, args.dtype, args.device))
    contenders = [Contender(**entry) for entry in args.contenders]
    generator = torch.Generator().manual_seed(args.seed)
    size = (args.setting.batch, args.setting.prompt)
    prompt = torch.randint(0, model.config.vocab_size, size, generator=generator)
    named = {c.method: METHODS[c.method].kernel for c in contenders if c.method != FULL}
    kernels = {
        method: partial(untrained_kernels, name, model, **args.kernel)
        for method, name in named.items()
        if name is not None
    }
    bench = Bench(model, args.setting, prompt.to(model.device), kernels)
    before = conditions(bench.device)
    table = pd.DataFrame(list(repetitions(bench, contenders, args.forms, args.repetitions)))
    measured = table[table["form"] == FORMS[0]].dropna(subset="seconds")
    steps = {
        c: float(rows["step_seconds"].median())
        for c in contenders
        if len(rows := measured[is_of(measured, c)])
    }
    for contender in steps:
        for part, seconds in parts_of(bench, contender).items():
            table.loc[is_of(table, contender), part] = seconds
    found = pd.DataFrame(list(operator_rows(bench, contenders, steps)))
    bandwidth = copy_bandwidth(bench.device)
    common = {**args.label, **before, "copy_bytes_per_second": bandwidth}
    save_table(args.operators, found.assign(**common, repetitions=args.repetitions))
    save_table(args.out, table.assign(**args.label))
