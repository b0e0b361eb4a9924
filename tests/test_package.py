"""What is installed: one package of its own name, whole, that runs anywhere."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import pipeline

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pipeline"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel's content in a folder of its own."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, source / "pipeline", ignore=skip)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, source / name)
    code = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, out], cwd=source, check=True, capture_output=True)
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(out / "site")
    return out / "site"


def test_one_package_and_no_other_name(installed):
    """Nobody gets a top-level `pipeline`."""
    folders = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert folders == {"less_kv"}


def test_it_is_whole(installed):
    """Every module and every resource; pyproject lists folders by hand."""
    here = {
        path.relative_to(PACKAGE)
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    package = installed / "less_kv"
    there = {path.relative_to(package) for path in package.rglob("*") if path.is_file()}
    assert here == there


def test_it_runs_elsewhere(installed, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    for words, said in (
        (["--version"], pipeline.__version__),
        (["evaluate", "--help"], "usage: less-kv evaluate"),
        (["harness", "--help"], "usage: less-kv harness"),
    ):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "less_kv", *words],
            cwd=tmp_path, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert done.stdout.startswith(said), done.stderr


def test_the_command_is_not_the_pagers():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"less-kv": "less_kv.__main__:main"}
