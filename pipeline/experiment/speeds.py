"""How long a GPU takes to read text and to continue it, at assumed speeds.

Operations are counted, and what decode steps read from memory; the host's own time is not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .latency import Setting

Config = Mapping[str, Any]

OPERATIONS_PER_SECOND = 1.0e14
"""Assumed of one GPU in half precision: about a third of an A100's peak."""
BYTES_PER_SECOND = 1.0e12
"""Assumed of its memory, which decode steps wait for: about half of an A100's."""
HALF = 2
"""Bytes of a half-precision number."""
FORWARD, BACKWARD = 2, 4
"""Operations a weight and token, in a forward pass and in a backward one."""


def cache_bytes(config: Config, model: str, tokens: float) -> float:
    """Return the memory of the keys and values of ``tokens`` in half precision, all layers."""
    own = config["models"][model]
    shape = own["shape"]
    numbers = 2 * own["num_layers"] * shape["num_kv_heads"] * shape["head_dim"]
    return float(HALF * numbers * tokens)


def reading(config: Config, model: str, tokens: float, window: float = math.inf) -> float:
    """Return the seconds of forward passes over ``tokens`` in windows, half of one seen by each."""
    own = config["models"][model]
    shape = own["shape"]
    attention = own["num_layers"] * shape["num_heads"] * shape["head_dim"] * min(tokens, window)
    return float(FORWARD * tokens * (shape["parameters"] + attention) / OPERATIONS_PER_SECOND)


def continuing(config: Config, model: str, setting: Setting, cached: int) -> float:
    """Return the seconds of prompts and their continuation, whose steps read ``cached`` tokens."""
    weights = config["models"][model]["shape"]["parameters"]
    moved = HALF * weights + cache_bytes(config, model, setting.batch * cached)
    work = FORWARD * weights * setting.batch
    step = moved / BYTES_PER_SECOND + work / OPERATIONS_PER_SECOND
    read = setting.batch * reading(config, model, setting.prompt)
    return float(read + setting.new_tokens * step)
