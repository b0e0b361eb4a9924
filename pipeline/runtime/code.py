"""Say which code runs: its sources as one hash a step, and its commit.

Snakemake does not see edits to code that a shell command calls. Rules pass the hash of a step's
sources as a parameter, so that changed code reruns exactly its steps. It ignores comments,
docstrings and layout, so that a formatter reruns nothing.
"""

from __future__ import annotations

import ast
import hashlib
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
"""The package's folder."""


def _file_of(module: str) -> Path | None:
    """Return the source of a module of this package, or None for a name that is not one."""
    path = ROOT.parent / Path(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _absolute(node: ast.ImportFrom, path: Path) -> str:
    """Name the module that ``from ... import`` in the file ``path`` reads, dots resolved."""
    if not node.level:
        return node.module or ""
    package = path.parent.relative_to(ROOT.parent).parts
    above = package[: len(package) - node.level + 1]
    return ".".join([*above, *([node.module] if node.module else [])])


def _with_packages(module: str) -> list[str]:
    """Name a module of this package and the folders above it, whose ``__init__`` run with it."""
    parts = module.split(".")
    return [".".join(parts[:n]) for n in range(2, len(parts) + 1)] if parts[0] == ROOT.name else []


@cache
def _parsed(path: Path) -> tuple[str, frozenset[Path]]:
    """Return normal form of a file, and the files of this package that it imports anywhere."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = _absolute(node, path)
            imported |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                value.value = ""  # a docstring
    mine = {_file_of(name) for imported_name in imported for name in _with_packages(imported_name)}
    return ast.dump(tree), frozenset(path for path in mine if path)


def closure(module: str) -> list[Path]:
    """Return all source files that ``module`` imports, directly or not, itself included."""
    files: set[Path] = set()
    waiting = {_file_of(name) for name in _with_packages(module)}
    while waiting:
        path = waiting.pop()
        if path and path not in files:
            files.add(path)
            waiting |= _parsed(path)[1]
    return sorted(files)


@cache
def code_of(step: str) -> str:
    """Hash of everything the step's command runs of this package."""
    digest = hashlib.sha256()
    for path in closure(f"{ROOT.name}.steps.{step}"):
        digest.update(path.relative_to(ROOT).as_posix().encode())
        digest.update(_parsed(path)[0].encode())
    return digest.hexdigest()[:16]


def commit() -> dict[str, Any]:
    """Return the commit of the checkout this runs from, and whether tracked files were changed."""

    def git(*words: str) -> str | None:
        command = ["git", "-C", str(ROOT), *words]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":!/results")
    return {
        "commit": git("rev-parse", "HEAD"),
        "changed": None if changed is None else bool(changed),
    }


def short_commit() -> str:
    """Return twelve digits, a + if tracked files were changed; ``unknown`` outside a checkout."""
    here = commit()
    return f"{here['commit'][:12]}{'+' * here['changed']}" if here["commit"] else "unknown"
