"""Load models and tokenizers, and attach policies to them: a face of the folders below."""

from __future__ import annotations

from .attention import attach
from .transformer.shape import Shape, model_shape
from .transformer.weights import byte_tokenizer, load_model, load_tokenizer, materialise

__all__ = [
    "Shape",
    "attach",
    "byte_tokenizer",
    "load_model",
    "load_tokenizer",
    "materialise",
    "model_shape",
]
