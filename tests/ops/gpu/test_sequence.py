"""Operators over sequences in Triton against their plain reference.

On a GPU they run compiled; elsewhere in Triton's interpreter, which conftest asks for before
anything imports triton. The interpreter is slow, so cases are small and few.
"""

from random import Random
from unittest import mock

import torch
from helpers import assert_same_evictions, cases
from hypothesis import given
from hypothesis import strategies as st
from triton_cases import CLOSE, DEVICE, few, real_cases

from pipeline.ops.gpu import sequence as gpu_sequence
from pipeline.ops.reference import sequence as reference
from pipeline.ops.times import NEVER


@few
@given(cases(max_length=24), st.sampled_from([5, 256]))
@real_cases(block=256)
def test_evictions_equal_the_loop(case, block):
    q, k, _ = (x.to(DEVICE) for x in case.sets)
    with mock.patch.object(gpu_sequence, "QUERY_BLOCK", block):
        times = gpu_sequence.evict(q, k, case.policy, case.scores, case.prompt).cpu()
    assert times.dtype == torch.int32
    truth = reference.evict(*case.sets[:2], case.policy, case.scores, case.prompt)
    assert_same_evictions(case, truth, times)


@few
@given(cases(max_length=24))
@real_cases()
def test_bounded_attention_equals_the_loop(case):
    q, k, v = case.sets
    case = case.but(scores="cached")
    on_device = (x.to(DEVICE) for x in (q, k, v))
    times, *read = gpu_sequence.bounded_attention(*on_device, case.policy, case.prompt)
    truth = reference.evict(q, k, case.policy, "cached", case.prompt)
    assert_same_evictions(case, truth, times.cpu())
    expected = reference.sparse_attention(q, k, v, times.cpu())
    torch.testing.assert_close([x.cpu() for x in read], list(expected), **CLOSE)


@few
@given(cases(max_length=40), st.randoms(use_true_random=False))
@real_cases(random=Random(0))
def test_sparse_attention_equals_the_mask(case, random):
    """Any times, not only those a policy makes."""
    sets = [x.to(DEVICE) for x in case.sets]
    times = [
        [random.choice([NEVER, random.randint(j + 1, case.length)]) for j in range(case.length)]
        for _ in range(len(sets[0]))
    ]
    times = torch.tensor(times, dtype=torch.int32, device=DEVICE)
    torch.testing.assert_close(
        gpu_sequence.sparse_attention(*sets, times),
        reference.sparse_attention(*sets, times),
        **CLOSE,
    )
