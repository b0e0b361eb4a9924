"""What the linter cannot say: docstrings begin with a verb, and values are named by content."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "pipeline"
FILES = sorted(PACKAGE.rglob("*.py"))
NO_VERBS = {
    "A", "An", "The", "What", "Whether", "Which", "How", "Where", "When", "Why", "As", "All",
    "Every", "Each", "One", "Its", "It", "This", "That", "These", "For", "Of", "By", "In", "On",
    "With", "No",
    "Rows", "Files", "Tokens", "Bytes", "Seconds", "Number",
}  # fmt: skip


def functions(path):
    """(function, its docstring, its statements beside it) of a file; properties name a thing."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            marks = {ast.unparse(mark).rsplit(".", 1)[-1] for mark in node.decorator_list}
            if not marks & {"property", "setter", "overload", "register_fake"}:
                text = ast.get_docstring(node)
                yield node, text, node.body[1:] if text else node.body


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_docstrings_begin_with_a_verb(path):
    for node, text, _ in functions(path):
        if text:
            first = text.split()[0].rstrip(",;:.")
            assert first.isalpha(), f"{node.name}: {first}"
            assert first[0].isupper(), f"{node.name}: {first}"
            assert first not in NO_VERBS, f"{node.name}: {first}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_public_functions_of_more_than_a_line_say_what_they_do(path):
    for node, text, body in functions(path):
        if not node.name.startswith("_") and len(body) > 1 and not text:
            assert is_nested(path, node), node.name


def is_nested(path, node):
    """Whether a function stands within another, where its place says what it is for."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return any(
        inner.name == node.name and inner.lineno == node.lineno
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef)
        for inner in ast.walk(outer)
        if isinstance(inner, ast.FunctionDef) and inner is not outer
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_values_are_named_by_what_they_hold(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    assert not names & {"found"}


COMPILED = {"jit", "parallel", "overload", "intrinsic", "tuned", "register_fake"}


@pytest.mark.parametrize("path", sorted((PACKAGE / "ops").rglob("*.py")), ids=lambda p: p.stem)
def test_only_what_is_compiled_goes_without_types(path):
    """The type checker lets functions of these folders be; numba and Triton type theirs alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        marks = " ".join(ast.unparse(mark) for mark in getattr(node, "decorator_list", []))
        if any(name in marks for name in COMPILED):
            for inner in ast.walk(node):
                inner.compiled = True
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and not hasattr(node, "compiled"):
            assert node.returns or node.name == "__init__", node.name
            for argument in (*node.args.args, *node.args.kwonlyargs):
                assert argument.annotation or argument.arg in ("self", "cls", "ctx"), node.name
