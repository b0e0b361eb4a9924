"""The lock, the conda environment and pyproject name the same versions."""

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
ENVS = ROOT / "envs"


def entries(path: Path) -> dict[str, tuple[Requirement, list[str]]]:
    """Name -> (requirement, hashes) of a requirements file."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            bare, *hashes = re.split(r"\s+--hash=", line.strip())
            requirement = Requirement(bare)
            found[canonicalize_name(requirement.name)] = (requirement, hashes)
    return found


def version(requirement: Requirement) -> str:
    """Return the one version that a pin allows."""
    (pin,) = requirement.specifier
    assert pin.operator == "==", requirement
    return pin.version


LOCK = entries(ENVS / "requirements.lock")
BUILD = entries(ENVS / "build.lock")
TORCH = entries(ENVS / "torch.txt")
PINS = {name: version(requirement) for name, (requirement, _) in (LOCK | TORCH).items()}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
RUNTIME = [Requirement(text) for text in PROJECT["project"]["dependencies"]]
EXTRAS = PROJECT["project"]["optional-dependencies"].values()
DEV = [Requirement(text) for extra in EXTRAS for text in extra]


@pytest.mark.parametrize("wanted", RUNTIME + DEV, ids=lambda wanted: wanted.name)
def test_lock_satisfies_pyproject(wanted):
    assert wanted.specifier.contains(PINS[canonicalize_name(wanted.name)])


def test_torch_and_triton_fit_together():
    # torch 2.13.0's CUDA build requires triton==3.7.1.
    assert PINS["torch"] == "2.13.0"
    assert PINS["triton"] == "3.7.1"


def test_every_pin_but_torch_has_hashes():
    assert set(TORCH) == {"torch"}
    assert "torch" not in LOCK
    for name, (_, hashes) in (LOCK | BUILD).items():
        assert hashes, name
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", value) for value in hashes), name


def test_lock_serves_cpu_and_cuda():
    # A CPU machine needs none of these; the CUDA build of torch brings its own.
    assert not [name for name in LOCK if name.startswith(("nvidia-", "cuda-"))]


def test_builders_are_the_locks():
    assert PINS["setuptools"] == version(BUILD["setuptools"][0])
    (backend,) = (Requirement(text) for text in PROJECT["build-system"]["requires"])
    assert backend.specifier.contains(PINS["setuptools"])


def test_locks_name_no_place():
    # An index address or a local path would tie the lock to the machine that made it.
    for name in ("requirements.lock", "build.lock"):
        text = (ENVS / name).read_text(encoding="utf-8")
        assert not re.search(r"://| @ |^\s*-(-(?!hash=)|[if])", text, re.MULTILINE), name


def test_conda_environment_pins_the_same():
    environment = yaml.safe_load((ENVS / "environment.yaml").read_text(encoding="utf-8"))
    assert "python=3.11" in environment["dependencies"]
    (pip,) = (part["pip"] for part in environment["dependencies"] if isinstance(part, dict))
    pinned = {canonicalize_name(r.name): r for r in map(Requirement, pip)}
    assert set(pinned) == {canonicalize_name(wanted.name) for wanted in RUNTIME}
    for wanted in RUNTIME:
        name = canonicalize_name(wanted.name)
        assert version(pinned[name]) == PINS[name]
        assert pinned[name].extras == wanted.extras
        assert str(pinned[name].marker) == str(wanted.marker)


@pytest.mark.skipif(Path(sys.prefix).resolve() != (ROOT / ".venv").resolve(), reason="not in .venv")
def test_installed_versions_are_the_locks():
    wanted = {
        name: version(requirement)
        for name, (requirement, _) in (LOCK | BUILD | TORCH).items()
        if requirement.marker is None or requirement.marker.evaluate()
    }
    # torch's local part (+cpu, +cu130) says which build it is, not which version.
    installed = {name: metadata.version(name).partition("+")[0] for name in wanted}
    assert installed == wanted
