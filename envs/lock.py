"""Rewrite the lock files and environment.yaml from pyproject.toml and torch.txt.

Run ``python envs/lock.py`` after changing a dependency: pins that still fit are kept.
``python envs/lock.py --upgrade`` moves every pin to its newest version. Needs uv and packaging
(``pip install uv packaging``) and the package index.
"""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ENVS = Path(__file__).resolve().parent
ROOT = ENVS.parent


def compile_lock(out: str, source: list[str], options: list[str], stdin: str = "") -> None:
    """Resolve ``source`` for every platform and write it with hashes to ``envs/<out>``."""
    command = ["uv", "pip", "compile", *source, "--output-file", f"envs/{out}"]
    command += ["--universal", "--python-version", "3.11", "--generate-hashes"]
    command += ["--config-file", "envs/uv.toml", "--quiet"]
    command += ["--custom-compile-command", "python envs/lock.py", *options]
    subprocess.run(command, cwd=ROOT, input=stdin, text=True, check=True)


def pins(path: Path) -> dict[str, str]:
    """Name -> version of a requirements file, hashes left out."""
    lines = path.read_text(encoding="utf-8").splitlines()
    found = (Requirement(x.rstrip("\\")) for x in lines if x and not x.startswith((" ", "#")))
    return {canonicalize_name(r.name): str(r.specifier).removeprefix("==") for r in found}


def environment(dependencies: list[str], versions: dict[str, str]) -> str:
    """Write the conda environment: Python, and our direct dependencies at the lock's versions."""
    lines = [
        "# What `snakemake --sdm conda` runs in, or `conda env create`. Written by envs/lock.py.",
        "# Everything comes from pip, so that the versions are the lock's to the letter.",
        "channels:",
        "  - conda-forge",
        "  - nodefaults",
        "dependencies:",
        "  - python=3.11",
        "  - pip",
        "  - pip:",
    ]
    for text in dependencies:
        wanted = Requirement(text)
        extras = f"[{','.join(sorted(wanted.extras))}]" if wanted.extras else ""
        pin = f"{wanted.name}{extras}=={versions[canonicalize_name(wanted.name)]}"
        # str(marker) uses double quotes, so the YAML string takes single ones.
        lines.append(f"      - '{pin}; {wanted.marker}'" if wanted.marker else f"      - {pin}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write all three files."""
    if shutil.which("uv") is None:
        sys.exit("envs/lock.py needs uv on PATH: pip install uv")
    upgrade = ["--upgrade"] if "--upgrade" in sys.argv[1:] else []
    compile_lock(
        "requirements.lock",
        ["pyproject.toml"],
        ["--extra", "dev", "--no-emit-package", "torch", *upgrade],
    )
    # What builds the few packages that come as source only, pinned too.
    compile_lock(
        "build.lock", ["-"], ["-c", "envs/requirements.lock", *upgrade], stdin="pip\nsetuptools\n"
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    versions = pins(ENVS / "requirements.lock") | pins(ENVS / "torch.txt")
    target = ENVS / "environment.yaml"
    target.write_text(environment(project["dependencies"], versions), encoding="utf-8")


if __name__ == "__main__":
    main()
