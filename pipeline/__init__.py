"""LESS: a bounded key-value cache with a learned low-rank memory of what was evicted.

The library under the workflow. See ``docs/how_it_works.md`` for the tour; the public surface is
``load_model``, ``load_tokenizer``, ``get_policy``, ``evicted_at``, ``get_kernel``,
``load_kernels``, ``synthesize``, ``attach``, ``enable`` and ``LessCache``, imported from their
modules so that importing :mod:`pipeline` costs nothing.
"""

__version__ = "0.1.0"
