"""64-bit keys to dense slots, by open addressing: vectorised, bounded, and every key is legal.

A table holds several kinds of key side by side, so that one kernel serves them all. Slots of a kind are 0 to `used` - 1.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from state.kernels import kernel

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

UNKNOWN, PENDING, FLYING, ASKED = 1, 2, 4, 8
"""Flags of a slot: not read yet; holds what the store lacks; on its way to the store; a fresh value has been asked for."""

_SPREAD, _TOP = np.uint64(0x9E3779B97F4A7C15), np.uint64(20)


class Table(NamedTuple):
    """K kinds, `capacity` C slots each, kept at most half full. `heads` (K, 2C) holds slot + 1, 0 is empty; the rest (K, C)."""

    heads: npt.NDArray[np.int32]
    keys: U64
    used: I64
    flags: npt.NDArray[np.uint8]
    read_at: npt.NDArray[np.float64]
    seen: I64

    @property
    def capacity(self) -> int:
        """Slots of each kind."""
        return int(self.keys.shape[1])


def empty(kinds: int, capacity: int) -> Table:
    """A table of `kinds` kinds; `capacity` is rounded up to a power of two. Memory is taken as it is touched."""
    size = 1 << max(3, (capacity - 1).bit_length())
    return Table(
        np.zeros((kinds, 2 * size), np.int32),
        np.zeros((kinds, size), np.uint64),
        np.zeros(kinds, np.int64),
        np.zeros((kinds, size), np.uint8),
        np.zeros((kinds, size)),
        np.zeros((kinds, size), np.int64),
    )


@kernel
def find(table: Table, kind: int, key: np.uint64) -> int:
    """The slot of `key`, or -1."""
    mask = np.uint64(table.heads.shape[1] - 1)
    at = (key * _SPREAD) >> _TOP
    while True:
        slot = table.heads[kind, at & mask] - 1
        if slot < 0 or table.keys[kind, slot] == key:
            return int(slot)
        at += np.uint64(1)


@kernel
def add(table: Table, kind: int, key: np.uint64) -> int:
    """The slot of `key`, a new one (flag UNKNOWN) if it has none; -1 if the kind is full."""
    mask = np.uint64(table.heads.shape[1] - 1)
    at = (key * _SPREAD) >> _TOP
    while True:
        slot = table.heads[kind, at & mask] - 1
        if slot < 0:
            slot = table.used[kind]
            if slot >= table.keys.shape[1]:
                return -1
            table.heads[kind, at & mask] = slot + 1
            table.keys[kind, slot] = key
            table.flags[kind, slot] = UNKNOWN
            table.read_at[kind, slot] = 0.0
            table.seen[kind, slot] = 0
            table.used[kind] += 1
            return int(slot)
        if table.keys[kind, slot] == key:
            return int(slot)
        at += np.uint64(1)


@kernel
def find_all(table: Table, kind: int, keys: U64) -> I64:
    """`find` of each key."""
    out = np.empty(len(keys), np.int64)
    for i in range(len(keys)):
        out[i] = find(table, kind, keys[i])
    return out


@kernel
def add_all(table: Table, kind: int, keys: U64, seen: int) -> I64:
    """`add` of each key, marked as seen in batch `seen`; where the kind is full, -1."""
    out = np.empty(len(keys), np.int64)
    for i in range(len(keys)):
        slot = add(table, kind, keys[i])
        out[i] = slot
        if slot >= 0:
            table.seen[kind, slot] = seen
    return out


@kernel
def reindex(table: Table, kind: int) -> None:
    """Rebuild the index of a kind from its keys."""
    mask = np.uint64(table.heads.shape[1] - 1)
    table.heads[kind, :] = 0
    for slot in range(table.used[kind]):
        at = (table.keys[kind, slot] * _SPREAD) >> _TOP
        while table.heads[kind, at & mask] != 0:
            at += np.uint64(1)
        table.heads[kind, at & mask] = slot + 1


def keep(table: Table, kind: int, slots: I64) -> None:
    """Forget all of a kind but `slots` (ascending), which become 0, 1, ...; the caller moves what belongs to them."""
    n = len(slots)
    per_slot: tuple[npt.NDArray[Any], ...] = (table.keys, table.flags, table.read_at, table.seen)
    for array in per_slot:
        array[kind, :n] = array[kind, slots]
    table.used[kind] = n
    reindex(table, kind)


def grown(table: Table) -> Table:
    """The same content with twice the capacity."""
    bigger = empty(len(table.used), 2 * table.capacity)
    pairs: tuple[tuple[npt.NDArray[Any], npt.NDArray[Any]], ...] = (
        (bigger.keys, table.keys),
        (bigger.flags, table.flags),
        (bigger.read_at, table.read_at),
        (bigger.seen, table.seen),
    )
    for new, old in pairs:
        new[:, : table.capacity] = old
    bigger.used[:] = table.used
    for kind in range(len(table.used)):
        reindex(bigger, kind)
    return bigger


def kept(table: Table, kind: int, now: int) -> I64:
    """Slots worth keeping when a kind is full: what the store lacks, what batch `now` uses, the lately seen half of the rest."""
    used = int(table.used[kind])
    seen, flags = table.seen[kind, :used], table.flags[kind, :used]
    held = (flags & (PENDING | FLYING)) > 0
    recent = seen > np.median(seen[~held]) if (~held).any() else np.zeros(used, bool)
    return np.flatnonzero(held | (seen >= now) | (recent & ((flags & UNKNOWN) == 0)))
