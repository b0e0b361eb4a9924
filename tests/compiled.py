"""Compile every Triton kernel for a GPU that need not be there: `python tests/compiled.py 90 all`.

The interpreter runs kernels that no GPU would take (types that do not match, names that Triton
keeps for itself, tiles too large). Here operators are called as anywhere, but their launches only
compile, down to machine code; what they return means nothing. Of tuned kernels the first
configuration, or all. Prints the name of each kernel, its shared memory in bytes, and its registers
and stack as the assembler reports them.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.autotuner import Autotuner
from triton.runtime.jit import JITFunction

from pipeline.kernels import get_kernel
from pipeline.ops.gpu import decode as decoding
from pipeline.ops.gpu import linear as gpu_linear
from pipeline.ops.gpu import sequence as gpu_sequence
from pipeline.ops.low_rank import LowRankState
from pipeline.ops.packed import pack
from pipeline.ops.slots import Slots
from pipeline.policies import get_policy

SEEN = set()
"""Hashes of the kernels compiled so far."""
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


class AbsentGpu:
    """As much of a driver as compiling asks for."""

    def __init__(self, capability):
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def usage(cubin):
    """Registers and stack of a kernel in machine code."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(cubin)
        file.flush()
        command = [CUOBJDUMP, "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return " ".join(word for word in text.split() if word.startswith(("REG:", "STACK:")))


def only_compile():
    """From now on launches compile and do not run."""
    run = JITFunction.run

    def compile_one(self, *args, grid, warmup, **options):
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        if kernel.hash not in SEEN:
            SEEN.add(kernel.hash)
            print(self.__name__, kernel.metadata.shared, usage(kernel.asm["cubin"]), flush=True)

    def compile_all(self, *args, **options):
        for config in self.configs if "all" in sys.argv else self.configs[:1]:
            self.fn.run(*args, **options, **config.all_kwargs())

    JITFunction.run, Autotuner.run = compile_one, compile_all


def decode(policy, groups, rep, size, rank, dtype, length=1):
    heads = groups * rep
    q = torch.zeros(2, heads, length, size, dtype=dtype)
    k = torch.zeros(2, groups, length, size, dtype=dtype)
    kernel = get_kernel(
        "less", num_heads=heads, num_kv_heads=groups, head_dim=size, kernel_size=rank,
        compute_dtype=dtype,
    )  # fmt: skip
    kernel = pack(kernel)
    slots, position = Slots.empty(k, policy), torch.zeros(2, dtype=torch.int32)
    state = LowRankState.zeros(2, groups, rank, size)
    decoding.decode(slots, q, k, k, position, policy)
    kept = torch.zeros(2, groups, policy.budget + 1, rank)
    decoding.step(slots, kept, state, q, k, k, kernel, position, policy)


def sequence(policy, shared, rep, size, dtype, length=300):
    q = torch.zeros(2, shared, rep, length, size, dtype=dtype)
    k = torch.zeros(2, shared, length, size, dtype=dtype)
    gpu_sequence.evict(q, k, policy, "full")
    gpu_sequence.sparse_attention(q, k, k, torch.zeros(2, length, dtype=torch.int32))


def linear(heads, groups, rank, size, length=300):
    phi, psi, v = (
        torch.zeros(1, count, length, width, requires_grad=True)
        for count, width in ((heads, rank), (groups, rank), (groups, size))
    )
    numerator, denominator = gpu_linear.linear_attention(phi, psi, v)
    (numerator.sum() + denominator.sum()).backward()


def main():
    driver.set_active(AbsentGpu(int(sys.argv[1])))
    only_compile()
    decode(get_policy("h2o", 408), 4, 1, 128, 8, torch.float16)
    decode(get_policy("h2o", 408), 4, 1, 128, 8, torch.float16, 50)
    decode(get_policy("lambda", 204), 4, 4, 80, 8, torch.bfloat16)
    decode(get_policy("tova", 800), 2, 71, 64, 8, torch.float16)
    decode(get_policy("h2o", 204), 2, 8, 256, 32, torch.float32)
    sequence(get_policy("h2o", 204), 1, 4, 128, torch.float16)
    sequence(get_policy("tova", 40), 3, 2, 80, torch.bfloat16)
    sequence(get_policy("lambda", 40), 1, 1, 256, torch.float32)
    linear(4, 4, 8, 128)
    linear(8, 2, 32, 256)
    compiled = len(SEEN)
    for length in (33, 512, 1):  # other lengths take the same kernels
        decode(get_policy("h2o", 408), 4, 1, 128, 8, torch.float16, length + 20)
        sequence(get_policy("h2o", 204), 1, 4, 128, torch.float16, length)
        linear(4, 4, 8, 128, length)
    assert len(SEEN) == compiled, "a kernel was compiled anew for another length"


if __name__ == "__main__":
    main()
