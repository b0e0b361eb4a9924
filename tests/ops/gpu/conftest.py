"""Triton's interpreter, made faster for these tests."""

from types import SimpleNamespace

import pytest
import triton.language as tl
from triton.runtime import interpreter


@pytest.fixture(scope="package", autouse=True)
def better_interpreter():
    """Patch the language once a module, not at every call of a function: most of the time goes
    there. And widen bfloat16 before a product, which the interpreter would take by its bits.
    """
    patch, product, seen = interpreter._patch_lang, interpreter.InterpreterBuilder.create_dot, set()

    def once(fn):
        if id(fn.__globals__) not in seen:
            seen.add(id(fn.__globals__))
            patch(fn)
        return SimpleNamespace(restore=lambda: None)

    def widened(self, a, b, *rest):
        a, b = (
            self.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b)
        )
        return product(self, a, b, *rest)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(interpreter, "_patch_lang", once)
        patched.setattr(interpreter.InterpreterBuilder, "create_dot", widened)
        yield
