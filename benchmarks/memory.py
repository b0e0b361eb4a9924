"""What a bounded cache holds against the full one, by model, batch and length, and measured.

    python benchmarks/memory.py

The first table is arithmetic on model shapes (:mod:`pipeline.decoding.memory`). For the
second, a process of its own fills the cache of a whole model, prompt by layer, and takes decode
steps; the peak of its resident memory over those, less what it had before, is compared with the
first. The third shows resident memory over a long generation of a small random model.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import psutil
import torch
from tabulate import tabulate
from transformers import FalconConfig, LlamaConfig, LlamaForCausalLM, PreTrainedConfig

from pipeline.cache import LessCache
from pipeline.decoding.memory import expected_memory, full_cache_bytes
from pipeline.kernels import Kernel, get_kernel
from pipeline.policies import budget_tokens, get_policy
from pipeline.runtime.machine import limit_threads
from pipeline.transformer.interface import enable
from pipeline.transformer.shape import model_shape

MIB = 2**20
CONFIGS: dict[str, PreTrainedConfig] = {
    "Llama 2 7B": LlamaConfig(
        hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, max_position_embeddings=4096
    ),
    "Llama 2 13B": LlamaConfig(
        hidden_size=5120, num_hidden_layers=40, num_attention_heads=40, max_position_embeddings=4096
    ),
    "Falcon 7B": FalconConfig(
        hidden_size=4544, num_hidden_layers=32, num_attention_heads=71, multi_query=True,
        alibi=False, max_position_embeddings=2048,
    ),
    "SmolLM2 135M": LlamaConfig(
        hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        max_position_embeddings=2048,
    ),
}  # fmt: skip
"""Shapes only. SmolLM2's budget refers to 2048 tokens here, as its experiments do."""
SPARSITY, RANK = 0.05, 8


def less_kernels(config: PreTrainedConfig) -> list[Kernel]:
    """Small untrained kernels that fit ``config``; their own size does not count."""
    shape = model_shape(config)
    return [
        get_kernel(
            "less", num_heads=shape.num_heads, num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim, kernel_size=RANK, hidden_size=8,
        )
        for _ in range(shape.num_layers)
    ]  # fmt: skip


def arithmetic() -> list[list[object]]:
    """Rows of model, batch, length, full cache, bounded cache by part (MiB), and the share."""
    rows: list[list[object]] = []
    for name, config in CONFIGS.items():
        context = model_shape(config).context
        policy = get_policy("h2o", budget_tokens(SPARSITY, context))
        for batch, length in ((1, context), (16, context // 2), (16, context)):
            full = full_cache_bytes(config, batch, length, torch.float16)
            parts = expected_memory(config, policy, batch, torch.float16, RANK)
            held = sum(parts.values())
            sizes = [full, *parts.values(), held]
            rows.append([name, batch, length, *(x / MIB for x in sizes), 100 * held / full])
    return rows


def peak(name: str, batch: int) -> tuple[float, float]:
    """(expected, measured) MiB of a cache that reads a prompt of twice its budget and goes on."""
    limit_threads(1)
    config = CONFIGS[name]
    config._attn_implementation = "less"
    shape = model_shape(config)
    policy = get_policy("h2o", budget_tokens(SPARSITY, shape.context))
    cache = LessCache(config, policy, less_kernels(config))

    def read(cache: LessCache, layer: int, tokens: int) -> None:
        q = torch.ones(batch, shape.num_heads, tokens, shape.head_dim, dtype=torch.float16)
        k = torch.ones(batch, shape.num_kv_heads, tokens, shape.head_dim, dtype=torch.float16)
        cache.layers[layer].attend(q, *cache.update(k, k.clone(), layer), None)  # type: ignore[union-attr]

    prompt = 2 * policy.budget
    warm = LessCache(config, policy, less_kernels(config))
    for tokens in (prompt, 1):  # load the compiled code
        read(warm, 0, tokens)
    del warm
    process = psutil.Process()
    before = process.memory_info().rss
    for layer in range(shape.num_layers):
        read(cache, layer, prompt)
    highest = 0
    for layer in range(shape.num_layers):
        read(cache, layer, 1)
        highest = max(highest, process.memory_info().rss)
    expected = expected_memory(config, policy, batch, torch.float16, RANK)
    assert expected == cache.memory()
    return sum(expected.values()) / MIB, (highest - before) / MIB


def generation(tokens: int, every: int) -> list[list[object]]:
    """Rows of tokens read, resident MiB, and what a full cache would hold by then (MiB)."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=2 * tokens,
    )  # fmt: skip
    model = enable(LlamaForCausalLM(config).eval())
    cache = LessCache(config, get_policy("h2o", 64), less_kernels(config))
    batch, rows = 8, []
    token = torch.ones(batch, 1, dtype=torch.long)
    with torch.inference_mode():
        model(token.expand(-1, 128), past_key_values=cache)
        for _ in range(10):  # load the compiled code
            model(token, past_key_values=cache)
        for step in range(tokens + 1):
            if step % every == 0:
                seen = cache.get_seq_length()
                full = full_cache_bytes(config, batch, seen, torch.float32)
                rows.append([seen, psutil.Process().memory_info().rss / MIB, full / MIB])
            token = model(token, past_key_values=cache).logits[:, -1:].argmax(-1)
    return rows  # type: ignore[return-value]


def alone(function: Callable[..., object], *arguments: object) -> object:
    """The result of ``function`` in a fresh process, whose memory is its own.

    Its allocator gives freed blocks back at once, so that resident memory is what is held.
    """
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**16)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=20_000, help="of the long generation")
    args = parser.parse_args()
    print(f"Sizes in MiB, 16-bit, H2O at {SPARSITY:.0%} of the context, R = {RANK}\n")
    head = [
        "model",
        "batch",
        "tokens",
        "full",
        "slots",
        "scores",
        "state",
        "features",
        "LESS",
        "% of full",
    ]
    print(tabulate(arithmetic(), head, floatfmt=".1f"))
    rows = []
    for name, batch in (("SmolLM2 135M", 64), ("Falcon 7B", 64), ("Llama 2 7B", 4)):
        expected, measured = alone(peak, name, batch)  # type: ignore[misc]
        rows.append([name, batch, expected, measured, 100 * (measured / expected - 1)])
    print()
    print(tabulate(rows, ["model", "batch", "expected", "peak", "% more"], floatfmt=".1f"))
    rows = alone(generation, args.tokens, max(args.tokens // 10, 1))  # type: ignore[assignment]
    print()
    print(tabulate(rows, ["tokens read", "resident", "full cache"], floatfmt=".1f"))


if __name__ == "__main__":
    main()
