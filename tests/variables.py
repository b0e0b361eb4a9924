"""Imported for its effect: variables that libraries read when they are first imported.

Without a GPU, Triton kernels run in its interpreter. Compiled loops are kept in one folder, which
every process and every checkout of the tests finds.
"""

import os
from pathlib import Path

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
loops = Path(__file__).parent.parent / "pipeline" / "ops" / "cpu" / "__pycache__"
os.environ.setdefault("NUMBA_CACHE_DIR", str(loops))
