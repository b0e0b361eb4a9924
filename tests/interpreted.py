"""Imported for its effect: without a GPU, Triton kernels run in its interpreter.

Triton looks at the variable when it is first imported, which transformers does on the way.
"""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
