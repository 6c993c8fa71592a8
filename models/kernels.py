"""Native kernels around the embedding table: id map probes, Adam, distinct support rows."""

from typing import Any

import numpy as np
import numpy.typing as npt

from models.vectors import address, ahead, alike, row_address
from state.kernels import inlined, kernel

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
U32 = npt.NDArray[np.uint32]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Bools = npt.NDArray[Any]

PAD = np.uint64(2**64 - 1)
# Rows of a minibatch between asking for memory and using it; bytes of a cache line.
_ROWS_AHEAD, _LINE = 2, 64
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_M1, _M2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S27, _S30, _S31 = np.uint64(27), np.uint64(30), np.uint64(31)
_HIGH, _FREE, _USED, _ADMITTED, _IDLE, _REFUSED = 0, 1, 2, 3, 4, 6


@kernel
def mix(z: np.uint64) -> np.uint64:
    """The finaliser of splitmix64 (Steele et al. 2014): a bijection of 64-bit words."""
    z = (z ^ (z >> _S30)) * _M1
    z = (z ^ (z >> _S27)) * _M2
    return z ^ (z >> _S31)


@kernel
def salts(fields: int) -> U64:
    """One random-looking word per field."""
    out = np.empty(fields, np.uint64)
    for f in range(fields):
        out[f] = mix(GOLDEN * np.uint64(f + 1))
    return out


@kernel
def find(ids: U64, field_of: I64, salt: U64, keys: U64, values: I32, out: I32) -> None:
    """Rows of ids: -1 for PAD, the field's shared row for an id without a row of its own."""
    last = np.uint64(len(keys) - 1)
    for i in range(ids.shape[0]):
        for f in range(ids.shape[1]):
            if ids[i, f] == PAD:
                out[i, f] = -1
                continue
            key = mix(ids[i, f] ^ salt[f])
            h = key & last
            while values[h] != 0 and keys[h] != key:
                h = (h + np.uint64(1)) & last
            out[i, f] = values[h] - 1 if values[h] > 0 else field_of[f]


@kernel
def touch(ids: U64, salt: U64, keys: U64, values: I32, seen: I64, now: int) -> int:
    """Mark the admitted ids among these as seen now; returns how many occurrences own no row."""
    last, unknown = np.uint64(len(keys) - 1), 0
    for i in range(ids.shape[0]):
        for f in range(ids.shape[1]):
            if ids[i, f] == PAD:
                continue
            key = mix(ids[i, f] ^ salt[f])
            h = key & last
            while values[h] != 0 and keys[h] != key:
                h = (h + np.uint64(1)) & last
            if values[h] > 0:
                seen[h] = now
            else:
                unknown += 1
    return unknown


@kernel
def _take(counts: I64, free: I32, rows: int) -> int:
    """A row that nobody owns, or -1."""
    if counts[_FREE] > 0:
        counts[_FREE] -= 1
        counts[_ADMITTED] += 1
        return int(free[counts[_FREE]])
    if counts[_HIGH] < rows:
        counts[_HIGH] += 1
        counts[_ADMITTED] += 1
        return int(counts[_HIGH] - 1)
    counts[_REFUSED] += 1
    return -1


@kernel
def admit(
    ids: U64, field_of: I64, salt: U64, keys: U64, values: I32, seen: I64, counts: I64, free: I32,
    now: int, admit_after: int, max_idle: int, rows: int, out: I32, fresh_rows: I32, fresh_keys: U64,
) -> int:  # fmt: skip
    """Count one sighting of each id and write its row; returns how many rows were handed out anew (`fresh_*`)."""
    last, n = np.uint64(len(keys) - 1), 0
    for i in range(ids.shape[0]):
        if i + _ROWS_AHEAD < ids.shape[0]:
            for f in range(ids.shape[1]):
                h = mix(ids[i + _ROWS_AHEAD, f] ^ salt[f]) & last
                ahead(address(keys) + 8 * int(h))
                ahead(address(values) + 4 * int(h))
                ahead(address(seen) + 8 * int(h))
        for f in range(ids.shape[1]):
            if ids[i, f] == PAD:
                out[i, f] = -1
                continue
            key = mix(ids[i, f] ^ salt[f])
            h = key & last
            while values[h] != 0 and keys[h] != key:
                h = (h + np.uint64(1)) & last
            value = before = values[h]
            if value == 0:
                keys[h] = key
                counts[_USED] += 1
            elif now - seen[h] > max_idle:
                if value > 0:
                    fresh_rows[n], fresh_keys[n] = value - 1, key
                    n += 1
                    counts[_IDLE] += 1
                else:
                    value = 0
            if seen[h] != now:
                seen[h] = now
            if value <= 0:
                value = value - 1 if value > -255 else value
                if -value >= admit_after:
                    row = _take(counts, free, rows)
                    if row >= 0:
                        value = row + 1
                        fresh_rows[n], fresh_keys[n] = row, key
                        n += 1
            # Lines that are not written to need not go back to memory.
            if value != before:
                values[h] = value
            out[i, f] = value - 1 if value > 0 else field_of[f]
    return n


@kernel
def insert(old_keys: U64, old_values: I32, old_seen: I64, keys: U64, values: I32, seen: I64) -> None:
    """Place distinct entries into an empty map."""
    last = np.uint64(len(keys) - 1)
    for i in range(len(old_keys)):
        h = old_keys[i] & last
        while values[h] != 0:
            h = (h + np.uint64(1)) & last
        keys[h], values[h], seen[h] = old_keys[i], old_values[i], old_seen[i]


@kernel
def squares(values: F32) -> float:
    """Sum of squares in double precision; not finite if any value is not.

    Number i belongs to lane i modulo 64, so that the loop vectorises in a fixed order.
    """
    lanes, whole = np.zeros(64, np.float64), len(values) - len(values) % 64
    for k in range(whole // 64):
        start = np.uintp(64 * k)
        for j in range(np.uintp(64)):
            v = np.float64(values[start + j])
            lanes[j] += v * v
    total = 0.0
    for j in range(whole, len(values)):
        total += np.float64(values[j]) * np.float64(values[j])
    for j in range(64):
        total += lanes[j]
    return total


@kernel
def adam(
    values: F32,
    mean: F32,
    square: F32,
    gradient: F32,
    scale: float,
    step: int,
    rate: float,
    beta1: float,
    beta2: float,
    decay: float,
) -> None:
    """Adam (Kingma and Ba 2015) with decoupled weight decay (Loshchilov and Hutter 2019); gradients are scaled by `scale`."""
    one = np.float32(1)
    b1, b2, s = np.float32(beta1), np.float32(beta2), np.float32(scale)
    by = np.float32(rate / (1.0 - beta1**step))
    root = np.float32(1.0 / np.sqrt(1.0 - beta2**step))
    keep = np.float32(1.0 - rate * decay)
    for i in range(len(values)):
        g = gradient[i] * s
        mean[i] = b1 * mean[i] + (one - b1) * g
        square[i] = b2 * square[i] + (one - b2) * g * g
        values[i] = values[i] * keep - by * mean[i] / (np.sqrt(square[i]) * root + np.float32(1e-8))


@inlined
def _fetch(place: int, size: int) -> None:
    """Ask for the cache lines of so many bytes: support rows lie in memory as a message brought them."""
    for line in range(0, size, _LINE):
        ahead(place + line)
    ahead(place + size - 4)


@inlined
def _same(i: int, j: int, ids: U64, x: U32, label: U32) -> bool:
    return (
        alike(row_address(ids, i), row_address(ids, j), 2 * ids.shape[1])
        and alike(row_address(x, i), row_address(x, j), x.shape[1])
        and alike(row_address(label, i), row_address(label, j), label.shape[1])
    )


@kernel
def distinct(
    ids: U64, x: U32, label: U32, counts: I64, wanted: Bools, cap: int, index: I32, taken: I64, first: I64, slots: I32
) -> int:
    """Which support rows must be computed: lists of one task close together share most of theirs.

    The newest `cap` rows of each wanted list are kept. `index` (L, cap) points into the distinct rows, whose positions are
    `first[:n]`; `taken` (L,) is how many a list kept. Rows are equal when every bit is; the ids alone tell most apart, so they
    are the hash. Where a list repeats a row of an earlier one, its next row is likely that one's next: only others are hashed.
    `slots`: power-of-two scratch.
    """
    slots[:] = -1
    last, n, end = np.uint64(len(slots) - 1), 0, 0
    for t in range(len(counts)):
        start, end = end, end + counts[t]
        taken[t] = 0
        if not wanted[t]:
            continue
        start, found = max(start, end - cap), n
        later = end
        if t + 1 < len(counts):
            later = max(end, end + counts[t + 1] - cap)
        for i in range(start, end):
            ask = min(later + i - start, len(ids) - 1)
            _fetch(row_address(ids, ask), 8 * ids.shape[1])
            _fetch(row_address(x, ask), 4 * x.shape[1])
            if found >= n or not _same(i, first[found], ids, x, label):
                h = np.uint64(0)
                for f in range(ids.shape[1]):
                    h += (ids[i, f] ^ (GOLDEN * np.uint64(f))) * _M1
                h = mix(h) & last
                while slots[h] >= 0 and not _same(i, first[slots[h]], ids, x, label):
                    h = (h + np.uint64(1)) & last
                if slots[h] < 0:
                    slots[h] = n
                    first[n] = i
                    n += 1
                found = slots[h]
            index[t, i - start] = found
            found += 1
        taken[t] = end - start
    return n
