"""Native kernels of the embedding table's rows: first values, reading with mean pooling, exact row-wise AdaGrad.

A row while training is one run of E + 4 float32: the embedding, a first-order weight, the sum of squared gradients of each,
and a mark. All that a step needs of an id so lies in neighbouring cache lines, which are asked for ahead of time. Served rows end
after the weight; kernels that only read take both.

Duplicates are found while rows are read: an occurrence leaves its number in the row's mark and takes the one it finds there as
the occurrence before it. Before gradients come back to rows, each of those that have one before is added to what that one has;
only the last of a row's occurrences then changes the row.
"""

import numpy as np
import numpy.typing as npt

from models.kernels import GOLDEN, mix
from models.vectors import adagrad, add, address, ahead, row_address, write
from state.kernels import kernel

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]
F32 = npt.NDArray[np.float32]

BESIDE = 4
"""Words of a row behind its embedding: first-order weight, two accumulators, mark."""
# Bytes of a cache line; ids between asking for a row and using it: as many as the second-level cache gets at once.
_LINE, _AHEAD = 64, 64
_LOW16 = np.uint64(0xFFFF)
_S16, _S32, _S48 = np.uint64(16), np.uint64(32), np.uint64(48)


@kernel
def initialise(state: F32, rows: I32, keys: U64, seed: int, scale: float, start: float) -> None:
    """Give rows their first values, a function of (seed, key): about normal, the sum of four uniforms; first-order weight 0."""
    width = state.shape[1] - BESIDE
    for i in range(len(rows)):
        word = mix(keys[i] ^ mix(np.uint64(seed) + GOLDEN))
        for d in range(width):
            word += GOLDEN
            z = mix(word)
            total = (z & _LOW16) + ((z >> _S16) & _LOW16) + ((z >> _S32) & _LOW16) + (z >> _S48)
            state[rows[i], d] = np.float32((np.float64(total) / 65536.0 - 2.0) * 1.7320508075688772 * scale)
        state[rows[i], width] = 0
        state[rows[i], width + 1] = start
        state[rows[i], width + 2] = start


@kernel
def _fetch(place: int, size: int) -> None:
    """Ask for all cache lines of `size` bytes from a multiple of 16 on."""
    ahead(place)
    if size > 2 * _LINE:
        for line in range(_LINE, size - _LINE + 1, _LINE):
            ahead(place + line)
    ahead(place + size - 4)


@kernel
def _rows_ahead(ids: int) -> int:
    return (_AHEAD + ids - 1) // max(ids, 1)


@kernel
def _pool(table: F32, width: int, rows: I32, starts: I64, widths: I64, i: int, later: int, size: int, out: F32) -> None:
    """One row's mean-pooled embeddings and first-order weights, absent ones zero; asks for `size` bytes of those `later`."""
    place, line, target, one = address(table), table.strides[0], row_address(out, i), np.float32(1)
    first, more, here, ahead_of = out.shape[1] - len(starts), i + later < rows.shape[0], np.uintp(i), np.uintp(i + later)
    beside, weight_of = np.uintp(first), np.uintp(width)
    for c in range(np.uintp(len(starts))):
        at, start, n, weight = target + 4 * np.int64(c) * width, starts[c], 0, np.float32(0)
        for f in range(np.uintp(start), np.uintp(start + widths[c])):
            if more:
                _fetch(place + max(rows[ahead_of, f], 0) * line, size)
            r = rows[here, f]
            if r < 0:
                continue
            n += 1
            if n == 1:
                write(at, place + r * line, one, width)
                weight = table[np.uintp(r), weight_of]
            else:
                add(at, place + r * line, one, width)
                weight += table[np.uintp(r), weight_of]
        if n > 1:
            share = one / np.float32(n)
            write(at, at, share, width)
            weight *= share
        elif n == 0:
            for d in range(c * np.uintp(width), (c + np.uintp(1)) * np.uintp(width)):
                out[here, d] = 0
        out[here, beside + c] = weight


@kernel
def _numbers(x: F32, mean: F32, scale: F32, i: int, beside: int, out: F32) -> None:
    """One row's numbers from column `beside` on, standardised and clipped; what is not finite is the mean."""
    clip = np.float32(4)
    # Unsigned places: a sum that might be negative would be checked for it, and the loop not be vectorised.
    at = np.uintp(beside)
    for j in range(np.uintp(x.shape[1])):
        v = (x[i, j] - mean[j]) * scale[j]
        out[i, at + j] = min(max(v, -clip), clip) if np.isfinite(v) else np.float32(0)


@kernel
def gather(table: F32, width: int, rows: I32, starts: I64, widths: I64, x: F32, mean: F32, scale: F32, out: F32) -> None:
    """Fill `[C x E mean-pooled embeddings | D standardised numbers | ... | C first-order weights]`; absent values are zero."""
    later = _rows_ahead(rows.shape[1])
    for i in range(rows.shape[0]):
        _pool(table, width, rows, starts, widths, i, later, 4 * width + 4, out)
        _numbers(x, mean, scale, i, len(starts) * width, out)


@kernel
def _mark(marks: I32, rows: I32, i: int, before: I32, stamp: int) -> None:
    """Chain the occurrences of one minibatch row: `before` gets the number (from 1) of the one before, or nothing above 0."""
    at, here, first, base = np.uintp(marks.shape[1] - 1), np.uintp(i), np.uintp(i * rows.shape[1]), np.int32(stamp)
    for f in range(np.uintp(rows.shape[1])):
        e, r = first + f, rows[here, f]
        if r >= 0:
            before[e] = marks[np.uintp(r), at] - base
            marks[np.uintp(r), at] = base + np.int32(e) + np.int32(1)
        else:
            before[e] = 0


@kernel
def _one_by_one(starts: I64, widths: I64) -> bool:
    """Whether every category has one id column, its own."""
    others = 0
    for c in range(len(widths)):
        others += widths[c] != 1 or starts[c] != c
    return others == 0


@kernel
def _single_to_learn(state: F32, marks: I32, rows: I32, out: F32, before: I32, stamp: int) -> None:
    """`_pool` and `_mark` of all rows where every category has one id column: no more than a copy and a look at the mark."""
    width, later, line, place = state.shape[1] - BESIDE, _rows_ahead(rows.shape[1]), state.strides[0], address(state)
    first, weight_of, mark_of = np.uintp(out.shape[1] - rows.shape[1]), np.uintp(width), np.uintp(width + 3)
    base, e = np.int32(stamp), np.int32(0)
    for i in range(rows.shape[0]):
        here, ahead_of, more, target = np.uintp(i), np.uintp(i + later), i + later < rows.shape[0], row_address(out, i)
        for f in range(np.uintp(rows.shape[1])):
            if more:
                _fetch(place + max(rows[ahead_of, f], 0) * line, line)
            r, e = rows[here, f], e + np.int32(1)
            if r >= 0:
                k = np.uintp(r)
                write(target, place + r * line, np.float32(1), width)
                out[here, first + f] = state[k, weight_of]
                before[np.uintp(e - np.int32(1))] = marks[k, mark_of] - base
                marks[k, mark_of] = base + e
            else:
                for d in range(f * weight_of, (f + np.uintp(1)) * weight_of):
                    out[here, d] = 0
                out[here, first + f] = 0
                before[np.uintp(e - np.int32(1))] = 0
            target += 4 * width


@kernel
def gather_to_learn(
    state: F32, marks: I32, rows: I32, starts: I64, widths: I64, x: F32, mean: F32, scale: F32, out: F32,
    before: I32, stamp: int,
) -> None:  # fmt: skip
    """`gather`, and `mark` in the same visit. `marks` are the words of `state`."""
    width, later, line = state.shape[1] - BESIDE, _rows_ahead(rows.shape[1]), state.strides[0]
    single = _one_by_one(starts, widths)
    if single:
        _single_to_learn(state, marks, rows, out, before, stamp)
    for i in range(rows.shape[0]):
        if not single:
            _pool(state, width, rows, starts, widths, i, later, line, out)
            _mark(marks, rows, i, before, stamp)
        _numbers(x, mean, scale, i, len(starts) * width, out)


@kernel
def mark(marks: I32, rows: I32, before: I32, stamp: int) -> None:
    """Find the duplicates among rows (n, F): marks then are from `stamp` + 1 to `stamp` + n x F, and were at most `stamp`."""
    for i in range(rows.shape[0]):
        _mark(marks, rows, i, before, stamp)


@kernel
def gather_each(table: F32, width: int, rows: I32, each: I64, at: int, out: F32) -> None:
    """Fill, from column `at`, the embeddings of the id columns `each` one by one, and then 1 for each that is present, else 0."""
    present = at + len(each) * width
    for i in range(rows.shape[0]):
        for k in range(len(each)):
            r = rows[i, each[k]]
            for d in range(width):
                out[i, at + k * width + d] = table[r, d] if r >= 0 else np.float32(0)
            out[i, present + k] = np.float32(1) if r >= 0 else np.float32(0)


@kernel
def _list(rows: I32, summed: Bools, before: I32, listed: I32) -> int:
    """List the occurrences that need a sum: those with one before, and all of columns `summed`. Returns how many.

    Rows that were marked twice name themselves or a later one first: that is none before it. Without a branch, which would
    be guessed wrongly as often as ids repeat.
    """
    n, e, ids = np.uintp(0), np.uint32(0), rows.shape[1]
    if summed.any():
        for i in range(rows.shape[0]):
            for f in range(ids):
                listed[n] = e
                n += np.uintp((summed[f] and rows[i, f] >= 0) or np.uint32(before[np.uintp(e)] - np.int32(1)) < e)
                e += np.uint32(1)
    else:
        for k in range(np.uintp(rows.size)):
            listed[n] = k
            n += np.uintp(np.uint32(before[k] - np.int32(1)) < np.uint32(k))
    return int(n)


@kernel
def _sum(
    rows: I32, starts: I64, widths: I64, of: I64, apart: I64, summed: Bools, at: int, gradient: F32, before: I32, listed: I32,
    slot: I32, sums: F32,
) -> None:  # fmt: skip
    """Sum the gradients of occurrences, each with what the one before has; the last number of `sums` (m, E + 1) is the weight's.

    `slot` gets of each occurrence its place in `sums` from 1; 0 if its gradient is one run of numbers, -1 if a later one has it.
    """
    width, ids, first, one = sums.shape[1] - 1, np.uint32(rows.shape[1]), gradient.shape[1] - len(starts), np.float32(1)
    beside, weight_of = np.uintp(first), np.uintp(width)
    slot[: rows.size] = 0
    for k in range(np.uintp(_list(rows, summed, before, listed))):
        e, target = np.uint32(listed[k]), row_address(sums, np.int64(k))
        i = e // ids
        f, here, share, weight = np.uintp(e - i * ids), np.uintp(i), one, np.float32(0)
        c, slope, b = np.uintp(of[f]), row_address(gradient, np.int64(i)), before[np.uintp(e)]
        if widths[c] > 1:
            present = 0
            for other in range(starts[c], starts[c] + widths[c]):
                present += rows[here, other] >= 0
            share = one / np.float32(present)
        if 0 < b <= np.int32(e):
            last = np.uintp(b - 1)
            s = slot[last]
            if s > 0:
                held = np.uintp(s - 1)
                write(target, row_address(sums, np.int64(held)), one, width)
                weight = sums[held, weight_of]
            else:
                j = np.uint32(last) // ids
                d = np.uintp(of[np.uintp(np.uint32(last) - j * ids)])
                write(target, row_address(gradient, np.int64(j)) + 4 * np.int64(d) * width, one, width)
                weight = gradient[np.uintp(j), beside + d]
            slot[last] = -1
            add(target, slope + 4 * np.int64(c) * width, share, width)
        else:
            write(target, slope + 4 * np.int64(c) * width, share, width)
        if apart[f] >= 0:
            add(target, slope + 4 * (at + apart[f] * width), one, width)
        sums[k, weight_of] = weight + gradient[here, beside + c] * share
        slot[np.uintp(e)] = np.int32(k) + np.int32(1)


@kernel
def descend(
    state: F32, rows: I32, starts: I64, widths: I64, used: I64, of: I64, apart: I64, summed: Bools, at: int, gradient: F32,
    rate: float, before: I32, listed: I32, slot: I32, sums: F32,
) -> None:  # fmt: skip
    """Row-wise AdaGrad (Duchi et al. 2011, one accumulator per row), exact on duplicates: summed first, then one step.

    Rows of category c have `used[c]` numbers; those beyond stay as they are and do not count in the accumulator.

    Rows (n, F) were marked (`mark`). Column f is of category `of[f]`; where it was gathered one by one as well, that is
    place `apart[f]` (else -1) from column `at` on; `summed[f]`: whether that is so or its category is pooled. The first-order
    weight has an accumulator of its own, as its gradient is of another size. `gradient` is of gathered rows; `listed` and
    `slot` (n x F,) and `sums` (n x F, E + 1) are scratch.
    """
    width, line, place, later = state.shape[1] - BESIDE, state.strides[0], address(state), _rows_ahead(rows.shape[1])
    first, step, share = np.uintp(gradient.shape[1] - len(starts)), -np.float32(rate), np.float32(1) / used.astype(np.float32)
    e = np.uintp(0)
    _sum(rows, starts, widths, of, apart, summed, at, gradient, before, listed, slot, sums)
    for i in range(rows.shape[0]):
        here, ahead_of, more, slope = np.uintp(i), np.uintp(i + later), i + later < rows.shape[0], row_address(gradient, i)
        for f in range(np.uintp(rows.shape[1])):
            if more:
                _fetch(place + max(rows[ahead_of, f], 0) * line, line)
            r, c, s, e = np.int64(rows[here, f]), np.uintp(of[f]), slot[e], e + np.uintp(1)
            if r < 0 or s < 0:
                continue
            source, weight = slope + 4 * np.int64(c) * width, gradient[here, first + c]
            if s > 0:
                held = np.uintp(s - 1)
                source, weight = row_address(sums, np.int64(held)), sums[held, np.uintp(width)]
            target = place + r * line
            adagrad(target, target + 4 * width, source, weight, used[c], share[c], step)
