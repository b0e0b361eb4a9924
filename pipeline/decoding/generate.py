"""Generate text with a bounded or a full cache, and say what it took."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
)

from ..cache import LessCache
from ..errors import ConfigError
from .memory import full_cache_bytes


@dataclass(frozen=True)
class Decoding:
    """How to continue a prompt.

    Attributes:
        max_new_tokens: at most this many.
        temperature: of sampling over the whole vocabulary; 0 is greedy.
        stop: generation ends at this text, which is cut off.
        seed: of sampling; unless `generate` is given one a prompt, the next prompt takes the next.
        prefill_chunk: read the prompt in pieces of this many tokens; needs a cache with
            ``prefill="policy"``.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    stop: str | None = None
    seed: int = 0
    prefill_chunk: int | None = None


@dataclass(frozen=True)
class Generated:
    """What came of a batch of prompts.

    Attributes:
        texts: the continuations, without special tokens.
        prompt_tokens, new_tokens: of each sequence; padding does not count.
        seconds: for the batch, prompt and generation.
        cache_bytes: held by the cache at the end.
        full_bytes: what the library's full cache holds at that length.
    """

    texts: list[str]
    prompt_tokens: list[int]
    new_tokens: list[int]
    seconds: float
    cache_bytes: int
    full_bytes: int


class _StopAt(StoppingCriteria):
    """Each sequence ends once its continuation contains a text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: str, prompt: int) -> None:
        self.tokenizer, self.stop, self.prompt = tokenizer, stop, prompt
        self.tail = 2 * len(stop.encode()) + 2  # tokens that must hold a stop text just completed
        self.lengths: dict[int, int] = {}
        """New tokens of each sequence that has stopped; what follows is padding."""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        new = input_ids[:, max(self.prompt, input_ids.shape[1] - self.tail) :]
        done = [self.stop in text for text in self.tokenizer.batch_decode(new)]
        for row in (row for row, stopped in enumerate(done) if stopped):
            self.lengths.setdefault(row, input_ids.shape[1] - self.prompt)
        return torch.tensor(done, device=input_ids.device)


class _SampleBySeed(LogitsProcessor):
    """Adds noise whose largest sum with the logits is a sample of their softmax (Gumbel).

    Each sequence has its own stream of noise, the same on every device, so that its text depends
    neither on the batch it is in nor on anything drawn before, and caches that give nearly the
    same logits nearly always draw the same token.
    """

    def __init__(self, temperature: float, seeds: Sequence[int]) -> None:
        self.temperature = temperature
        self.streams = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        size = scores.shape[-1]
        drawn = [torch.empty(size).exponential_(generator=stream) for stream in self.streams]
        return scores / self.temperature - torch.stack(drawn).log().to(scores.device)


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    decoding: Decoding,
    cache: LessCache | None = None,
    seeds: Sequence[int] | None = None,
) -> Generated:
    """Continue a batch of prompts, padded on the left.

    Args:
        model: prepared by :func:`pipeline.transformer.interface.enable` if ``cache`` is given.
        cache: fresh or reset; None for the library's full cache.
        seeds: of sampling, one a prompt; by default they count up from ``decoding.seed``.

    Raises:
        ConfigError: not one seed a prompt.
    """
    if seeds is not None and len(seeds) != len(prompts):
        raise ConfigError(f"{len(prompts)} prompts have {len(seeds)} seeds; give one for each.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    inputs = tokenizer(list(prompts), return_tensors="pt", padding=True, padding_side="left")
    ids, mask = inputs["input_ids"].to(model.device), inputs["attention_mask"].to(model.device)
    length = ids.shape[1]
    options: dict[str, Any] = {"do_sample": False}
    if decoding.temperature > 0:
        if seeds is None:
            seeds = range(decoding.seed, decoding.seed + len(prompts))
        noise = _SampleBySeed(decoding.temperature, seeds)
        options["logits_processor"] = LogitsProcessorList([noise])
    stopped: dict[int, int] = {}
    if decoding.stop is not None:
        criterion = _StopAt(tokenizer, decoding.stop, length)
        options["stopping_criteria"], stopped = [criterion], criterion.lengths
    if decoding.prefill_chunk is not None:
        options["prefill_chunk_size"] = decoding.prefill_chunk
    if cache is not None:
        options["past_key_values"] = cache
    started = time.monotonic()
    out: torch.Tensor = model.generate(  # type: ignore[operator]
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=decoding.max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        **options,
    )
    seconds = time.monotonic() - started
    new = out[:, length:]
    texts: list[str] = tokenizer.batch_decode(new, skip_special_tokens=True)
    if decoding.stop is not None:
        texts = [text.partition(decoding.stop)[0] for text in texts]
    held = out.shape[1] - 1  # the last token is never read
    full = full_cache_bytes(model.config, len(prompts), held, model.dtype)
    return Generated(
        texts=texts,
        prompt_tokens=mask.sum(-1).tolist(),
        new_tokens=[
            min(ended, stopped.get(row, ended))
            for row, ended in enumerate(_lengths(new, _end_ids(model)))
        ],
        seconds=seconds,
        cache_bytes=full if cache is None else sum(cache.memory().values()),
        full_bytes=full,
    )


def _end_ids(model: PreTrainedModel) -> list[int]:
    """Return the tokens that end a generation."""
    ids = getattr(model.generation_config, "eos_token_id", None)
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)


def _lengths(new: torch.Tensor, ends: list[int]) -> list[int]:
    """Return new tokens of each sequence up to and with the first end token.

    The rest is padding.
    """
    ended = torch.isin(new, torch.tensor(ends, dtype=new.dtype, device=new.device))
    lengths: list[int] = ((ended.cumsum(-1) - ended.to(torch.int64)) == 0).sum(-1).tolist()
    return lengths
