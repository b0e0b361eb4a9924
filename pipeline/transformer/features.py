"""Write the attention features of a model to disk: q, k, v of every layer, after rotary embedding.

The model runs once over the samples with full attention. Each layer gets a file of its own with
its output projection, so that training needs neither the model nor `transformers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ..errors import ConfigError
from ..runtime.progress import Progress
from ..storage.disk import require_space
from ..storage.features import layer_file
from ..storage.files import sha256, whole_folder
from ..storage.tensors import create_tensors, load_tensors, tensor_bytes
from .interface import attention_layers, output_projection, record
from .shape import Shape, model_shape

Form = dict[str, tuple[torch.dtype, tuple[int, ...]]]
"""Types and shapes of a file's tensors, by name."""


class Enough(Exception):
    """The last layer that is wanted was received; the model need not run further."""


def form_of(shape: Shape, weight: torch.Tensor, count: int, length: int) -> Form:
    """Return the tensors of one layer's file.

    ``q`` (N, H, S, D), ``k`` and ``v`` (N, G, S, D) are float16, ``o_weight`` is float32.
    """
    heads = {"q": shape.num_heads, "k": shape.num_kv_heads, "v": shape.num_kv_heads}
    form: Form = {
        name: (torch.float16, (count, number, length, shape.head_dim))
        for name, number in heads.items()
    }
    form["o_weight"] = (torch.float32, tuple(weight.shape))
    return form


@torch.inference_mode()
def dump_features(
    model: PreTrainedModel,
    samples: Path,
    layers: range,
    out: Path,
    batch_size: int,
    identity: Mapping[str, str],
) -> None:
    """Write a folder of the features of ``layers``, one file a layer; see :func:`form_of`.

    Args:
        samples: token windows (N, S).
        identity: entries of the files' headers that say what the features are of.

    Raises:
        ConfigError: layers that the model lacks.
        DataError: samples are missing or damaged, or the disk has no room.
    """
    windows, _ = load_tensors(samples, "samples")
    tokens = windows["tokens"].long()
    count, length = tokens.shape
    shape = model_shape(model.config)
    if not 0 <= layers.start < layers.stop <= shape.num_layers:
        raise ConfigError(
            f"layers {layers.start}..{layers.stop} do not lie in the model's {shape.num_layers}."
        )
    weights = [output_projection(layer).weight for layer in attention_layers(model)]
    forms = {layer: form_of(shape, weights[layer], count, length) for layer in layers}
    header = {"samples": sha256(samples), **identity}
    with whole_folder(out) as folder, ExitStack() as files:
        need = sum(map(tensor_bytes, forms.values()))
        require_space(out.parent, need, "lower `dump.layers_per_job` and set `dump.disk_gib`")
        written: dict[int, dict[str, torch.Tensor]] = {}
        for layer, form in forms.items():
            written[layer] = files.enter_context(
                create_tensors(layer_file(folder, layer), form, "features", layer=layer, **header)
            )
            written[layer]["o_weight"].copy_(weights[layer])
        rows = slice(0, 0)

        def receive(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
            if layer in written:
                for name, value in (("q", q), ("k", k), ("v", v)):
                    written[layer][name][rows].copy_(value)
            if layer == layers.stop - 1:
                raise Enough

        progress = Progress("dump", count)
        with record(model, receive):
            for first in range(0, count, batch_size):
                rows = slice(first, min(first + batch_size, count))
                with suppress(Enough):
                    model(tokens[rows].to(model.device), use_cache=False, logits_to_keep=1)
                for _ in range(rows.stop - rows.start):
                    progress.step()
