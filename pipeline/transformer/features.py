"""Record the attention features of a model, layer by layer."""

from __future__ import annotations


class _Enough(Exception):
    """The last layer of the job was received; the model need not run further."""
