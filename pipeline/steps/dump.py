"""Write the attention features of a model to disk: q, k, v of every layer, after rotary embedding.

The model runs once over the samples with full attention. Each layer gets a file of its own with
its output projection, so that training needs neither the model nor `transformers`.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack, suppress
from pathlib import Path

import torch

from ..errors import ConfigError
from ..runtime.progress import Progress
from ..storage.disk import require_space
from ..storage.features import layer_file
from ..storage.files import sha256, whole_folder
from ..storage.tensors import create_tensors, load_tensors, tensor_bytes
from ..transformer.features import _Enough
from ..transformer.interface import attention_layers, output_projection, record
from ..transformer.shape import model_shape
from ..transformer.weights import load_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``less-kv dump``."""
    parser.add_argument("--model", type=Path, required=True, help="transformers folder")
    parser.add_argument("--dtype", default="float32", help="of weights and forward passes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--samples", type=Path, required=True)
    parser.add_argument("--layers", type=int, nargs=2, required=True, metavar=("START", "STOP"))
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True, help="folder of layer files")


@torch.inference_mode()
def run(args: argparse.Namespace) -> None:
    """Write ``q`` (N, H, S, D), ``k``, ``v`` (N, G, S, D) float16 and ``o_weight`` a layer."""
    samples, _ = load_tensors(args.samples, "samples")
    tokens = samples["tokens"].long()
    model = load_model(args.model, args.dtype, args.device)
    shape = model_shape(model.config)
    start, stop = args.layers
    if not 0 <= start < stop <= shape.num_layers:
        raise ConfigError(f"layers {start}..{stop} do not lie in the model's {shape.num_layers}.")
    count, length = tokens.shape
    half = torch.float16
    heads = {"q": shape.num_heads, "k": shape.num_kv_heads, "v": shape.num_kv_heads}
    weights = [output_projection(layer).weight for layer in attention_layers(model)]
    identity = {"samples": sha256(args.samples), "model": str(args.model), "dtype": args.dtype}
    forms: dict[int, dict[str, tuple[torch.dtype, tuple[int, ...]]]] = {}
    for layer in range(start, stop):
        forms[layer] = {n: (half, (count, h, length, shape.head_dim)) for n, h in heads.items()}
        forms[layer]["o_weight"] = (torch.float32, tuple(weights[layer].shape))
    with whole_folder(args.out) as folder, ExitStack() as files:
        need = sum(map(tensor_bytes, forms.values()))
        require_space(args.out.parent, need, "lower `dump.layers_per_job` and set `dump.disk_gib`")
        written: dict[int, dict[str, torch.Tensor]] = {}
        for layer, form in forms.items():
            written[layer] = files.enter_context(
                create_tensors(layer_file(folder, layer), form, "features", layer=layer, **identity)
            )
            written[layer]["o_weight"].copy_(weights[layer])
        rows = slice(0, 0)

        def receive(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
            if layer in written:
                for name, value in (("q", q), ("k", k), ("v", v)):
                    written[layer][name][rows].copy_(value)
            if layer == stop - 1:
                raise _Enough

        progress = Progress("dump", count)
        with record(model, receive):
            for first in range(0, count, args.batch_size):
                rows = slice(first, min(first + args.batch_size, count))
                with suppress(_Enough):
                    model(tokens[rows].to(args.device), use_cache=False, logits_to_keep=1)
                for _ in range(rows.stop - rows.start):
                    progress.step()
