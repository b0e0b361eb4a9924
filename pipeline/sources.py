"""Which source files a step depends on, as one hash: changed code reruns exactly its steps.

Snakemake does not see edits to code that a shell command calls. Rules pass this hash as a
parameter. It ignores comments, docstrings and layout, so that a formatter reruns nothing.
"""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent


def _file_of(module: str) -> Path | None:
    """The source of a module of this package, or None for a name that is not one."""
    path = ROOT.parent / Path(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


@cache
def _parsed(path: Path) -> tuple[str, frozenset[Path]]:
    """Normal form of a file, and the files of this package that it imports anywhere."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                value.value = ""  # a docstring
    mine = {_file_of(name) for name in imported if name.split(".")[0] == ROOT.name}
    return ast.dump(tree), frozenset(path for path in mine if path)


def closure(module: str) -> list[Path]:
    """All source files that ``module`` imports, directly or not, itself included."""
    found: set[Path] = set()
    waiting = {_file_of(module)}
    while waiting:
        path = waiting.pop()
        if path and path not in found:
            found.add(path)
            waiting |= _parsed(path)[1]
    return sorted(found)


@cache
def code_of(step: str) -> str:
    """Hash of everything the step's command runs of this package."""
    digest = hashlib.sha256()
    for path in closure(f"{ROOT.name}.steps.{step}"):
        digest.update(path.relative_to(ROOT).as_posix().encode())
        digest.update(_parsed(path)[0].encode())
    return digest.hexdigest()[:16]
