"""Write summaries with a bounded cache, batch by batch, and score them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..cache import LessCache
from ..decoding.generate import Decoding, Generated, generate
from ..runtime.journal import Journal, identity
from ..runtime.progress import Progress
from ..storage.files import load_sealed
from ..text.rouge import rouge
from .variants import Compared

Sample = Mapping[str, Any]
"""One of the ``samples`` that `less-kv prompts` wrote."""


def batches(samples: Sequence[Sample], size: int) -> list[Sequence[Sample]]:
    """Return consecutive samples, ``size`` at a time; a restart keeps to the same batches."""
    return [samples[start : start + size] for start in range(0, len(samples), size)]


def scored(batch: Sequence[Sample], made: Generated) -> list[dict[str, Any]]:
    """Return a row for each sample of a batch; the batch's time is shared evenly."""
    seconds = made.seconds / len(batch)
    return [
        {
            "document": sample["document"],
            "prompt_tokens": prompt_tokens,
            "new_tokens": new_tokens,
            "seconds": seconds,
            "tokens_per_second": new_tokens / seconds,
            "text": text,
            "reference": sample["reference"],
            **rouge(text, sample["reference"]),
        }
        for sample, text, prompt_tokens, new_tokens in zip(
            batch, made.texts, made.prompt_tokens, made.new_tokens, strict=True
        )
    ]


def measure_summaries(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Path,
    compared: Compared,
    *,
    max_new_tokens: int,
    temperature: float,
    batch_size: int,
    folder: Path,
    resume: Path,
    out: Path,
) -> None:
    """Write one row a method, train sparsity and sample: text, scores, lengths and time.

    Finished batches are kept under ``resume`` until all are, so that a kill costs one batch.

    Args:
        model: enabled for a bounded cache. A bounded cache can only score what it holds, whatever
            ``compared.scores`` says: the prompt's rows in full, then cached keys.
        prompts: what `less-kv prompts` wrote.
        temperature: 0 takes the likeliest token.
        folder: that the model was loaded from.

    Raises:
        DataError: prompts or kernels are missing, damaged or of another model.
    """
    chosen = load_sealed(prompts)
    options = {
        "dtype": str(model.dtype),
        "device": model.device.type,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "batch_size": batch_size,
    }
    key = identity("summaries", folder, [prompts, *compared.kernels], **options, **compared.matters)
    journal = Journal(resume / f"{key}.jsonl")
    done = {(row["method"], row["train_sparsity"], row["document"]) for row in journal.rows}
    decoding = Decoding(max_new_tokens, temperature, chosen["stop"])
    variants = compared.variants(model)
    progress = Progress("summaries", len(variants) * len(chosen["samples"]) - len(done))
    for variant in variants:
        cache = None  # the full one, which is the library's own
        if variant.policy is not None:
            cache = LessCache(model.config, variant.policy, variant.kernels)
        for batch in batches(chosen["samples"], batch_size):
            if (variant.method, variant.train_sparsity, batch[0]["document"]) in done:
                continue
            if cache is not None:
                cache.reset()
            texts, seeds = ([sample[key] for sample in batch] for key in ("prompt", "seed"))
            made = generate(model, tokenizer, texts, decoding, cache, seeds)
            rows = [variant.columns | row for row in scored(batch, made)]
            journal.extend(rows)
            for row in rows:
                progress.step(f"{variant.method}: {row['tokens_per_second']:.1f} tokens a second")
    compared.save(out, journal.rows, "summaries", skipped=len(chosen["skipped"]))
    shutil.rmtree(resume, ignore_errors=True)
