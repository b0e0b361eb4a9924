"""Attention maps of chosen heads, full and approximated, and the spectrum of what is left out.

Queries and keys are those of the full model on one window of text.
"""

from __future__ import annotations

import argparse
from itertools import zip_longest
from pathlib import Path

import pandas as pd
import torch

from ..errors import ConfigError
from ..measure.fidelity import residual_spectrum
from ..measure.maps import Shown, maps_of
from ..storage.files import save_table
from ..storage.tensors import load_tensors, save_tensors
from ..training.checkpoint import kernels_for
from ..transformer.interface import record
from ..transformer.shape import model_shape
from ..transformer.weights import load_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``less-kv maps``."""
    parser.add_argument("--model", type=Path, required=True, help="transformers folder")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--samples", type=Path, required=True, help="the first window is shown")
    parser.add_argument(
        "--heads", type=layer_and_head, nargs="+", required=True, metavar="LAYER:HEAD"
    )
    parser.add_argument("--policies", nargs="+", required=True)
    parser.add_argument(
        "--kernels", type=Path, nargs="*", default=[], help="for each policy; none: the bare ones"
    )
    parser.add_argument("--budget", type=int, required=True, help="tokens")
    parser.add_argument("--scores", default="cached", help="cached or full")
    parser.add_argument("--out", type=Path, required=True, help="maps (safetensors)")
    parser.add_argument("--spectrum", type=Path, required=True, help="singular values (parquet)")


def layer_and_head(text: str) -> tuple[int, int]:
    """``3:5`` to (3, 5)."""
    layer, _, head = text.partition(":")
    return int(layer), int(head)


@torch.inference_mode()
def run(args: argparse.Namespace) -> None:
    """Write maps named ``l<layer>.h<head>.<kind>`` and the spectra of the same heads."""
    samples, header = load_tensors(args.samples, "samples")
    model = load_model(args.model, args.dtype, args.device)
    shape = model_shape(model.config)
    for layer, head in args.heads:
        if not (0 <= layer < shape.num_layers and 0 <= head < shape.num_heads):
            raise ConfigError(
                f"there is no head {head} in layer {layer}: the model has {shape.num_layers} "
                f"layers of {shape.num_heads} heads."
            )
    if len(args.kernels) not in (0, len(args.policies)):
        raise ConfigError(
            f"{len(args.policies)} --policies have {len(args.kernels)} --kernels; give one for "
            "each, in the same order, or none."
        )
    kernels = [kernels_for(model, path) for path in args.kernels]
    shown = [Shown(*each) for each in zip_longest(args.policies, kernels)]
    maps: dict[str, torch.Tensor] = {}
    spectra: list[pd.DataFrame] = []

    def receive(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        for head in (head for wanted, head in args.heads if wanted == layer):
            for each in shown:
                found = maps_of(q, k, head, each, layer, args.budget, args.scores)
                maps.update(
                    {f"l{layer}.h{head}.{kind}": x.half().cpu() for kind, x in found.items()}
                )
            group = head * shape.num_kv_heads // shape.num_heads
            values = residual_spectrum(q[0, head], k[0, group], v[0, group], args.budget)
            for kind, column in zip(("full", "residual", "recovered"), values, strict=True):
                spectra.append(
                    pd.DataFrame({"value": column.cpu().numpy()})
                    .rename_axis("index")
                    .reset_index()
                    .assign(layer=layer, head=head, kind=kind, kept=args.budget)
                )

    tokens = samples["tokens"][:1].long().to(args.device)
    with record(model, receive):
        model(tokens, use_cache=False, logits_to_keep=1)
    about = {
        "heads": args.heads, "policies": args.policies,
        "budget": args.budget, "document": header["documents"][0], "tokens": tokens.shape[1],
    }  # fmt: skip
    save_tensors(args.out, maps, "attention maps", **about)
    save_table(args.spectrum, pd.concat(spectra, ignore_index=True))
