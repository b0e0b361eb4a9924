"""Hypothesis profiles and the fixtures that several test files share."""

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

from pipeline.ops import cpu, reference

COMMON = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
}
settings.register_profile("ci", max_examples=150, derandomize=True, **COMMON)
settings.register_profile("thorough", max_examples=1500, print_blob=True, **COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

torch.set_num_threads(1)  # tensors here are tiny


@pytest.fixture(params=[reference, cpu], ids=["reference", "cpu"])
def ops(request):
    """Each implementation of the operators that runs on a CPU."""
    return request.param
