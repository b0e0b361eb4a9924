"""Compare the two ways a bounded cache reads a prompt: in full with one cut, or under the policy.

    python benchmarks/prefill.py --model FOLDER --text BOOK.txt

Loss is that of the tokens after the prompt, teacher-forced through the cache; logits held are what
the prompt's attention needs at once in one layer.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from tabulate import tabulate
from transformers import DynamicCache
from transformers.cache_utils import Cache

from pipeline.cache import LessCache
from pipeline.policies import FAMILIES, get_policy
from pipeline.transformer.interface import enable
from pipeline.transformer.weights import load_model, load_tokenizer


@torch.inference_mode()
def read(
    model: object, ids: torch.Tensor, prompt: int, piece: int, cache: Cache
) -> tuple[float, float]:
    """(seconds of the prompt, nats a token after it) of sequences ``ids`` (B, S)."""
    started = time.perf_counter()
    for part in ids[:, :prompt].split(piece, 1):
        logits = model(part, past_key_values=cache, logits_to_keep=1).logits  # type: ignore[operator]
    seconds = time.perf_counter() - started
    losses = []
    for t in range(prompt, ids.shape[1]):
        losses.append(torch.nn.functional.cross_entropy(logits[:, -1].float(), ids[:, t]))
        logits = model(ids[:, t : t + 1], past_key_values=cache).logits  # type: ignore[operator]
    return seconds, float(torch.stack(losses).mean())


def main() -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="folder or hub id")
    parser.add_argument("--text", required=True, type=Path)
    parser.add_argument("--prompt", type=int, default=1024, help="tokens")
    parser.add_argument("--after", type=int, default=64, help="tokens whose loss counts")
    parser.add_argument(
        "--batch", type=int, default=4, help="windows of the text, one after another"
    )
    parser.add_argument("--budget", type=int, default=102)
    parser.add_argument("--piece", type=int, default=128, help="tokens read at once by 'policy'")
    args = parser.parse_args()
    model = enable(load_model(args.model))
    length = args.prompt + args.after
    text = args.text.read_text(encoding="utf-8")[: 20 * args.batch * length]
    ids = load_tokenizer(args.model)(text, return_tensors="pt").input_ids[0]
    ids = ids[: args.batch * length].view(args.batch, length)
    rows = [["full cache", "", *read(model, ids, args.prompt, args.prompt, DynamicCache())]]
    for name in FAMILIES:
        for mode, piece in (("full", args.prompt), ("policy", args.piece)):
            cache = LessCache(model.config, get_policy(name, args.budget), prefill=mode)  # type: ignore[arg-type]
            rows.append([name, mode, *read(model, ids, args.prompt, piece, cache)])
    print(f"{args.model}: {args.batch} x {args.prompt} tokens, budget {args.budget}\n")
    print(tabulate(rows, ["cache", "prefill", "prompt s", "nats a token after"], floatfmt=".3f"))


if __name__ == "__main__":
    main()
