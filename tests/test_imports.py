"""Imports run one way: the table in docs/how_it_works.md, held by the sources themselves."""

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pipeline"
METHOD = {"policies", "eviction", "kernels", "synthesis", "attention", "cache"}
MAY_IMPORT = {
    "policies": set(),
    "kernels": set(),
    "ops": {"policies", "kernels"},
    "eviction": {"ops", "policies", "kernels"},
    "synthesis": {"ops", "policies", "kernels"},
    "storage": set(),
    "resources": set(),
    "download": {"storage", "resources"},
    "text": {"download", "storage", "resources"},
    "runtime": {"storage"},
    "transformer": {"download", "storage", "runtime"},
    "attention": {"transformer", "ops", "eviction", "synthesis", "policies", "kernels"},
    "cache": {"transformer", "ops", "policies", "kernels"},
    "training": METHOD | {"ops", "storage", "transformer.shape", "runtime"},
    "decoding": {"cache", "policies", "transformer"},
    "experiment": {
        "policies", "download.packages", "text.prompts", "storage.disk", "runtime.code",
        "resources",
    },
    "measure": METHOD | {
        "ops", "decoding", "training", "text", "transformer", "experiment", "runtime", "storage",
        "resources",
    },
    "report": {"experiment", "storage", "text.rouge", "runtime", "resources"},
    "models": {"transformer", "attention"},
    "checkpoint": {"training"},
    "steps": METHOD | {
        "ops", "decoding", "training", "text", "transformer", "experiment", "runtime", "storage",
        "measure", "report", "download",
    },
}  # fmt: skip
"""What each part may import beside itself and `errors`."""


def name_of(path):
    """A module's name below the package: `ops.cpu.decode`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {name_of(path): path for path in PACKAGE.rglob("*.py") if name_of(path)}
PARTS = {name.split(".")[0] for name in MODULES} - {"__main__", "errors"}


def is_private(name):
    """Whether a name is one of its file alone."""
    return name.startswith("_") and not name.endswith("__")


@cache
def imports(module):
    """What a file imports, types aside: (name of a module or thing, whether it is private)."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    of_types = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    is_package = MODULES[module].name == "__init__.py"
    here, names = ["", *module.split(".")], []
    for node in set(ast.walk(tree)) - of_types:
        if isinstance(node, ast.Import):
            assert not any(
                alias.name.split(".")[0] in ("pipeline", "less_kv") for alias in node.names
            )
        if isinstance(node, ast.ImportFrom) and not node.level:
            assert node.module.split(".")[0] not in ("pipeline", "less_kv"), "imports are relative"
        if isinstance(node, ast.ImportFrom) and node.level:
            above = here[: len(here) - node.level + is_package]
            for alias in node.names:
                whole = ".".join([*above[1:], *(node.module or "").split("."), alias.name])
                names.append((whole.strip(".").replace("..", "."), is_private(alias.name)))
    return names


def target(name):
    """The module that an imported name is or lies in."""
    return name if name in MODULES else name.rpartition(".")[0]


@pytest.mark.parametrize("part", sorted(PARTS))
def test_a_part_imports_what_it_may(part):
    for module in (name for name in MODULES if name.split(".")[0] == part):
        for name, _ in imports(module):
            other = target(name)
            if other.split(".")[0] in ("", "errors", part if part != "steps" else "errors"):
                continue
            allowed = any(other == may or other.startswith(f"{may}.") for may in MAY_IMPORT[part])
            assert allowed, f"{module} imports {other}"


def test_there_is_no_circle():
    graph = {
        module: {target(name) for name, _ in imports(module)} - {"", module} for module in MODULES
    }
    list(TopologicalSorter(graph).static_order())


def test_private_names_stay_in_their_file():
    assert not [
        (module, name) for module in MODULES for name, private in imports(module) if private
    ]


def test_packages_are_docstrings_only():
    """What an `__init__` runs, every module of its folder would depend on."""
    for path in PACKAGE.rglob("__init__.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        assert len(body) == 1 or path.parent == PACKAGE
        assert isinstance(body[0].value, ast.Constant)


@pytest.mark.parametrize("part", ["experiment", "runtime"])
def test_planning_needs_no_torch(part):
    """Not even through what is imported by what is imported."""
    modules = sorted(f"pipeline.{name}" for name in MODULES if name.split(".")[0] == part)
    code = "import importlib, sys; sys.modules['torch'] = None; "
    code += "; ".join(f"importlib.import_module({name!r})" for name in modules)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
