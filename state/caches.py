"""What a worker holds of the store: counter cells, user rows and item attributes, with what the store still lacks of them.

Nothing that the store lacks is ever dropped; the rest is dropped when room is needed, and read again. One count call is in
flight at a time: `take` drains what it carries, `merged` is told what came back.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from state import cells, layout, stamping, tables
from state.kernels import kernel
from state.stores import F64, U64, Bytes

I64 = npt.NDArray[np.int64]
_UNKNOWN, _PENDING, _FLYING, _ASKED = tables.UNKNOWN, tables.PENDING, tables.FLYING, tables.ASKED


@kernel
def _accept(plan: layout.Plan, k: int, c: stamping.Cells, keys: U64, found: F64, flags: int, now_s: float) -> None:
    """Replace the cells of `keys` that carry any of `flags` by what was read, with what the store lacks on top."""
    width = plan.width[k]
    codes, sizes = plan.window_code[k, : plan.n_windows[k]], plan.window_size[k, : plan.n_windows[k]]
    for i in range(len(keys)):
        slot = tables.find(c.table, k, keys[i])
        if slot < 0 or (c.table.flags[k, slot] & flags) == 0:
            continue
        at = c.base[k] + slot * width
        c.values[at : at + width] = found[i]
        if c.table.flags[k, slot] & _PENDING:
            cells.merge(c.values[at : at + width], c.pending[at : at + width], codes, sizes, plan.columns[k])
        c.table.flags[k, slot] &= ~np.uint8(flags)
        c.table.read_at[k, slot] = now_s


class CellCache:
    """Counter cells of every kind of key. `tracked`: remember what the store lacks (a worker that counts for a store)."""

    def __init__(self, compiled: layout.Compiled, capacity: int, *, tracked: bool) -> None:
        self._plan, self._owned, self._tracked = compiled.plan, compiled.owned, tracked
        self._widths = compiled.plan.width.tolist()
        self.table = tables.empty(len(self._widths), capacity)
        self._in_flight: tuple[U64, ...] | None = None
        self._allocate()

    def _allocate(self) -> None:
        sizes = np.array(self._widths) * self.table.capacity
        self._base = np.cumsum(sizes) - sizes
        self._values = np.zeros(int(sizes.sum()))
        self._pending = np.zeros(int(sizes.sum()) if self._tracked else 1)

    @property
    def arrays(self) -> stamping.Cells:
        """The cells for kernels; valid until the next `make_room`."""
        return stamping.Cells(self.table, self._base, self._values, self._pending, int(self._tracked))

    def _matrix(self, arena: F64, kind: int) -> F64:
        width, base = self._widths[kind], int(self._base[kind])
        return arena[base : base + width * self.table.capacity].reshape(self.table.capacity, width)

    def make_room(self, kind: int, batch: int) -> None:
        """Drop what need not be held, or double the capacity where that is not enough; slots change."""
        slots = tables.kept(self.table, kind, batch)
        if 2 * len(slots) <= self.table.capacity:
            self._keep(kind, slots)
            return
        old = self.table.capacity, self._base, self._values, self._pending
        self.table = tables.grown(self.table)
        self._allocate()
        for k, width in enumerate(self._widths):
            part = slice(int(old[1][k]), int(old[1][k]) + width * old[0])
            self._matrix(self._values, k)[: old[0]] = old[2][part].reshape(-1, width)
            if self._tracked:
                self._matrix(self._pending, k)[: old[0]] = old[3][part].reshape(-1, width)

    def _keep(self, kind: int, slots: I64) -> None:
        used = int(self.table.used[kind])
        for arena in (self._values, self._pending) if self._tracked else (self._values,):
            matrix = self._matrix(arena, kind)
            matrix[: len(slots)] = matrix[slots]
            matrix[len(slots) : used] = 0
        tables.keep(self.table, kind, slots)

    def wanted(self, found: I64) -> tuple[U64, ...]:
        """The keys, per kind, of (kind, slot) pairs as `stamping.locate` lists them."""
        return tuple(self.table.keys[k, found[found[:, 0] == k, 1]] for k in range(len(self._widths)))

    def fill(self, keys: tuple[U64, ...], found: tuple[F64, ...], now_s: float) -> None:
        """Take over what was read, except where a count was taken since the question: its reply is newer."""
        for k, (asked, rows) in enumerate(zip(keys, found, strict=True)):
            _accept(self._plan, k, self.arrays, asked, rows, _UNKNOWN | _ASKED, now_s)

    def zero(self, found: I64) -> None:
        """Start the cells of (kind, slot) pairs from nothing."""
        self.table.flags[found[:, 0], found[:, 1]] = 0

    def take(self) -> tuple[tuple[U64, F64], ...]:
        """Per kind: keys, and deltas (shared kinds) or values (owned ones), which are in flight from now on."""
        if self._in_flight is not None:
            raise RuntimeError("a count is in flight already: tell merged() its reply before the next take()")
        out = []
        for k, owned in enumerate(self._owned):
            flags = self.table.flags[k, : int(self.table.used[k])]
            slots = np.flatnonzero(flags & _PENDING)
            matrix = self._matrix(self._values if owned else self._pending, k)
            out.append((self.table.keys[k, slots], matrix[slots]))
            if not owned:
                matrix[slots] = 0
            flags[slots] = (flags[slots] & ~np.uint8(_PENDING | _ASKED)) | _FLYING
        self._in_flight = tuple(keys for keys, _ in out)
        return tuple(out)

    def merged(self, values: tuple[F64, ...], now_s: float) -> None:
        """The count call returned: shared cells become what the store holds, with what was counted since on top."""
        if self._in_flight is None:
            raise RuntimeError("no count is in flight: call take() first")
        for k, (keys, owned) in enumerate(zip(self._in_flight, self._owned, strict=True)):
            if owned:
                slots = tables.find_all(self.table, k, keys)
                self.table.flags[k, slots] &= ~np.uint8(_FLYING)
            else:
                _accept(self._plan, k, self.arrays, keys, values[k], _FLYING, now_s)
        self._in_flight = None

    def forget_owned(self) -> None:
        """Drop the cells of owned kinds that the store has."""
        for k, owned in enumerate(self._owned):
            if owned:
                self._keep(k, np.flatnonzero(self.table.flags[k, : int(self.table.used[k])] & (_PENDING | _FLYING)))


class RowCache:
    """Rows of a fixed size by key: user rows, item attributes."""

    def __init__(self, capacity: int, row: np.dtype[Any], shape: tuple[int, ...] = ()) -> None:
        self.table = tables.empty(1, capacity)
        self.rows: npt.NDArray[Any] = np.zeros((self.table.capacity, *shape), row)
        self._in_flight: U64 = np.zeros(0, np.uint64)

    def slots(self, keys: U64, batch: int) -> I64:
        """The slots of keys, adding the unseen ones (UNKNOWN); slots change when room has to be made."""
        slots: I64 = tables.add_all(self.table, 0, keys, batch)
        while slots.min(initial=0) < 0:
            self._make_room(batch)
            slots = tables.add_all(self.table, 0, keys, batch)
        return slots

    def find(self, keys: U64) -> I64:
        """The slots of keys, -1 where there is none."""
        slots: I64 = tables.find_all(self.table, 0, keys)
        return slots

    def _make_room(self, batch: int) -> None:
        slots = tables.kept(self.table, 0, batch)
        if 2 * len(slots) <= self.table.capacity:
            self._keep(slots)
            return
        rows, capacity = self.rows, self.table.capacity
        self.table = tables.grown(self.table)
        self.rows = np.zeros((self.table.capacity, *rows.shape[1:]), rows.dtype)
        self.rows[:capacity] = rows

    def _keep(self, slots: I64) -> None:
        used = int(self.table.used[0])
        self.rows[: len(slots)] = self.rows[slots]
        self.rows[len(slots) : used] = np.zeros((), self.rows.dtype)
        tables.keep(self.table, 0, slots)

    def unread(self, slots: I64, oldest: float) -> I64:
        """Which of `slots` are unknown or were read before `oldest`, each once."""
        found = np.unique(slots)
        known = (self.table.flags[0, found] & _UNKNOWN) == 0
        late: I64 = found[~(known & (self.table.read_at[0, found] >= oldest))]
        return late

    def zero(self, slots: I64) -> None:
        """Start rows from nothing."""
        self.table.flags[0, slots] &= ~np.uint8(_UNKNOWN)

    def fill(self, keys: U64, found: Bytes, now_s: float, *, replace: bool) -> None:
        """Take over what was read: unknown rows, and with `replace` known ones too."""
        slots = tables.find_all(self.table, 0, keys)
        usable = slots >= 0
        if not replace:
            usable &= (self.table.flags[0, slots] & _UNKNOWN) > 0
        rows = np.ascontiguousarray(found[usable]).view(self.rows.dtype)
        self.rows[slots[usable]] = rows.reshape(-1, *self.rows.shape[1:])
        self.table.flags[0, slots[usable]] &= ~np.uint8(_UNKNOWN)
        self.table.read_at[0, slots[usable]] = now_s

    def take(self) -> tuple[U64, Bytes]:
        """Keys and bytes of the rows that changed, which are in flight from now on."""
        flags = self.table.flags[0, : int(self.table.used[0])]
        slots = np.flatnonzero(flags & _PENDING)
        flags[slots] = (flags[slots] & ~np.uint8(_PENDING)) | _FLYING
        self._in_flight = self.table.keys[0, slots]
        size = self.rows.dtype.itemsize * int(np.prod(self.rows.shape[1:]))
        return self._in_flight, self.rows[slots].view(np.uint8).reshape(len(slots), size)

    def merged(self) -> None:
        """The count call returned."""
        slots = tables.find_all(self.table, 0, self._in_flight)
        self.table.flags[0, slots] &= ~np.uint8(_FLYING)
        self._in_flight = self._in_flight[:0]

    def forget(self) -> None:
        """Drop the rows that the store has."""
        self._keep(np.flatnonzero(self.table.flags[0, : int(self.table.used[0])] & (_PENDING | _FLYING)))
