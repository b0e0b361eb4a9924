"""Measure teacher-forced perplexity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from ..runtime.progress import Progress
from ..storage.tensors import load_tensors
from .variants import Compared


@torch.inference_mode()
def window_nll(model: Any, tokens: torch.Tensor) -> float:
    """Return the summed negative log-likelihood, in nats, of tokens (1, S) given those before."""
    logits = model(tokens, use_cache=False).logits[0, :-1].float()
    return float(F.cross_entropy(logits, tokens[0, 1:], reduction="sum"))


def measure_perplexity(
    model: PreTrainedModel, samples: Path, compared: Compared, out: Path
) -> None:
    """Write one row a method, train sparsity and window: summed loss, tokens and words.

    Raises:
        DataError: samples or kernels are missing, damaged or of another model.
    """
    windows, header = load_tensors(samples, "samples")
    variants = compared.variants(model)
    progress = Progress("evaluate", len(variants) * len(windows["tokens"]))
    rows: list[dict[str, Any]] = []
    for variant in variants:
        with variant.attached(model, compared.scores):
            for index, tokens in enumerate(windows["tokens"].long().to(model.device)):
                nll = window_nll(model, tokens[None])
                window = {
                    "document": header["documents"][index],
                    "tokens": len(tokens) - 1,
                    "words": int(windows["words"][index]),
                    "nll": nll,
                }
                rows.append(variant.columns | window)
                progress.step(f"{variant.method}: {nll / (len(tokens) - 1):.3f} nats a token")
    compared.save(out, rows, "perplexity")
