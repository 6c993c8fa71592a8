"""Matrices inside native kernels: the workspace they are cut from, their products and transposes.

LLVM turns no plain loop into a product that keeps its sums in registers, so the innermost part, a tile of a few rows by a few
vectors, is written as vector instructions. Every element is one chain of fused multiply-adds in the order of the inner
dimension, whatever tile it falls in: a row of a product has the same bytes in any company.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import llvmlite.binding
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from state.kernels import kernel

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]

# 32 registers of 16 numbers hold a tile of 8 rows by 2 vectors; 16 registers of 8 hold one of 4 rows.
_WIDE = bool(llvmlite.binding.get_host_cpu_features().get("avx512f"))
_LANES, _HEIGHTS = (16, (8, 2, 1)) if _WIDE else (8, (4, 2, 1))
_PAIR = 2 * _LANES
_FEW = 4
_ALIGN = 16


def _panel(lanes: int, vectors: int) -> Callable[..., None]:
    """A native c[rows, vectors x lanes] = a[rows, depth] b[depth, vectors x lanes], added to what is there if `add`.

    Takes addresses and strides in bytes: (a, row, column), (b, row), (c, row), rows, depth, add.
    """
    number, index = ir.FloatType(), ir.IntType(32)
    vector = ir.VectorType(number, lanes)
    zeros, none = ir.Constant(vector, [0.0] * lanes), ir.Constant(vector, ir.Undefined)
    spread = ir.Constant(ir.VectorType(index, lanes), [0] * lanes)

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        a, a_row, a_column, b, b_row, c, c_row, rows, depth, add = arguments
        word = a.type
        name = f"llvm.fmuladd.v{lanes}f32"
        kind = ir.FunctionType(vector, [vector] * 3)
        fused = cgutils.get_or_insert_function(builder.module, kind, name)  # type: ignore[no-untyped-call]
        adds = builder.icmp_signed("!=", add, ir.Constant(word, 0))

        def at(kind: ir.Type, base: Any, row: Any, stride: Any, offset: int = 0) -> Any:
            address = builder.add(builder.add(base, builder.mul(row, stride)), ir.Constant(word, offset))
            return builder.inttoptr(address, ir.PointerType(kind))

        def tile(first: Any, height: int) -> None:
            down = [builder.add(first, ir.Constant(word, i)) for i in range(height)]
            places = [[at(vector, c, row, c_row, 4 * lanes * j) for j in range(vectors)] for row in down]
            sums = [[cgutils.alloca_once(builder, vector) for _ in row] for row in places]  # type: ignore[no-untyped-call]
            for i, j in np.ndindex(height, vectors):
                before = builder.load(places[i][j], align=4)
                builder.store(builder.select(adds, before, zeros), sums[i][j])
            with cgutils.for_range(builder, depth, intp=word) as loop:
                right = [builder.load(at(vector, b, loop.index, b_row, 4 * lanes * j), align=4) for j in range(vectors)]
                column = builder.add(a, builder.mul(loop.index, a_column))
                for i, row in enumerate(down):
                    one = builder.insert_element(none, builder.load(at(number, column, row, a_row)), ir.Constant(index, 0))
                    left = builder.shuffle_vector(one, none, spread)
                    for j in range(vectors):
                        builder.store(builder.call(fused, [left, right[j], builder.load(sums[i][j])]), sums[i][j])
            for i, j in np.ndindex(height, vectors):
                builder.store(builder.load(sums[i][j]), places[i][j], align=4)

        done = ir.Constant(word, 0)
        for height in _HEIGHTS:
            step = ir.Constant(word, height)
            end = builder.sub(rows, builder.srem(builder.sub(rows, done), step))
            with cgutils.for_range_slice(builder, done, end, step, intp=word) as (first, _):
                tile(first, height)
            done = end
        return context.get_dummy_value()

    def panel(
        _typing: Any, a: Any, a_row: Any, a_column: Any, b: Any, b_row: Any, c: Any, c_row: Any, rows: Any, depth: Any, add: Any
    ) -> Any:
        del a, a_row, a_column, b, b_row, c, c_row, rows, depth, add
        return types.void(*[types.int64] * 10), generate

    return intrinsic(panel)


_two, _one, _narrow, _single = _panel(_LANES, 2), _panel(_LANES, 1), _panel(_FEW, 1), _panel(1, 1)


def _locate(_typing: Any, array: Any) -> Any:
    """Where an array's numbers begin; `array.ctypes.data` costs more than a small product."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        held = context.make_array(signature.args[0])(context, builder, arguments[0])
        return builder.ptrtoint(held.data, ir.IntType(64))

    return types.int64(array), generate


_address = cast("Callable[[F32], int]", intrinsic(_locate))


def _square(_typing: Any, a: Any, a_row: Any, out: Any, out_row: Any) -> Any:
    """Transpose a square of `_LANES`, by addresses and strides in bytes (Eklundh 1972).

    A round for every power of two exchanges the squares of that size beside the diagonal.
    """
    del a, a_row, out, out_row
    vector = ir.VectorType(ir.FloatType(), _LANES)
    mask = ir.VectorType(ir.IntType(32), _LANES)

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        a, a_row, out, out_row = arguments

        def at(base: Any, stride: Any, i: int) -> Any:
            address = builder.add(base, builder.mul(stride, ir.Constant(base.type, i)))
            return builder.inttoptr(address, ir.PointerType(vector))

        rows = [builder.load(at(a, a_row, i), align=4) for i in range(_LANES)]
        size = 1
        while size < _LANES:
            upper = [j if not j & size else j - size + _LANES for j in range(_LANES)]
            lower = [j + size if not j & size else j + _LANES for j in range(_LANES)]
            for i in range(_LANES):
                if not i & size:
                    pair = rows[i], rows[i + size]
                    rows[i], rows[i + size] = (builder.shuffle_vector(*pair, ir.Constant(mask, m)) for m in (upper, lower))
            size *= 2
        for i, row in enumerate(rows):
            builder.store(row, at(out, out_row, i), align=4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), generate


_flip: Callable[..., None] = intrinsic(_square)


@kernel
def _by_address(
    a: int, a_row: int, a_column: int, b: int, b_row: int, c: int, c_row: int, rows: int, columns: int, depth: int, add: int
) -> None:
    j = 0
    while j < columns:
        left, b_at, c_at = columns - j, b + 4 * j, c + 4 * j
        if left >= _PAIR:
            _two(a, a_row, a_column, b_at, b_row, c_at, c_row, rows, depth, add)
            j += _PAIR
        elif left >= _LANES:
            _one(a, a_row, a_column, b_at, b_row, c_at, c_row, rows, depth, add)
            j += _LANES
        elif left >= _FEW:
            _narrow(a, a_row, a_column, b_at, b_row, c_at, c_row, rows, depth, add)
            j += _FEW
        else:
            _single(a, a_row, a_column, b_at, b_row, c_at, c_row, rows, depth, add)
            j += 1


@kernel
def product(a: F32, b: F32, c: F32, add: bool) -> None:
    """Fill c = a b, or add: c += a b. Rows of `b` and `c` must be contiguous; `a` may have any strides. No overlap."""
    _by_address(
        _address(a), a.strides[0], a.strides[1], _address(b), b.strides[0], _address(c), c.strides[0],
        c.shape[0], c.shape[1], a.shape[1], 1 if add else 0,
    )  # fmt: skip


class Workspace(NamedTuple):
    """Memory that kernels cut matrices from, one after the other; `used` (1,) says how much is taken."""

    numbers: F32
    used: I64


def workspace(size: int) -> Workspace:
    """Room for `size` numbers."""
    return Workspace(np.empty(size, np.float32), np.zeros(1, np.int64))


@kernel
def room(space: Workspace, rows: int, columns: int) -> F32:
    """An unset matrix; set `space.used[0]` back to what it was before to give it up.

    Raises:
        MemoryError: the workspace is too small.
    """
    start = space.used[0]
    end = start + rows * columns
    if end > len(space.numbers):
        raise MemoryError("the workspace of a native kernel is too small")
    space.used[0] = end + (-end) % _ALIGN
    return space.numbers[start:end].reshape(rows, columns)


@kernel
def turned(a: F32, space: Workspace) -> F32:
    """The transpose as a matrix of its own; rows of `a` must be contiguous."""
    rows, columns = a.shape
    out = room(space, columns, rows)
    whole, square = rows - rows % _LANES, columns - columns % _LANES
    source, target = _address(a), _address(out)
    for i in range(0, whole, _LANES):
        for j in range(0, square, _LANES):
            _flip(source + i * a.strides[0] + 4 * j, a.strides[0], target + 4 * (j * rows + i), 4 * rows)
    for i in range(rows):
        for j in range(square if i < whole else 0, columns):
            out[j, i] = a[i, j]
    return out


@kernel
def column_sums(values: F32, out: F32) -> None:
    """Sum over rows, in their order."""
    out[:] = 0
    for i in range(values.shape[0]):
        for j in range(len(out)):
            out[j] += values[i, j]


@kernel
def affine(x: F32, weight: F32, bias: F32, out: F32) -> None:
    """Fill out = x W + b."""
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            out[i, j] = bias[j]
    product(x, weight, out, True)


@kernel
def sigmoid(values: F32, scale: float) -> None:
    """Replace values by scale x their sigmoid, to a few units in the last place; not a number stays what it is.

    exp(-|x|) = 2^n p(r) with the polynomial of Cephes (Moshier 1989); n is rounded by adding 1.5 x 2^23, which also leaves it in
    the low bits, so that no conversion to an integer can go wrong.
    """
    flat = values.reshape(values.size)
    one, by, low = np.float32(1), np.float32(scale), np.float32(-87)
    for i in range(len(flat)):
        x = flat[i]
        y = -abs(x)
        y = low if y < low else y  # noqa: FURB136 - not max, which may drop a NaN
        t = np.float32(y * np.float32(1.44269504) + np.float32(12582912.0))
        n = t - np.float32(12582912.0)
        r = (y - n * np.float32(0.693359375)) + n * np.float32(2.12194440e-4)
        p = np.float32(1.9875691500e-4)
        p = p * r + np.float32(1.3981999507e-3)
        p = p * r + np.float32(8.3334519073e-3)
        p = p * r + np.float32(4.1665795894e-2)
        p = p * r + np.float32(1.6666665459e-1)
        p = p * r + np.float32(0.5)
        p = p * r * r + r + one
        bits = np.int32((t.view(np.int32) << 23) + 0x3F800000)
        e = p * bits.view(np.float32)
        flat[i] = (one if x >= 0 else e) / (one + e) * by
