"""Matrices inside native kernels: the workspace they are cut from, their products and transposes.

The innermost parts are vector instructions (`models.panels`). Every element is one chain of fused multiply-adds in the order of
the inner dimension, whatever tile it falls in: a row of a product has the same bytes in any company.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba.core import cgutils, errors, types
from numba.extending import intrinsic
from numba.np import arrayobj

from models import panels
from models.panels import BROAD, FEW, HALF, LANES, PAIR
from models.vectors import address
from state.kernels import inlined, kernel

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
Words = tuple[int | np.int64, ...]
Held = TypeVar("Held")

_ALIGN = 16


@kernel
def _fill(words: Words, columns: int) -> None:
    """A product by its panels."""
    j = 0
    while j < columns:
        left = columns - j
        if left >= BROAD:
            panels.four(words, 4 * j)
            j += BROAD
        elif left >= PAIR:
            panels.two(words, 4 * j)
            j += PAIR
        elif left >= LANES:
            panels.one(words, 4 * j)
            j += LANES
        elif left >= FEW:
            panels.narrow(words, 4 * j)
            j += FEW
        else:
            panels.single(words, 4 * j)
            j += 1


@kernel
def _fill_at(words: Words, columns: int) -> None:
    """The same at listed rows."""
    j = 0
    while j < columns:
        left = columns - j
        if left >= BROAD:
            panels.four_at(words, 4 * j)
            j += BROAD
        elif left >= LANES:
            panels.one_at(words, 4 * j)
            j += LANES
        elif left >= HALF:
            panels.half_at(words, 4 * j)
            j += HALF
        else:
            panels.single_at(words, 4 * j)
            j += 1


@kernel
def _fill_over(words: Words, columns: int) -> None:
    """The same over listed rows."""
    j = 0
    while j < columns:
        left = columns - j
        if left >= BROAD:
            panels.four_over(words, 4 * j)
            j += BROAD
        elif left >= LANES:
            panels.one_over(words, 4 * j)
            j += LANES
        else:
            panels.single_over(words, 4 * j)
            j += 1


@kernel
def product(a: F32, b: F32, c: F32, add: bool) -> None:
    """Fill c = a b, or add: c += a b. Rows of `b` and `c` must be contiguous; `a` may have any strides. No overlap."""
    words = (
        address(a), a.strides[0], a.strides[1], address(b), b.strides[0], address(c), c.strides[0], address(c), c.strides[0],
        c.shape[0], a.shape[1], np.int64(add), np.int64(0),
    )  # fmt: skip
    _fill(words, c.shape[1])


@kernel
def product_from(first: int, a: F32, b: F32, c: F32, add: bool) -> None:
    """`product` for the columns from `first` on; apart, since a call more is felt in the many small products of a short step."""
    right, out = address(b) + 4 * first, address(c) + 4 * first
    words = (
        address(a), a.strides[0], a.strides[1], right, b.strides[0], out, c.strides[0], out, c.strides[0], c.shape[0], a.shape[1],
        np.int64(add), np.int64(0),
    )  # fmt: skip
    _fill(words, c.shape[1] - first)


@kernel
def product_on(start: int, start_row: int, a: F32, b: F32, c: F32) -> None:
    """Fill c = start + a b: `start` is the address of rows like those of `c`, `start_row` bytes apart; 0: of one for all."""
    words = (
        address(a), a.strides[0], a.strides[1], address(b), b.strides[0], address(c), c.strides[0], start, start_row,
        c.shape[0], a.shape[1], np.int64(1), np.int64(0),
    )  # fmt: skip
    _fill(words, c.shape[1])


@kernel
def product_at(rows: I64, start: int, start_row: int, a: F32, b: F32, c: F32) -> None:
    """`product_on` for some rows (n,) of `a`, `c` and, unless it is one for all, `start`."""
    words = (
        address(a), a.strides[0], a.strides[1], address(b), b.strides[0], address(c), c.strides[0], start, start_row,
        len(rows), a.shape[1], np.int64(1), address(rows),
    )  # fmt: skip
    _fill_at(words, c.shape[1])


@kernel
def product_over(rows: I64, a: F32, b: F32, c: F32, add: bool) -> None:
    """Fill c = a' b of some rows (n,) of a (m, inputs) and b (m, columns), or add it."""
    words = (
        address(a), a.strides[1], a.strides[0], address(b), b.strides[0], address(c), c.strides[0], address(c), c.strides[0],
        c.shape[0], len(rows), np.int64(add), address(rows),
    )  # fmt: skip
    _fill_over(words, c.shape[1])


class Workspace(NamedTuple):
    """Memory that kernels cut matrices from, one after the other; `used` (1,) says how much is taken."""

    numbers: F32
    used: I64


def workspace(size: int) -> Workspace:
    """Room for `size` numbers."""
    return Workspace(np.empty(size, np.float32), np.zeros(1, np.int64))


def _view(dimensions: int) -> Callable[..., Any]:
    """How an array of these dimensions is made at an address, as an intrinsic's code; nobody counts its references."""
    kind = types.Array(types.float32, dimensions, "C")

    def generate(context: Any, builder: Any, place: Any, shape: Sequence[Any]) -> Any:
        made, word = context.make_array(kind)(context, builder), ir.IntType(64)
        strides = [ir.Constant(word, 4)]
        for length in reversed(shape[1:]):
            strides.insert(0, builder.mul(length, strides[0]))
        data = builder.inttoptr(place, ir.PointerType(ir.FloatType()))
        arrayobj.populate_array(made, data, shape, strides, ir.Constant(word, 4), None)  # type: ignore[no-untyped-call]
        return made._getvalue()  # noqa: SLF001 - how numba itself reads it

    return generate


def _cut(_typing: Any, place: Any, rows: Any, columns: Any) -> Any:
    del place, rows, columns

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return _view(2)(context, builder, arguments[0], arguments[1:])

    return types.Array(types.float32, 2, "C")(*[types.int64] * 3), generate


_matrix = cast("Callable[[int, int, int], F32]", intrinsic(_cut))


def _let(_typing: Any, held: Any) -> Any:
    def bare(context: Any, builder: Any, kind: Any, value: Any) -> Any:
        if not isinstance(kind, types.Array):
            return value
        made = context.make_array(kind)(context, builder, value)
        made.meminfo = cgutils.get_null_value(made.meminfo.type)  # type: ignore[no-untyped-call]
        return made._getvalue()  # noqa: SLF001 - how numba itself reads it

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = signature.args[0]
        if isinstance(kind, types.Array):
            return bare(context, builder, kind, arguments[0])
        values = cgutils.unpack_tuple(builder, arguments[0])  # type: ignore[no-untyped-call]
        made = [bare(context, builder, *pair) for pair in zip(kind.types, values, strict=True)]
        return context.make_tuple(builder, kind, made)

    return held(held), generate


borrowed = cast("Callable[[Held], Held]", intrinsic(_let))
"""An array, or a tuple with arrays in it, whose references nobody counts: each slice and call would add and take away one.

The caller keeps the arrays alive.
"""


def _flatten(_typing: Any, array: Any) -> Any:
    if not isinstance(array, types.Array) or array.layout != "C":
        raise errors.TypingError(f"only contiguous arrays can be read as one run of numbers, not {array}")

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        held = context.make_array(signature.args[0])(context, builder, arguments[0])
        return _view(1)(context, builder, builder.ptrtoint(held.data, ir.IntType(64)), [held.nitems])

    return types.Array(types.float32, 1, "C")(array), generate


flat = cast("Callable[[F32], F32]", intrinsic(_flatten))
"""All numbers of a contiguous array as one run, valid as long as it is. `reshape` costs as much as a small product."""


@kernel
def part(numbers: F32, at: int, rows: int, columns: int) -> F32:
    """The numbers of a contiguous array from place `at` on as a matrix, valid as long as the array is; not checked."""
    return _matrix(address(numbers) + 4 * at, rows, columns)


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
    return part(space.numbers, start, rows, columns)


@kernel
def turn(a: F32, out: F32) -> None:
    """Fill `out` with the transpose; rows of both must be contiguous."""
    rows, columns = a.shape
    whole, square = rows - rows % LANES, columns - columns % LANES
    source, target = address(a), address(out)
    for i in range(0, whole, LANES):
        for j in range(0, square, LANES):
            panels.flip(source + i * a.strides[0] + 4 * j, a.strides[0], target + j * out.strides[0] + 4 * i, out.strides[0])
    for i in range(rows):
        for j in range(square if i < whole else 0, columns):
            out[j, i] = a[i, j]


@kernel
def turned(a: F32, space: Workspace) -> F32:
    """The transpose as a matrix of its own; rows of `a` must be contiguous."""
    out = room(space, a.shape[1], a.shape[0])
    turn(a, out)
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
    product_on(address(bias), 0, x, weight, out)


@inlined
def falling(x: np.float32) -> np.float32:
    """exp(-|x|) to a few units in the last place; not a number stays what it is.

    2^n p(r) with the polynomial of Cephes (Moshier 1989); n is rounded by adding 1.5 x 2^23, which also leaves it in the low
    bits, so that no conversion to an integer can go wrong.
    """
    low = np.float32(-87)
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
    p = p * r * r + r + np.float32(1)
    bits = np.int32((t.view(np.int32) << 23) + 0x3F800000)
    return p * bits.view(np.float32)


@kernel
def sigmoid(values: F32, scale: float) -> None:
    """Replace values by scale x their sigmoid, to a few units in the last place; not a number stays what it is."""
    numbers = flat(values)
    one, by = np.float32(1), np.float32(scale)
    for i in range(len(numbers)):
        x = numbers[i]
        e = falling(x)
        numbers[i] = (one if x >= 0 else e) / (one + e) * by


@kernel
def rectify(values: F32) -> None:
    """Replace what is below zero by zero."""
    numbers = flat(values)
    for i in range(len(numbers)):
        value = numbers[i]
        numbers[i] = np.float32(0) if value < 0 else value
