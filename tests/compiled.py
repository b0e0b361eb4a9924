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

from pipeline.ops import gpu
from pipeline.policies import get_policy
from pipeline.slots import Slots
from pipeline.synthesis import LowRankState

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
    run, seen = JITFunction.run, set()

    def compile_one(self, *args, grid, warmup, **options):
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        if kernel.hash not in seen:
            seen.add(kernel.hash)
            print(self.__name__, kernel.metadata.shared, usage(kernel.asm["cubin"]), flush=True)

    def compile_all(self, *args, **options):
        for config in self.configs if "all" in sys.argv else self.configs[:1]:
            self.fn.run(*args, **options, **config.all_kwargs())

    JITFunction.run, Autotuner.run = compile_one, compile_all


def decode(policy, groups, rep, size, rank, dtype):
    q = torch.zeros(2, groups * rep, 1, size, dtype=dtype)
    k = torch.zeros(2, groups, 1, size, dtype=dtype)
    slots, position = Slots.empty(k, policy), torch.zeros(2, dtype=torch.int32)
    phi, psi = torch.zeros(2, groups * rep, 1, rank), torch.zeros(2, groups, 1, rank)
    state = LowRankState.zeros(2, groups, rank, size)
    decoded = gpu.decode(slots, q, k, k, position, policy)
    gpu.absorb_and_merge(decoded, phi, psi, state, position, policy.budget)
    features = torch.zeros(2, groups, policy.budget + 1, rank)
    gpu.step(slots, features, state, q, k, k, phi, psi, position, policy)


def maps(heads, groups, size, rank, hidden_size, tokens, dtype):
    q, k = (torch.zeros(tokens, count, 1, size, dtype=dtype) for count in (heads, groups))
    count = heads + groups
    w1, w2 = (
        torch.zeros(count, *shape, dtype=dtype)
        for shape in ((hidden_size, size), (rank, hidden_size))
    )
    gpu.features(q, k, w1, w2, torch.zeros(count, rank, rank))


def linear(heads, groups, rank, size):
    phi, psi, v = (
        torch.zeros(1, count, 300, width, requires_grad=True)
        for count, width in ((heads, rank), (groups, rank), (groups, size))
    )
    numerator, denominator = gpu.linear_attention(phi, psi, v)
    (numerator.sum() + denominator.sum()).backward()


def main():
    driver.set_active(AbsentGpu(int(sys.argv[1])))
    only_compile()
    decode(get_policy("h2o", 408), 4, 1, 128, 8, torch.float16)
    decode(get_policy("lambda", 204), 4, 4, 80, 8, torch.bfloat16)
    decode(get_policy("tova", 800), 2, 71, 64, 8, torch.float16)
    decode(get_policy("h2o", 204), 2, 8, 256, 32, torch.float32)
    maps(4, 4, 128, 8, 512, 1, torch.float16)
    maps(8, 2, 80, 32, 512, 300, torch.bfloat16)
    maps(4, 4, 128, 8, 512, 20, torch.float32)
    linear(4, 4, 8, 128)
    linear(8, 2, 32, 256)


if __name__ == "__main__":
    main()
