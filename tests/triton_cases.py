"""Cases and readers that the tests of the Triton operators share."""

import copy
from contextlib import contextmanager
from functools import reduce
from unittest import mock

import torch
from helpers import Case, cases
from hypothesis import Phase, example, settings
from hypothesis import strategies as st

from pipeline import synthesis
from pipeline.ops import sequence as sequence_picker
from pipeline.ops.gpu import decode as decoding
from pipeline.ops.gpu import linear as gpu_linear
from pipeline.ops.gpu import sequence as gpu_sequence
from pipeline.ops.low_rank import LowRankState
from pipeline.ops.packed import pack
from pipeline.ops.reference import decode as decode_reference
from pipeline.ops.slots import Slots, by_head
from pipeline.ops.times import NEVER
from pipeline.policies import get_policy

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
# What is slow is an example in the interpreter, and compiling what is new in one on a GPU.
few = settings(
    max_examples=4 if DEVICE == "cuda" else 10, phases=[Phase.explicit, Phase.reuse, Phase.generate]
)

# Heads as models have them; drawn ones are smaller.
REAL = [
    Case(get_policy("h2o", 10), 1, 1, 2, 20, 64, 0, torch.bfloat16, "cached", 0.3, 0),
    Case(get_policy("tova", 10), 1, 2, 1, 20, 128, 12, torch.float16, "cached", 0.3, 0),
    Case(get_policy("lambda", 10), 1, 1, 2, 20, 256, 0, torch.float16, "full", 0.3, 0),
]


def real_cases(**more):
    """Adds the real heads to a test's drawn cases."""
    return lambda test: reduce(lambda t, case: example(case=case, **more)(t), REAL, test)


@contextmanager
def on_device():
    """Within it, whole sequences are read by the Triton operators, whatever the device."""
    with (
        mock.patch.object(sequence_picker, "backend", return_value=gpu_sequence),
        mock.patch.object(synthesis, "linear_attention", gpu_linear.linear_attention),
    ):
        yield


@st.composite
def streams(draw, max_length=16):
    """A case, how many of each sequence's first tokens are padding, and tokens read at once."""
    case = draw(cases(max_length=max_length)).but(scores="cached", prompt=0)
    padding = [draw(st.integers(0, min(3, case.length - 1))) for _ in range(case.batch)]
    return case, torch.tensor(padding), draw(st.sampled_from([1, 5, case.length]))


class Reader:
    """Tokens of a case, padded on the left, read through slots and, with a kernel, a state."""

    def __init__(self, case, padding, kernel=None):
        self.case, self.kernel = case, kernel and pack(copy.deepcopy(kernel).to(DEVICE))
        self.q, self.k, self.v, self.padding = (x.to(DEVICE) for x in (*case.qkv, padding))
        self.slots = Slots.empty(self.k, case.policy)
        if kernel is not None:
            sizes = case.batch, case.groups, kernel.kernel_size
            self.kept = torch.zeros(*sizes[:2], case.policy.budget + 1, sizes[2], device=DEVICE)
            self.state = LowRankState.zeros(*sizes, case.size, DEVICE)

    def decode(self, ops, start, stop):
        """What ``ops`` gives for tokens start..stop: output and evicted positions."""
        q, k, v = (x[:, :, start:stop] for x in (self.q, self.k, self.v))
        position, policy = start - self.padding, self.case.policy
        decoded = ops.decode(self.slots, q, k, v, position, policy)
        if self.kernel is None:
            return decoded.out, decoded.positions
        out = decode_reference.correct(decoded, q, self.kernel, self.state, position, policy)
        return out, decoded.positions

    def step(self, start, stop):
        """The same by the fused step."""
        q, k, v = (x[:, :, start:stop] for x in (self.q, self.k, self.v))
        return decoding.step(
            self.slots, self.kept, self.state, q, k, v, self.kernel, start - self.padding,
            self.case.policy,
        )  # fmt: skip

    def tensors(self):
        """All that it holds, but for keys and values of free slots."""
        slots = self.slots
        taken = by_head(slots.positions >= 0, self.case.groups)[..., None]
        held = [slots.keys * taken, slots.values * taken, slots.positions, slots.scores, slots.free]
        return held if self.kernel is None else [*held, self.state.H, self.state.z]


def times_of(gone, padding):
    """Eviction times (B, U, S) from the position evicted after each token (B, U, S)."""
    length = gone.shape[-1]
    times = torch.full((*gone.shape[:2], length + 1), NEVER, dtype=torch.int32)
    time = (torch.arange(1, length + 1) - padding[:, None])[:, None].expand_as(gone)
    times.scatter_(2, torch.where(gone < 0, length, gone).long(), time.to(torch.int32))
    return times
