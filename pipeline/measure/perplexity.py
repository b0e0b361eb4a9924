"""Measure teacher-forced perplexity."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F


@torch.inference_mode()
def window_nll(model: Any, tokens: torch.Tensor) -> float:
    """Summed negative log-likelihood in nats of tokens (1, S) given those before them."""
    logits = model(tokens, use_cache=False).logits[0, :-1].float()
    return float(F.cross_entropy(logits, tokens[0, 1:], reduction="sum"))
