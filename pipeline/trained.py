"""Trained kernels for the model at hand. (A checkpoint alone needs no model, nor its library.)"""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from pipeline.checkpoint import Heads, load_kernels
from pipeline.kernels import LessKernel
from pipeline.models import model_shape


def kernels_for(model: PreTrainedModel, path: str | Path) -> list[LessKernel]:
    """The kernels of all layers of ``model``, on its device, products in its dtype.

    Raises:
        DataError: as :func:`pipeline.checkpoint.load_kernels`, which checks them against the model.
    """
    shape = model_shape(model.config)
    heads = Heads(shape.num_heads, shape.num_kv_heads, shape.head_dim)
    kernels = load_kernels(path, heads, shape.num_layers, model.dtype)
    return [kernel.to(model.device) for kernel in kernels]
