"""64-bit ids to rows of the embedding table: admission after n sightings, eviction by idle event time and by budget.

Open addressing over field-mixed keys. Mixing is a bijection within a field and the mark of an empty slot is not a key, so every
64-bit id is legal. A slot's value is 0 (empty), -n (seen n times, not admitted) or row + 1. Rows below `fields` are the shared
rows, one per field, which stand in for every id without a row of its own.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from models import kernels, pages

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]

FIRST_SLOTS = 1 << 12
MAX_LOAD = 0.6
SWEEP_SHARE = 16
"""A sweep for budget frees at least a sixteenth of the capacity, so that its cost is spread over as many admissions."""
HIGH, FREE, USED, ADMITTED, IDLE, BUDGET, REFUSED, SWEPT, CLOCK, SIZE = range(10)


class Fresh(NamedTuple):
    """Rows that were handed out by one call and must be initialised, with their mixed keys."""

    rows: I32
    keys: U64


class IdMap:
    """The map and its counters. Deterministic: its state is a function of the calls made."""

    def __init__(self, field_of: npt.NDArray[np.int64], capacity: int, admit_after: int, max_idle_ms: int) -> None:
        """`field_of` (F,) names the field of each id column; `capacity` counts rows beside the shared ones."""
        self.field_of, self.capacity, self.admit_after, self.max_idle_ms = field_of, capacity, admit_after, max_idle_ms
        self.fields = int(field_of.max(initial=-1)) + 1
        self.salts = kernels.salts(self.fields)[field_of]
        self.counts = np.zeros(SIZE, np.int64)
        self.counts[HIGH] = self.fields
        self.counts[CLOCK] = self.counts[SWEPT] = np.iinfo(np.int64).min // 2
        self.free = np.zeros(0, np.int32)
        self._allocate(FIRST_SLOTS)

    def _allocate(self, slots: int) -> None:
        # An id is looked up anywhere in them, and numpy's own zeros lie in small pages where the allocator keeps large blocks.
        self.keys, self.values = pages.words(slots, np.uint64), pages.words(slots, np.int32)
        self.seen = pages.words(slots, np.int64)

    @property
    def rows(self) -> int:
        """Rows of the table in use or freed: everything at or above has never been touched."""
        return int(self.counts[HIGH])

    @property
    def admitted(self) -> int:
        """Ids that own a row now."""
        return int(self.counts[ADMITTED])

    @property
    def evicted(self) -> dict[str, int]:
        """Rows taken back, by reason, and admissions refused because one batch alone exceeded the capacity."""
        return {"idle": int(self.counts[IDLE]), "budget": int(self.counts[BUDGET]), "refused": int(self.counts[REFUSED])}

    def find(self, ids: U64) -> I32:
        """Rows (n, F) of ids (n, F) without any change: an unknown id reads its field's shared row, PAD is -1."""
        out = np.empty(ids.shape, np.int32)
        kernels.find(ids, self.field_of, self.salts, self.keys, self.values, out)
        return out

    def admit(self, ids: U64, now_ms: int) -> tuple[I32, Fresh]:
        """Count a sighting of every id at event time `now_ms` and return its row; may evict rows of ids not in this call.

        An event time that runs backwards is read as the newest one seen.
        """
        now = max(int(now_ms), int(self.counts[CLOCK]))
        self.counts[CLOCK] = now
        self._make_room(ids, now)
        out = np.empty(ids.shape, np.int32)
        fresh = Fresh(np.empty(ids.size, np.int32), np.empty(ids.size, np.uint64))
        n = kernels.admit(
            ids, self.field_of, self.salts, self.keys, self.values, self.seen, self.counts, self.free, now,
            self.admit_after, self.max_idle_ms, self.fields + self.capacity, out, fresh.rows, fresh.keys,
        )  # fmt: skip
        return out, Fresh(fresh.rows[:n], fresh.keys[:n])

    def _make_room(self, ids: U64, now: int) -> None:
        if self.counts[SWEPT] < 0:
            self.counts[SWEPT] = now
        counts, wanted = self.counts.tolist(), ids.size
        free, candidates = self.capacity - counts[ADMITTED], counts[USED] - counts[ADMITTED]
        if free < wanted:
            wanted = kernels.touch(ids, self.salts, self.keys, self.values, self.seen, now)
        crowded = free < wanted
        if crowded or candidates + wanted > 2 * self.capacity or now - counts[SWEPT] > self.max_idle_ms // 4:
            self._sweep(wanted if crowded else 0, now)
        slots, used = len(self.keys), int(self.counts[USED])
        while used + wanted > MAX_LOAD * slots:
            slots *= 2
        if slots > len(self.keys):
            self._rebuild(self.values != 0, slots)

    def _sweep(self, wanted: int, now: int) -> None:
        """Drop what is idle; then, if `wanted` rows are needed, the least recently seen, ties by row."""
        counts, owns = self.counts, self.values > 0
        keep = (self.values != 0) & (now - self.seen <= self.max_idle_ms)
        counts[IDLE] += int((owns & ~keep).sum())
        if wanted:
            spare = min(max(wanted, self.capacity // SWEEP_SHARE), self.capacity)
            counts[BUDGET] += self._drop_oldest(keep & owns, keep, self.capacity - spare)
        self._drop_oldest(keep & ~owns, keep, self.capacity)
        counts[SWEPT] = now
        self._rebuild(keep, len(self.keys))

    def _drop_oldest(self, group: npt.NDArray[np.bool_], keep: npt.NDArray[np.bool_], limit: int) -> int:
        """Clear `keep` for the least recently seen slots of `group` beyond `limit`; returns how many."""
        slots = np.flatnonzero(group)
        surplus = len(slots) - limit
        if surplus <= 0:
            return 0
        order = np.lexsort((self.keys[slots], self.values[slots], self.seen[slots]))
        keep[slots[order[:surplus]]] = False
        return surplus

    def _rebuild(self, keep: npt.NDArray[np.bool_], slots: int) -> None:
        dropped = np.sort(self.values[~keep & (self.values > 0)] - 1)[::-1].astype(np.int32)
        self.free = np.concatenate([self.free[: self.counts[FREE]], dropped])
        self.counts[FREE] = len(self.free)
        self.counts[ADMITTED] -= len(dropped)
        old = (self.keys[keep], self.values[keep], self.seen[keep])
        self._allocate(slots)
        kernels.insert(*old, self.keys, self.values, self.seen)
        self.counts[USED] = len(old[0])

    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """The complete state, as views."""
        return {
            "map.keys": self.keys, "map.values": self.values, "map.seen": self.seen,
            "map.counts": self.counts, "map.free": self.free[: self.counts[FREE]],
        }  # fmt: skip

    def load(self, arrays: dict[str, npt.NDArray[np.generic]]) -> None:
        """Take over a state that `arrays` returned (copied)."""
        self._allocate(len(arrays["map.keys"]))
        self.keys[:], self.values[:], self.seen[:] = (arrays[f"map.{name}"] for name in ("keys", "values", "seen"))
        self.counts = arrays["map.counts"].astype(np.int64)
        self.free = arrays["map.free"].astype(np.int32)
