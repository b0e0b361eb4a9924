"""Attention maps of chosen heads, full and approximated, and the spectrum of what is left out.

Queries and keys are those of the full model on one window of text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from ..errors import ConfigError
from ..eviction import Scores, evicted_at
from ..kernels import Kernel
from ..policies import Policy
from ..storage.files import save_table
from ..storage.tensors import load_tensors, save_tensors
from ..transformer.interface import record
from ..transformer.shape import Shape, model_shape
from .fidelity import attention_rows, residual_spectrum

PIXELS = 256
"""Rows and columns of a map at most; longer windows are averaged in blocks."""
LINES = ("full", "residual", "recovered")
"""What :func:`residual_spectrum` gives, by name."""


@dataclass(frozen=True)
class Shown:
    """A policy whose maps are drawn, and the kernels that correct it (None: the policy alone)."""

    policy: Policy
    kernels: Sequence[Kernel] | None = None


def pooled(rows: torch.Tensor) -> torch.Tensor:
    """Return attention rows (S, S) with at most :data:`PIXELS` queries and keys, block by block."""
    block = -(-rows.shape[0] // PIXELS)
    return F.avg_pool2d(rows[None], block, ceil_mode=True)[0]


def maps_of(
    q: torch.Tensor,
    k: torch.Tensor,
    head: int,
    policy: Policy,
    kernels: dict[str, Kernel | None],
    scores: Scores,
) -> dict[str, torch.Tensor]:
    """Return maps (T, T) of one head: ``full``, and the policy's by the name of its kernel.

    Args:
        q: (1, H, S, D). k: (1, G, S, D).
        kernels: what corrects the policy, None for the policy alone, by the map's name.
    """
    times = evicted_at(q, k, policy, scores)
    queries = torch.arange(q.shape[2], device=q.device)
    group, place = divmod(head, q.shape[1] // k.shape[1])
    maps: dict[str, torch.Tensor] = {}
    for name, kernel in kernels.items():
        parts = [
            torch.stack([rows[0, group, place] for rows in pair])
            for pair in attention_rows(q, k, times, queries, kernel)
        ]
        true, approximate = torch.cat(parts, 1)
        maps["full"], maps[name] = pooled(true), pooled(approximate)
    return maps


def spectrum_of(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: int, head: int, kept: int
) -> pd.DataFrame:
    """Return the spectra of one head as rows, one a singular value or rank."""
    group = head // (q.shape[1] // k.shape[1])
    lines = residual_spectrum(q[0, head], k[0, group], v[0, group], kept)
    about = {"layer": layer, "head": head}
    columns = {name: line.cpu().numpy() for name, line in zip(LINES, lines, strict=True)}
    parts = [
        pd.DataFrame({"index": range(len(values)), "value": values}).assign(
            **about, kind=name, kept=kept
        )
        for name, values in columns.items()
    ]
    return pd.concat(parts, ignore_index=True)


def check_heads(heads: Sequence[tuple[int, int]], shape: Shape) -> None:
    """See that a model has the heads.

    Raises:
        ConfigError: it lacks one.
    """
    for layer, head in heads:
        if not (0 <= layer < shape.num_layers and 0 <= head < shape.num_heads):
            raise ConfigError(
                f"there is no head {head} in layer {layer}: the model has {shape.num_layers} "
                f"layers of {shape.num_heads} heads."
            )


@torch.inference_mode()
def measure_maps(
    model: PreTrainedModel,
    samples: Path,
    heads: Sequence[tuple[int, int]],
    shown: Sequence[Shown],
    method: str,
    scores: Scores,
    out: Path,
    spectrum: Path,
) -> None:
    """Write maps named ``l<layer>.h<head>.<kind>`` of one window, and spectra of the same heads.

    A kind is ``full``, the name of a policy, or ``<policy>+<method>`` with its kernels.

    Args:
        samples: the first window is shown.
        heads: (layer, head).
        shown: policies of one budget.
        method: what the kernels make of a policy.

    Raises:
        ConfigError: a head that the model lacks.
        DataError: samples are missing or damaged.
    """
    check_heads(heads, model_shape(model.config))
    windows, header = load_tensors(samples, "samples")
    budget = shown[0].policy.budget
    maps: dict[str, torch.Tensor] = {}
    spectra: list[pd.DataFrame] = []

    def receive(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        for head in (head for wanted, head in heads if wanted == layer):
            for each in shown:
                name = each.policy.name
                kernels: dict[str, Kernel | None] = {name: None}
                if each.kernels is not None:
                    kernels[f"{name}+{method}"] = each.kernels[layer]
                for kind, weights in maps_of(q, k, head, each.policy, kernels, scores).items():
                    maps[f"l{layer}.h{head}.{kind}"] = weights.half().cpu()
            spectra.append(spectrum_of(q, k, v, layer, head, budget))

    tokens = windows["tokens"][:1].long().to(model.device)
    with record(model, receive):
        model(tokens, use_cache=False, logits_to_keep=1)
    about = {
        "heads": [list(pair) for pair in heads],
        "policies": [each.policy.name for each in shown],
        "method": method,
        "budget": budget,
        "document": header["documents"][0],
        "tokens": tokens.shape[1],
    }
    save_tensors(out, maps, "attention maps", **about)
    save_table(spectrum, pd.concat(spectra, ignore_index=True))
