"""What was trained already: shown lists remembered by (request, task, version), so that a redelivered one is skipped."""

from typing import Any

import numpy as np
import numpy.typing as npt

from state import ids
from state.kernels import kernel

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
MIN_SLOTS = 1 << 12
BLOCK = 16

_ONE = np.uint64(1)


def keys_of(request: npt.NDArray[Any], task: npt.NDArray[Any], version: npt.NDArray[Any]) -> U64:
    """One 64-bit key per list. Two lists share one with probability 2**-64; 0 marks an empty slot, so it becomes 1."""
    return np.maximum(ids.mix(ids.mix(request, task), version.astype(np.uint64)), _ONE)


@kernel
def _add(keys: U64, table: U64, ring: U64, at: I64, fresh: Bools) -> np.uint64:
    """Open addressing with linear probing; `ring` holds the keys in order of insertion, `at` is [next place, keys held].

    The slots of a block of keys are read ahead, so that their cache misses overlap (2.5 times the keys per second); the sum of
    what was read is returned only so that the compiler keeps the reads.
    """
    last = np.uint64(len(table) - 1)
    touched = np.uint64(0)
    for i in range(len(keys)):
        if i % BLOCK == 0:
            for j in range(i, min(i + BLOCK, len(keys))):
                touched ^= table[keys[j] & last] ^ table[ring[(at[0] + j - i) % len(ring)] & last]
        key = keys[i]
        h = key & last
        while table[h] != 0 and table[h] != key:
            h = (h + np.uint64(1)) & last
        fresh[i] = table[h] == 0
        if not fresh[i]:
            continue
        if at[1] == len(ring):
            _forget(ring[at[0]], table)
            at[1] -= 1
            h = key & last
            while table[h] != 0:
                h = (h + np.uint64(1)) & last
        table[h] = key
        ring[at[0]] = key
        at[0] = (at[0] + 1) % len(ring)
        at[1] += 1
    return touched


@kernel
def _forget(key: np.uint64, table: U64) -> None:
    """Remove a key and close the gap (Knuth, The Art of Computer Programming, volume 3, section 6.4, algorithm R)."""
    last = np.uint64(len(table) - 1)
    hole = key & last
    while table[hole] != key:
        hole = (hole + np.uint64(1)) & last
    probe = hole
    while True:
        table[hole] = np.uint64(0)
        while True:
            probe = (probe + np.uint64(1)) & last
            if table[probe] == 0:
                return
            home = table[probe] & last
            if ((probe - home) & last) >= ((probe - hole) & last):
                break
        table[hole] = table[probe]
        hole = probe


class Seen:
    """Remembers the newest `capacity` lists, by order of insertion; a list forgotten and sent again is trained again."""

    def __init__(self, capacity: int) -> None:
        self._ring = np.zeros(capacity, np.uint64)
        self._table = np.zeros(max(MIN_SLOTS, 1 << (2 * capacity - 1).bit_length()), np.uint64)
        self._at = np.zeros(2, np.int64)

    def __len__(self) -> int:
        return int(self._at[1])

    def add(self, keys: U64) -> Bools:
        """Remember keys (L,) in order; true where a key was not known. Of two equal ones in one call the first is new."""
        fresh = np.empty(len(keys), np.bool_)
        _add(keys, self._table, self._ring, self._at, fresh)
        return fresh

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The state, as views: keys in the order of their place in the ring, and the place."""
        held = len(self._ring) if len(self) == len(self._ring) else int(self._at[0])
        return {"keys": self._ring[:held], "at": self._at}

    def load(self, arrays: dict[str, npt.NDArray[Any]]) -> None:
        """Take over a state. With a smaller capacity than it was saved with, the newest keys are kept."""
        keys = np.roll(arrays["keys"], -int(arrays["at"][0])) if int(arrays["at"][1]) == len(arrays["keys"]) else arrays["keys"]
        self._table[:] = 0
        self._at[:] = 0
        self.add(np.ascontiguousarray(keys[-len(self._ring) :]))
