import argparse
import hashlib
import subprocess
import zipfile

import pytest

from pipeline.download import packages, retry
from pipeline.download.packages import Package, checked, fetch, get_package
from pipeline.errors import ConfigError, DataError
from pipeline.steps import fetch as step

CONTENT = b"a file in a wheel"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def known(monkeypatch, **changes):
    """Make ``toy`` the only known package."""
    fields = {"member": "toy/data.bin", "sha256": DIGEST, **changes}
    toy = Package("toy", "1.0", "toy.bin", licence="none", holds="nothing", **fields)
    monkeypatch.setattr(packages, "packages", lambda: {"toy": toy})


@pytest.fixture
def pip(monkeypatch):
    """Stand in for pip: a list of commands run, and how many of them fail before one works."""
    state = argparse.Namespace(commands=[], failures=0)

    def run(command, **options):
        state.commands.append(command)
        assert not options.get("shell")
        if len(state.commands) <= state.failures:
            return subprocess.CompletedProcess(command, 1, "", "noise\nERROR: no route to host\n")
        folder = command[command.index("-d") + 1]
        with zipfile.ZipFile(f"{folder}/toy-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr("toy/data.bin", CONTENT)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(packages.subprocess, "run", run)
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0)
    return state


def test_a_member_is_kept(monkeypatch, pip, tmp_path):
    known(monkeypatch)
    fetch("toy", tmp_path / "downloads" / "toy.bin")
    assert checked("toy", tmp_path / "downloads" / "toy.bin").read_bytes() == CONTENT
    assert "toy==1.0" in pip.commands[0]
    assert {"--no-deps", "--only-binary=:all:"} <= set(pip.commands[0])
    assert [path.name for path in (tmp_path / "downloads").iterdir()] == ["toy.bin"]


def test_a_wrong_hash_keeps_nothing(monkeypatch, pip, tmp_path):
    known(monkeypatch, sha256="0" * 64)
    with pytest.raises(DataError, match=f"SHA-256 {DIGEST}, not {'0' * 64}"):
        fetch("toy", tmp_path / "toy.bin")
    assert not list(tmp_path.iterdir())


def test_a_wheel_is_kept_whole(monkeypatch, pip, tmp_path):
    known(monkeypatch, member=None)
    with pytest.raises(DataError, match=r"toy\.bin of toy==1\.0 has SHA-256"):
        fetch("toy", tmp_path / "toy.zip")  # a zip's dates change, so its hash is not known here


def test_a_missing_member(monkeypatch, pip, tmp_path):
    known(monkeypatch, member="toy/other.bin")
    with pytest.raises(DataError, match=r"has no toy/other\.bin"):
        fetch("toy", tmp_path / "toy.bin")
    assert not list(tmp_path.iterdir())


def test_failures_are_tried_again(monkeypatch, pip, tmp_path):
    known(monkeypatch)
    pip.failures = retry.TRIES - 1
    fetch("toy", tmp_path / "toy.bin")
    assert len(pip.commands) == retry.TRIES


def test_an_unreachable_registry(monkeypatch, pip, tmp_path):
    known(monkeypatch)
    pip.failures = retry.TRIES
    with pytest.raises(DataError, match=r"last line: ERROR: no route to host"):
        fetch("toy", tmp_path / "toy.bin")


def test_an_environment_without_pip(monkeypatch, tmp_path):
    known(monkeypatch)
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="ensurepip"):
        fetch("toy", tmp_path / "toy.bin")


def test_unknown_and_unfetched_packages(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'aclsum'"):
        get_package("aclsumm")
    for path in (None, tmp_path / "aclsum.zip"):
        with pytest.raises(DataError, match=r"less-kv fetch --package aclsum --out .*aclsum.*zip"):
            checked("aclsum", path)


def test_the_table_is_whole():
    for name, package in packages.packages().items():
        assert package.name == name
        assert len(package.sha256) == 64
        assert package.licence
        assert package.holds


@pytest.mark.download
@pytest.mark.parametrize("name", ["aclsum", "gensim"])
def test_real_packages(name, downloads):
    assert checked(name, downloads / get_package(name).file).stat().st_size > 1e6


def test_the_step(monkeypatch, pip, tmp_path):
    known(monkeypatch)
    parser = argparse.ArgumentParser()
    step.add_arguments(parser)
    step.run(parser.parse_args(["--package", "toy", "--out", str(tmp_path / "toy.bin")]))
    assert (tmp_path / "toy.bin").read_bytes() == CONTENT
