"""Which operators a GPU gets, and that they compile for one that need not be there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.ops.decode import decode_backend
from pipeline.ops.gpu import decode as decoding
from pipeline.ops.gpu import linear as gpu_linear
from pipeline.ops.gpu import maps
from pipeline.ops.gpu import sequence as gpu_sequence
from pipeline.ops.sequence import backend

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_kernels_compile(tmp_path):
    """For an A100, whatever is in this machine; see compiled.py."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    script = [sys.executable, ROOT / "tests" / "compiled.py", "80"]
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(script, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    kernels = {
        name
        for module in (decoding, maps, gpu_linear, gpu_sequence)
        for name, value in vars(module).items()
        if name.endswith("_kernel") and hasattr(value, "run")
    }
    assert {line[0] for line in lines} == kernels
    assert max(int(line[1]) for line in lines) <= 163 * 1024  # all there is


def test_a_gpu_gets_these_operators():
    cuda = torch.device("cuda")
    assert backend(cuda) is gpu_sequence
    assert decode_backend(cuda) is decoding


def test_operators_on_a_cpu_need_no_triton():
    code = (
        "import sys; import pipeline.training.loop, pipeline.synthesis, pipeline.eviction;"
        "import pipeline.ops.cpu.decode; sys.exit('triton' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
