"""Continue a prompt with a bounded cache, and print what the cache takes."""

from __future__ import annotations

import argparse
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``less-kv generate``."""
    parser.add_argument("--model", required=True, help="transformers folder or hub id")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--policy", help="leave out for the full cache")
    parser.add_argument("--budget", type=int, default=64, help="tokens")
    parser.add_argument("--kernels", help="checkpoint of trained kernels; none: the bare policy")
    parser.add_argument("--prompt", required=True, help="text, or - to read it from standard input")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.0, help="0: greedy")
    parser.add_argument("--stop", help="end at this text")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--prefill-chunk",
        type=int,
        metavar="TOKENS",
        help="read the prompt under the policy, in pieces; default: in full, then one cut",
    )


def run(args: argparse.Namespace) -> None:
    """Print the text, then the bytes of this cache and of the full one."""
    from ..cache import LessCache
    from ..decoding.generate import Decoding, generate
    from ..errors import ConfigError
    from ..policies import get_policy
    from ..training.checkpoint import kernels_for
    from ..transformer.interface import enable  # slow to import, and `less-kv --help` need not wait
    from ..transformer.weights import load_model, load_tokenizer

    if args.policy is None and (args.kernels or args.prefill_chunk):
        raise ConfigError("--kernels and --prefill-chunk need a --policy.")
    model = load_model(args.model, args.dtype, args.device)
    cache = None
    if args.policy is not None:
        kernels = None if args.kernels is None else kernels_for(model, args.kernels)
        policy = get_policy(args.policy, args.budget)
        prefill = "policy" if args.prefill_chunk else "full"
        cache = LessCache(enable(model).config, policy, kernels, prefill)  # type: ignore[arg-type]
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    decoding = Decoding(
        args.max_new_tokens, args.temperature, args.stop, args.seed, args.prefill_chunk
    )
    made = generate(model, load_tokenizer(args.model), [prompt], decoding, cache)
    print(made.texts[0])
    rate = made.new_tokens[0] / made.seconds
    print(
        f"\n{made.prompt_tokens[0]} + {made.new_tokens[0]} tokens, {rate:.1f} new tokens a second"
        f"\ncache {made.cache_bytes:,} bytes, full cache {made.full_bytes:,} bytes",
        file=sys.stderr,
    )
    if cache is not None:
        held = ", ".join(f"{part} {size:,}" for part, size in cache.memory().items())
        print(f"of which {held}", file=sys.stderr)
