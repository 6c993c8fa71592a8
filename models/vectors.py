"""Short runs of numbers inside native kernels, by address: fetched ahead, copied, added, squared.

A row of an embedding table has a few vectors' length, at which a plain loop spends its time on asking whether its arrays overlap,
and lies somewhere in memory, where a processor waits for it unless it is asked for ahead of time. Vectors have 8 numbers on
every machine, so that sums have the same bytes everywhere. Addresses are not checked: callers stay within their arrays.
"""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from state.kernels import kernel

LANES, USUAL = 8, 16
_NUMBER = ir.FloatType()
_VECTOR = ir.VectorType(_NUMBER, LANES)
_INDEX = ir.IntType(32)
_TINY = float(np.float32(1e-8))
"""What AdaGrad adds to a root, for accumulators of nothing."""


def _locate(_typing: Any, array: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        held = context.make_array(signature.args[0])(context, builder, arguments[0])
        return builder.ptrtoint(held.data, ir.IntType(64))

    return types.int64(array), generate


address = cast("Callable[[Any], int]", intrinsic(_locate))
"""Where an array's numbers begin."""


@kernel
def row_address(array: npt.NDArray[Any], i: int | np.int64) -> int:
    """Where row i begins. A slice counts its users, which costs more than a short run of numbers."""
    return address(array) + int(i) * array.strides[0]


def _ahead(_typing: Any, place: Any) -> Any:
    del place

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        byte = ir.PointerType(ir.IntType(8))
        kind = ir.FunctionType(ir.VoidType(), [byte, _INDEX, _INDEX, _INDEX])
        fetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")  # type: ignore[no-untyped-call]
        read, near, data = (ir.Constant(_INDEX, value) for value in (0, 2, 1))
        builder.call(fetch, [builder.inttoptr(arguments[0], byte), read, near, data])
        return context.get_dummy_value()

    return types.void(types.int64), generate


ahead = cast("Callable[[int], None]", intrinsic(_ahead))
"""Ask for the cache line of an address, any address, into the second-level cache.

The first level has few places for lines that are under way: asking for that one, reading rows took twice as long.
"""


def _each(builder: Any, count: Any, run: Callable[[ir.Type, Any], None]) -> None:
    """`run` with a type and the offset in bytes: vectors while there is a whole one, then numbers; no loop at the usual width."""
    word = count.type
    usual = builder.icmp_unsigned("==", count, ir.Constant(word, USUAL))
    with builder.if_else(usual) as (straight, loops):
        with straight:
            for at in range(0, USUAL, LANES):
                run(_VECTOR, ir.Constant(word, 4 * at))
        with loops:
            _loops(builder, count, run)


def _loops(builder: Any, count: Any, run: Callable[[ir.Type, Any], None]) -> None:
    word = count.type
    whole = builder.and_(count, ir.Constant(word, -LANES))
    zero, lanes, one, wide = (ir.Constant(word, value) for value in (0, LANES, 1, 4))
    with cgutils.for_range_slice(builder, zero, whole, lanes, intp=word) as (at, _):
        run(_VECTOR, builder.mul(at, wide))
    with cgutils.for_range_slice(builder, whole, count, one, intp=word) as (at, _):
        run(_NUMBER, builder.mul(at, wide))


def _at(builder: Any, kind: ir.Type, base: Any, offset: Any) -> Any:
    return builder.inttoptr(builder.add(base, offset), ir.PointerType(kind))


def _spread(builder: Any, kind: ir.Type, value: Any) -> Any:
    if kind is _NUMBER:
        return value
    one = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), value, ir.Constant(_INDEX, 0))
    return builder.shuffle_vector(one, ir.Constant(_VECTOR, ir.Undefined), ir.Constant(ir.VectorType(_INDEX, LANES), [0] * LANES))


def _moved(builder: Any, target: Any, source: Any, by: Any, count: Any, add: bool) -> None:
    def run(kind: ir.Type, offset: Any) -> None:
        place = _at(builder, kind, target, offset)
        value = builder.load(_at(builder, kind, source, offset), align=4)
        value = builder.fmul(value, _spread(builder, kind, by))
        builder.store(builder.fadd(builder.load(place, align=4), value) if add else value, place, align=4)

    _each(builder, count, run)


def _move(add: bool) -> Callable[..., None]:
    """Write, or add, `by` x the numbers at `source`."""

    def move(_typing: Any, target: Any, source: Any, by: Any, count: Any) -> Any:
        del target, source, by, count

        def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            target, source, by, count = arguments
            _moved(builder, target, source, by, count, add)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.float32, types.int64), generate

    return cast("Callable[..., None]", intrinsic(move))


write = _move(add=False)
"""`write(target, source, by, count)`: target = by x source."""
add = _move(add=True)
"""`add(target, source, by, count)`: target += by x source."""


def _sum(builder: Any, one: Any, other: Any, count: Any) -> Any:
    """Sum of the products of two runs: every lane by itself, then halves of the lanes."""
    zeros, zero = ir.Constant(_VECTOR, [0.0] * LANES), ir.Constant(_NUMBER, 0.0)
    places = {
        _VECTOR: cgutils.alloca_once_value(builder, zeros),  # type: ignore[no-untyped-call]
        _NUMBER: cgutils.alloca_once_value(builder, zero),  # type: ignore[no-untyped-call]
    }
    for kind, start in ((_VECTOR, zeros), (_NUMBER, zero)):
        builder.store(start, places[kind])

    def run(kind: ir.Type, offset: Any) -> None:
        value, by = (builder.load(_at(builder, kind, base, offset), align=4) for base in (one, other))
        builder.store(builder.fadd(builder.load(places[kind]), builder.fmul(value, by)), places[kind])

    _each(builder, count, run)
    vector, half = builder.load(places[_VECTOR]), LANES // 2
    while half:
        other = ir.Constant(ir.VectorType(_INDEX, LANES), [lane ^ half for lane in range(LANES)])
        vector, half = builder.fadd(vector, builder.shuffle_vector(vector, vector, other)), half // 2
    return builder.fadd(builder.extract_element(vector, ir.Constant(_INDEX, 0)), builder.load(places[_NUMBER]))


def _square(_typing: Any, source: Any, count: Any) -> Any:
    del source, count

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        source, count = arguments
        return _sum(builder, source, source, count)

    return types.float32(types.int64, types.int64), generate


def _dot(_typing: Any, one: Any, other: Any, count: Any) -> Any:
    del one, other, count

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return _sum(builder, *arguments)

    return types.float32(types.int64, types.int64, types.int64), generate


squares = cast("Callable[[int, int], Any]", intrinsic(_square))
"""`squares(source, count)`: sum of the squares."""
dot = cast("Callable[[int, int, int], Any]", intrinsic(_dot))
"""`dot(one, other, count)`: sum of the products."""


def _adagrad(_typing: Any, place: Any, beside: Any, source: Any, weight: Any, count: Any, share: Any, step: Any) -> Any:
    del place, beside, source, weight, count, share, step
    pair = ir.VectorType(_NUMBER, 2)

    def both(builder: Any, first: Any, second: Any) -> Any:
        one = builder.insert_element(ir.Constant(pair, ir.Undefined), first, ir.Constant(_INDEX, 0))
        return builder.insert_element(one, second, ir.Constant(_INDEX, 1))

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        place, beside, source, weight, count, share, step = arguments
        mean = builder.fmul(_sum(builder, source, source, count), share)
        squares_at = _at(builder, pair, beside, ir.Constant(beside.type, 4))
        squares = builder.fadd(builder.load(squares_at, align=4), both(builder, mean, builder.fmul(weight, weight)))
        builder.store(squares, squares_at, align=4)
        kind = ir.FunctionType(pair, [pair])
        root = cgutils.get_or_insert_function(builder.module, kind, "llvm.sqrt.v2f32")  # type: ignore[no-untyped-call]
        bottom = builder.fadd(builder.call(root, [squares]), ir.Constant(pair, [_TINY, _TINY]))
        by = builder.fdiv(both(builder, step, step), bottom)
        weight_at = _at(builder, _NUMBER, beside, ir.Constant(beside.type, 0))
        change = builder.fmul(builder.extract_element(by, ir.Constant(_INDEX, 1)), weight)
        builder.store(builder.fadd(builder.load(weight_at, align=4), change), weight_at, align=4)
        _moved(builder, place, source, builder.extract_element(by, ir.Constant(_INDEX, 0)), count, add=True)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3, types.float32, types.int64, types.float32, types.float32), generate


adagrad = cast("Callable[..., None]", intrinsic(_adagrad))
"""`adagrad(place, beside, source, weight, count, share, step)`: one step of a run of numbers at `place` and of a number.

At `beside` lie that number, the run's accumulator and the number's. Gradients are `count` numbers at `source`, whose squares
count `share` each, and `weight`; `step` is minus the rate. Both roots and both quotients are taken at once.
"""


def _alike(_typing: Any, one: Any, other: Any, words: Any) -> Any:
    del one, other, words
    vector = ir.VectorType(_INDEX, LANES)

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        one, other, words = arguments
        word = words.type
        zero, lanes, wide = (ir.Constant(word, value) for value in (0, LANES, 4))
        apart = cgutils.alloca_once_value(builder, ir.Constant(vector, [0] * LANES))  # type: ignore[no-untyped-call]
        rest = cgutils.alloca_once_value(builder, ir.Constant(_INDEX, 0))  # type: ignore[no-untyped-call]

        def differ(kind: ir.Type, place: Any, at: Any) -> None:
            offset = builder.mul(at, wide)
            values = [builder.load(_at(builder, kind, base, offset), align=4) for base in (one, other)]
            builder.store(builder.or_(builder.load(place), builder.xor(*values)), place)

        with builder.if_else(builder.icmp_signed(">=", words, lanes)) as (vectors, numbers):
            with vectors:
                last = builder.sub(words, lanes)
                with cgutils.for_range_slice(builder, zero, last, lanes, intp=word) as (at, _):
                    differ(vector, apart, at)
                differ(vector, apart, last)
            with numbers, cgutils.for_range(builder, words, intp=word) as loop:
                differ(_INDEX, rest, loop.index)
        whole = ir.IntType(32 * LANES)
        found = builder.or_(builder.bitcast(builder.load(apart), whole), builder.zext(builder.load(rest), whole))
        return builder.icmp_unsigned("==", found, ir.Constant(whole, 0))

    return types.boolean(types.int64, types.int64, types.int64), generate


alike = cast("Callable[[int, int, int], bool]", intrinsic(_alike))
"""`alike(one, other, words)`: whether two runs of 32-bit words have the same bits. The last vector overlaps the one before it."""
