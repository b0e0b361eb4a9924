"""Choose the samples of a summaries task and write their prompts."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ..storage.files import save_sealed
from ..text.documents import load_pairs
from ..text.prompts import choose_samples, get_template


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``less-kv prompts``."""
    parser.add_argument("--dataset", type=json.loads, required=True, help="data set, as JSON")
    parser.add_argument("--dataset-file", nargs="?", type=Path, help="that it is read from")
    parser.add_argument("--template", required=True, help="name in resources/prompts.yaml")
    parser.add_argument("--shots", type=int, default=0, help="demonstrations in each prompt")
    parser.add_argument("--shots-from", type=json.loads, help="their data set, as JSON")
    parser.add_argument("--shots-file", nargs="?", type=Path, help="that they are read from")
    parser.add_argument("--model", type=Path, required=True, help="folder that holds the tokenizer")
    parser.add_argument("--room", type=int, required=True, help="longest prompt in tokens")
    parser.add_argument("--cut", type=int, help="cut documents so that prompts have this length")
    parser.add_argument(
        "--longest-cut", type=int, help="documents must fill prompts of this length"
    )
    parser.add_argument("--count", type=int, required=True, help="samples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="JSON")


def run(args: argparse.Namespace) -> None:
    """Write the stop text, the samples and the ids of documents that were skipped as too long."""
    from ..transformer.weights import load_tokenizer

    tokenizer = load_tokenizer(args.model)

    def length(text: str) -> int:
        return len(tokenizer(text, verbose=False)["input_ids"])

    template = get_template(args.template)
    samples, skipped = choose_samples(
        load_pairs(args.dataset, args.dataset_file),
        template,
        length,
        args.room,
        args.count,
        args.seed,
        shots=args.shots,
        pool=load_pairs(args.shots_from, args.shots_file) if args.shots else (),
        cut=None if args.cut is None else (args.cut, args.longest_cut or args.cut),
    )
    print(f"{len(samples)} prompts; {len(skipped)} documents were too long", file=sys.stderr)
    save_sealed(
        args.out,
        {
            "stop": template.stop,
            "samples": [sample.as_dict() for sample in samples],
            "skipped": skipped,
            "dataset": args.dataset,
            "template": args.template,
            "seed": args.seed,
        },
    )
