"""A store in this process, for tests, replay and benchmarks: the same answers as `redis_store`, time comes in as an argument."""

from collections.abc import Callable, Sequence

import numpy as np

from state import cells, stores
from state.stores import F64, U64, Bytes


class MemoryStore:
    """`stores.Store` over dicts; `clock_ms` tells the time that support sets expire by."""

    def __init__(self, schema: stores.Schema, clock_ms: Callable[[], int]) -> None:
        self.schema, self._clock_ms = schema, clock_ms
        self._fences: dict[tuple[str, int], int] = {}
        self._cells: dict[int, F64] = {}
        self._users: dict[int, Bytes] = {}
        self._items: dict[int, Bytes] = {}
        self._supports: dict[int, tuple[int, bytes]] = {}

    async def fences(self, partitions: Sequence[tuple[str, int]]) -> list[int]:
        """The counted offset of each (topic, partition), -1 where there is none."""
        return [self._fences.get((topic, partition), -1) for topic, partition in partitions]

    async def read(self, wanted: stores.Wanted) -> stores.Found:
        """Read cells, user rows and item attributes; an absent key is all zeros."""
        schema = self.schema
        found = []
        for ids, layout in zip(wanted.cells, schema.layouts, strict=True):
            zero = np.zeros(layout.width)
            matrix = [self._cells.get(i, zero) for i in ids.tolist()]
            found.append(np.array(matrix, np.float64).reshape(len(ids), layout.width))
        return stores.Found(
            tuple(found),
            _rows(self._users, wanted.users, schema.user_bytes),
            _rows(self._items, wanted.items, schema.item_bytes),
        )

    async def count(self, counted: stores.Counted) -> tuple[F64, ...]:
        """Apply all of it or nothing; see `stores.Store.count`."""
        for fence in counted.fences:
            held = self._fences.get((fence.topic, fence.partition), -1)
            if held != fence.expected:
                place = f"{fence.topic}[{fence.partition}]"
                raise stores.Fenced(f"another worker counted this input ({place}: store holds {held}, expected {fence.expected})")
        self._fences.update({(fence.topic, fence.partition): fence.offset for fence in counted.fences})
        out = []
        for (ids, given), layout, owned in zip(counted.cells, self.schema.layouts, self.schema.owned, strict=True):
            merged = given.copy() if owned else self._merged(ids, given, layout)
            self._cells.update(zip(ids.tolist(), merged, strict=True))
            out.append(np.zeros((0, layout.width)) if owned else merged.copy())
        for held_rows, (ids, rows) in ((self._users, counted.users), (self._items, counted.items)):
            held_rows.update(zip(ids.tolist(), rows.copy(), strict=True))
        return tuple(out)

    def _merged(self, ids: U64, deltas: F64, layout: cells.Layout) -> F64:
        codes, sizes = layout.codes(), layout.sizes()
        out = np.zeros((len(ids), layout.width))
        for i, key in enumerate(ids.tolist()):
            if key in self._cells:
                out[i] = self._cells[key]
            cells.merge(out[i], deltas[i], codes, sizes, layout.columns)
        return out

    async def supports(self, tasks: U64) -> list[bytes | None]:
        """The packed support set of each task."""
        now = self._clock_ms()
        found = [self._supports.get(task) for task in tasks.tolist()]
        return [value[1] if value is not None and now < value[0] else None for value in found]

    async def put_supports(self, tasks: U64, values: Sequence[bytes], ttl_ms: int) -> None:
        """Replace support sets; each key expires after `ttl_ms`, and expired ones are dropped."""
        now = self._clock_ms()
        self._supports = {task: value for task, value in self._supports.items() if now < value[0]}
        self._supports.update({t: (now + ttl_ms, bytes(v)) for t, v in zip(tasks.tolist(), values, strict=True)})


def _rows(held: dict[int, Bytes], ids: U64, size: int) -> Bytes:
    zero = np.zeros(size, np.uint8)
    return np.array([held.get(i, zero) for i in ids.tolist()], np.uint8).reshape(len(ids), size)
