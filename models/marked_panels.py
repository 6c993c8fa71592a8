"""The innermost part of products with matrices that are partly zero, as vector instructions: what a bit marks is multiplied.

As in `models.panels`, everything goes by address and is not checked; `models.rectified` is what kernels call.
"""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from models.panels import BROAD, LANES, apart, tiled, transposed

WORDS, MARKS = 9, 64
_WORD, _NUMBER, _INDEX = ir.IntType(64), ir.FloatType(), ir.IntType(32)
_VECTOR, _VECTORS = ir.VectorType(_NUMBER, LANES), BROAD // LANES
_ZEROS, _NONE = ir.Constant(_VECTOR, [0.0] * LANES), ir.Constant(_VECTOR, ir.Undefined)
_SPREAD = ir.Constant(ir.VectorType(_INDEX, LANES), [0] * LANES)


def _at(builder: Any, base: Any, row: Any, stride: Any) -> list[Any]:
    """Where the vectors of a row are."""
    first = builder.add(base, builder.mul(row, stride))
    places = [builder.add(first, ir.Constant(_WORD, 4 * LANES * j)) for j in range(_VECTORS)]
    return [builder.inttoptr(place, ir.PointerType(_VECTOR)) for place in places]


def _gather(builder: Any, bits: Any, b: Any, b_row: Any, taken: list[tuple[Any, list[Any]]]) -> None:
    """Add to the sums of each (row of a, sums) the terms of the columns that these bits mark."""
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    fused = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{LANES}f32")  # type: ignore[no-untyped-call]
    left = cgutils.alloca_once(builder, _WORD)  # type: ignore[no-untyped-call]
    builder.store(bits, left)
    test, body, done = (builder.append_basic_block() for _ in range(3))
    builder.branch(test)
    builder.position_at_end(test)
    bits = builder.load(left)
    builder.cbranch(builder.icmp_unsigned("!=", bits, ir.Constant(_WORD, 0)), body, done)
    builder.position_at_end(body)
    column = builder.cttz(bits, ir.Constant(ir.IntType(1), 1))
    builder.store(builder.and_(bits, builder.sub(bits, ir.Constant(_WORD, 1))), left)
    right = [builder.load(place, align=4) for place in _at(builder, b, column, b_row)]
    for own, sums in taken:
        place = builder.add(own, builder.shl(column, ir.Constant(_WORD, 2)))
        value = builder.load(builder.inttoptr(place, ir.PointerType(_NUMBER)))
        one = builder.shuffle_vector(builder.insert_element(_NONE, value, ir.Constant(_INDEX, 0)), _NONE, _SPREAD)
        for total, by in zip(sums, right, strict=True):
            builder.store(builder.call(fused, [one, by, builder.load(total)]), total)
    builder.branch(test)
    builder.position_at_end(done)


def _fill(builder: Any, arguments: Any) -> None:
    a, a_row, b, b_row, c, c_row, rows, add, marks, before = arguments
    b, c = builder.add(b, before), builder.add(c, before)
    adds = builder.icmp_signed("!=", add, ir.Constant(_WORD, 0))

    def tile(first: Any, height: int) -> None:
        down = [builder.add(first, ir.Constant(_WORD, i)) for i in range(height)]
        ends, taken, bits = [_at(builder, c, row, c_row) for row in down], [], []
        for row, places in zip(down, ends, strict=True):
            sums = [cgutils.alloca_once(builder, _VECTOR) for _ in places]  # type: ignore[no-untyped-call]
            for total, place in zip(sums, places, strict=True):
                builder.store(builder.select(adds, builder.load(place, align=4), _ZEROS), total)
            mark = builder.add(marks, builder.shl(row, ir.Constant(_WORD, 3)))
            bits.append(builder.load(builder.inttoptr(mark, ir.PointerType(_WORD))))
            taken.append((builder.add(a, builder.mul(row, a_row)), sums))
        if height == 1:
            _gather(builder, bits[0], b, b_row, taken)
        else:
            both = builder.and_(*bits)
            _gather(builder, both, b, b_row, taken)
            for own, one in zip(bits, taken, strict=True):
                _gather(builder, builder.xor(own, both), b, b_row, [one])
        for (_, sums), places in zip(taken, ends, strict=True):
            for total, place in zip(sums, places, strict=True):
                builder.store(builder.load(total), place, align=4)

    tiled(builder, rows, (2, 1), tile)


_native = apart(f"thousandfold_marked_{LANES}", WORDS + 1, _fill)


def _panel(_typing: Any, words: Any, before: Any) -> Any:
    del before

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        words = cgutils.unpack_tuple(builder, arguments[0])  # type: ignore[no-untyped-call]
        return _native(context, builder, signature, [*words, arguments[1]])

    words = types.UniTuple(types.int64, WORDS)  # type: ignore[no-untyped-call]
    return types.void(words, types.int64), generate


def _square(_typing: Any, slope: Any, row: Any, active: Any, out: Any, out_row: Any, sums: Any, bits: Any, out_bits: Any) -> Any:
    del slope, row, active, out, out_row, sums, bits, out_bits

    def fill(builder: Any, arguments: Any) -> None:
        slope, row, active, out, out_row, sums, bits, out_bits = arguments

        def at(base: Any, stride: Any, i: int, kind: ir.Type = _VECTOR) -> Any:
            return builder.inttoptr(builder.add(base, builder.mul(stride, ir.Constant(_WORD, i))), ir.PointerType(kind))

        def keep(value: Any, place: Any, base: Any, i: int) -> None:
            builder.store(value, place, align=4)
            marked = builder.bitcast(builder.fcmp_unordered("!=", value, _ZEROS), ir.IntType(LANES))
            builder.store(marked, at(base, ir.Constant(_WORD, 8), i, ir.IntType(LANES)), align=1)

        total, rows = builder.load(at(sums, row, 0), align=4), []
        for i in range(LANES):
            above, place = builder.load(at(active, row, i), align=4), at(slope, row, i)
            lit = builder.fcmp_ordered(">", above, _ZEROS)
            rows.append(builder.select(lit, builder.load(place, align=4), _ZEROS))
            keep(rows[-1], place, bits, i)
            total = builder.fadd(total, rows[-1])
        builder.store(total, at(sums, row, 0), align=4)
        for i, value in enumerate(transposed(builder, rows)):
            keep(value, at(out, out_row, i), out_bits, i)

    return types.void(*[types.int64] * 8), apart(f"thousandfold_marked_square_{LANES}", 8, fill)


def _ones(_typing: Any, word: Any) -> Any:
    del word

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


panel = cast("Callable[[tuple[int | np.int64, ...], int], None]", intrinsic(_panel))
"""c[rows, BROAD] = a[rows, depth] b[depth, BROAD], of the numbers of `a` that a bit marks, no more than `MARKS` columns.

Takes 9 words and then the bytes before the columns to fill: addresses and strides in bytes (a, row), (b, row), (c, row); rows,
add; and the address of a word for each row, whose bits are the columns of `a`. Two rows together first add up what both have
marked, so that a row of `b` is read once for both, and then what one has alone.
"""
square = cast("Callable[..., None]", intrinsic(_square))
"""A square of `LANES` gradients on its way back through a rectifier: zero where nothing was active, in place.

Takes addresses and strides in bytes: slope and the stride of its rows and of those of what was active; active; out, which
receives the transpose, and its stride; sums of the columns, which are added to; and where the first row of each has its bits,
which are then 8 bytes apart.
"""
ones = cast("Callable[[np.uint64], np.uint64]", intrinsic(_ones))
"""How many bits are set."""
