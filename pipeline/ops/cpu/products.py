"""Products of a few vectors with a stored matrix, each number of which is read once.

As in :mod:`pipeline.ops.cpu.sums`, the order of every sum is written in its instructions.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.errors import TypingError
from numba.extending import intrinsic

from .jit import jit

ROWS = 8
"""Vectors that one reading of the matrix serves."""
LINE = 64
"""Bytes that travel together from memory."""


def _from_bfloat16(builder: Any, bits: Any) -> Any:
    """Return bit patterns of bfloat16 as float32: the upper half of its bits."""
    lanes = bits.type.count
    wide = builder.zext(bits, ir.VectorType(ir.IntType(32), lanes))
    upper = builder.shl(wide, ir.Constant(wide.type, [16] * lanes))
    return builder.bitcast(upper, ir.VectorType(ir.FloatType(), lanes))


def _from_float16(builder: Any, bits: Any) -> Any:
    """Return bit patterns of finite float16 as float32.

    Exponent and mantissa moved to float32's places are 2^-112 times too small.
    """
    lanes = bits.type.count
    words, floats = (ir.VectorType(kind, lanes) for kind in (ir.IntType(32), ir.FloatType()))

    def moved(mask: int, by: int) -> Any:
        kept = builder.and_(builder.zext(bits, words), ir.Constant(words, [mask] * lanes))
        return builder.shl(kept, ir.Constant(words, [by] * lanes))

    magnitude = builder.bitcast(moved(0x7FFF, 13), floats)
    scaled = builder.fmul(magnitude, ir.Constant(floats, [2.0**112] * lanes))
    signed = builder.or_(builder.bitcast(scaled, words), moved(0x8000, 16))
    return builder.bitcast(signed, floats)


def _prefetch(builder: Any, address: Any) -> None:
    """Fetch the line at ``address`` from memory, without waiting for it."""
    word, byte = ir.IntType(32), ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    read, soon, data = (ir.Constant(word, value) for value in (0, 3, 1))
    builder.call(function, [builder.bitcast(address, byte), read, soon, data])


WIDEN = {
    types.float32: lambda builder, value: value,
    types.uint16: _from_bfloat16,
    types.int16: _from_float16,
}


def _tile(rows: int, vectors: int, lanes: int) -> Any:
    """Return ``rows`` times ``vectors * lanes`` numbers of a product, summed up in registers."""

    @intrinsic
    def tile(typing_context, x, first, w, column, out):
        """Set out[first + n, column + i] to x[first + n] w[:, column + i]."""
        for array, kinds in ((x, [types.float32]), (w, WIDEN), (out, [types.float32])):
            if (array.ndim, array.layout) != (2, "C") or array.dtype not in kinds:
                raise TypingError(f"a product takes contiguous matrices, not {array}.")

        def generate(context, builder, signature, arguments):
            given, stored, result = (
                context.make_array(signature.args[i])(context, builder, arguments[i])
                for i in (0, 2, 4)
            )
            _, start, _, column, _ = arguments
            number, index = start.type, ir.IntType(32)
            itemsize = w.dtype.bitwidth // 8
            per_line = LINE // itemsize
            floats = ir.VectorType(ir.FloatType(), lanes)
            narrow = ir.VectorType(context.get_data_type(w.dtype), lanes)
            kind, name = ir.FunctionType(floats, [floats] * 3), f"llvm.fmuladd.v{lanes}f32"
            multiply_add = cgutils.get_or_insert_function(builder.module, kind, name)
            none = ir.Constant(floats, [0.0] * lanes)
            everywhere = ir.Constant(ir.VectorType(index, lanes), [0] * lanes)
            size, width = (builder.extract_value(stored.shape, i) for i in (0, 1))
            lines = [builder.add(start, ir.Constant(number, n)) for n in range(rows)]
            places = [builder.add(column, ir.Constant(number, lanes * i)) for i in range(vectors)]
            sums = [[cgutils.alloca_once_value(builder, none) for _ in places] for _ in lines]
            zero, one = ir.Constant(number, 0), ir.Constant(number, 1)
            with cgutils.for_range_slice(builder, zero, size, one) as (d, _):
                weights = []
                for place in places:
                    at = builder.gep(stored.data, [builder.add(builder.mul(d, width), place)])
                    value = builder.load(builder.bitcast(at, narrow.as_pointer()), align=itemsize)
                    weights.append(WIDEN[w.dtype](builder, value))
                # Rows lie too far apart for the processor to guess the next tile by itself.
                for beyond in range(vectors * lanes, 2 * vectors * lanes, per_line):
                    place = builder.add(column, ir.Constant(number, beyond))
                    at = builder.gep(stored.data, [builder.add(builder.mul(d, width), place)])
                    _prefetch(builder, at)
                for line, totals in zip(lines, sums, strict=True):
                    at = builder.gep(given.data, [builder.add(builder.mul(line, size), d)])
                    factor = builder.insert_element(none, builder.load(at), ir.Constant(index, 0))
                    factor = builder.shuffle_vector(factor, none, everywhere)
                    for weight, total in zip(weights, totals, strict=True):
                        more = builder.call(multiply_add, [factor, weight, builder.load(total)])
                        builder.store(more, total)
            for line, totals in zip(lines, sums, strict=True):
                for place, total in zip(places, totals, strict=True):
                    at = builder.gep(result.data, [builder.add(builder.mul(line, width), place)])
                    pointer = builder.bitcast(at, floats.as_pointer())
                    builder.store(builder.load(total), pointer, align=4)
            return context.get_dummy_value()

        number = types.intp
        return types.void(x, number, w, number, out), generate

    return tile


_rows_wide, _four_wide, _two_wide = (_tile(rows, 2, 16) for rows in (ROWS, 4, 2))
_row_wide, _row_widest = _tile(1, 2, 16), _tile(1, 4, 16)
_rows_narrow, _row_narrow = _tile(ROWS, 1, 8), _tile(1, 1, 8)
_row_single = _tile(1, 1, 1)


@jit
def product(x, w, count, out):
    """Fill ``out`` (N, M) = ``x`` (N, D) ``w`` (D, M) in its first ``count`` rows, float32.

    All are contiguous; ``w`` is float32, bfloat16 as uint16 or finite float16 as int16.
    """
    width = w.shape[1]
    wide, narrow, whole = width // 32 * 32, width // 8 * 8, count // ROWS * ROWS
    begin = width // 64 * 64 if count == 1 else 0  # one row alone needs more sums at a time
    for column in range(0, begin, 64):
        _row_widest(x, 0, w, column, out)
    for column in range(begin, wide, 32):
        for n in range(0, whole, ROWS):
            _rows_wide(x, n, w, column, out)
        n = whole
        if n + 4 <= count:
            _four_wide(x, n, w, column, out)
            n += 4
        if n + 2 <= count:
            _two_wide(x, n, w, column, out)
            n += 2
        if n < count:
            _row_wide(x, n, w, column, out)
    for column in range(wide, narrow, 8):
        for n in range(0, whole, ROWS):
            _rows_narrow(x, n, w, column, out)
        for n in range(whole, count):
            _row_narrow(x, n, w, column, out)
    for column in range(narrow, width):
        for n in range(count):
            _row_single(x, n, w, column, out)
