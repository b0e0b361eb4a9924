"""Sums that every compilation adds in the same order, and an exponential that vectorises.

A compiler may add the terms of a float sum in an order of its choice only if it is told that order
does not matter. Numba then gives different last bits in the process that compiles a loop and in
those that load it from the cache, and in half precision a last bit becomes another token of a
generated text. So nothing here is compiled with "fast math"; long sums go through :func:`dot`,
whose order is written down in its instructions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.errors import TypingError
from numba.extending import intrinsic

from .jit import jit

WIDE, NARROW = 32, 8


def _sum_of_products(lanes: int) -> Any:
    """Sum of rows[r, i] * b[i], start <= i < stop, as ``lanes`` partial sums added pairwise."""

    @intrinsic
    def summed(typing_context, rows, r, b, start, stop):
        for array, ndim in ((rows, 2), (b, 1)):
            if (array.ndim, array.layout, array.dtype) != (ndim, "C", types.float32):
                raise TypingError(f"dot takes contiguous float32 numbers, not {array}.")

        def generate(context, builder, signature, arguments):
            vector = ir.VectorType(ir.FloatType(), lanes)
            matrix, other = (
                context.make_array(signature.args[i])(context, builder, arguments[i])
                for i in (0, 2)
            )
            width = builder.extract_value(matrix.shape, 1)
            row = builder.gep(matrix.data, [builder.mul(arguments[1], width)])
            partial = cgutils.alloca_once_value(builder, ir.Constant(vector, [0.0] * lanes))
            first, last = arguments[3:]
            step = ir.Constant(first.type, lanes)
            with cgutils.for_range_slice(builder, first, last, step) as (place, _):
                left, right = (
                    builder.load(
                        builder.bitcast(builder.gep(base, [place]), vector.as_pointer()), align=4
                    )
                    for base in (row, other.data)
                )
                product = builder.fmul(left, right)
                builder.store(builder.fadd(builder.load(partial), product), partial)
            total, size = builder.load(partial), lanes
            while size > 1:
                size //= 2
                halves = [
                    ir.Constant(ir.VectorType(ir.IntType(32), size), list(range(at, at + size)))
                    for at in (0, size)
                ]
                nothing = ir.Constant(total.type, ir.Undefined)
                low, high = (builder.shuffle_vector(total, nothing, half) for half in halves)
                total = builder.fadd(low, high)
            return builder.extract_element(total, ir.Constant(ir.IntType(32), 0))

        number = types.intp
        return types.float32(rows, number, b, number, number), generate

    return summed


_wide, _narrow = _sum_of_products(WIDE), _sum_of_products(NARROW)


@jit
def copy(source, target):
    """Set ``target[:] = source``, both of one axis, which numba takes seconds to compile."""
    for i in range(target.shape[0]):
        target[i] = source[i]


@jit
def fill(target, value):
    """Set ``target[:] = value``, of one axis."""
    for i in range(target.shape[0]):
        target[i] = value


@jit
def dot(rows, r, b, size):
    """Sum of rows[r, i] * b[i] over i < size; float32 and contiguous both."""
    wide, narrow = size // WIDE * WIDE, size // NARROW * NARROW
    total = _wide(rows, r, b, 0, wide) + _narrow(rows, r, b, wide, narrow)
    for i in range(narrow, size):
        total += rows[r, i] * b[i]
    return total


@jit
def exp(x):
    """Return exp of x <= 0 in float32 to 2 units in the last place, by vector operations.

    2^n times a polynomial on [-ln2/2, ln2/2] (coefficients of Cephes' expf).
    """
    x = max(x, np.float32(-87.0))
    n = np.float32(np.floor(x * np.float32(1.44269504088896341) + np.float32(0.5)))
    r = x - n * np.float32(0.693359375)
    r = r + n * np.float32(2.12194440e-4)
    y = np.float32(1.9875691500e-4)
    y = y * r + np.float32(1.3981999507e-3)
    y = y * r + np.float32(8.3334519073e-3)
    y = y * r + np.float32(4.1665795894e-2)
    y = y * r + np.float32(1.6666665459e-1)
    y = y * r + np.float32(5.0000001201e-1)
    y = y * r * r + r + np.float32(1)
    return y * np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)


@jit
def gelu(x):
    """Return x Phi(x) in float32, to 2e-7 |x|, in operations that vectorise.

    The error function is that of Abramowitz and Stegun, 7.1.26.
    """
    y = abs(x) * np.float32(0.70710678118654752)
    t = np.float32(1) / (np.float32(1) + np.float32(0.3275911) * y)
    p = np.float32(1.061405429)
    p = p * t - np.float32(1.453152027)
    p = p * t + np.float32(1.421413741)
    p = p * t - np.float32(0.284496736)
    p = p * t + np.float32(0.254829592)
    tail = p * t * exp(-y * y)  # 1 - erf(y)
    return np.float32(0.5) * (x + abs(x) * (np.float32(1) - tail))
