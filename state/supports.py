"""Support sets: a task's newest labelled samples, as one packed value per task.

A set is a pure function of the rows that were put in, in any order and any number of times: of each (time, request, item) the
newest version (of equal ones the larger bytes), of these the K newest by (time, request, item), none older than `max_age_s`
before the newest. A row's time is its impression's, the same for all of its versions.
"""

import collections
import hashlib
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from state import spec
from state.config import Config, Objective, Task
from state.kernels import kernel

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Rows = npt.NDArray[Any]
HEAD_WORDS = 2
TS, REQUEST, ITEM, SCENARIO, IDS = 0, 1, 2, 3, 4
FIRST_SLOTS = 256
CACHE_BYTES = 64 << 20
KEY = b"s"


class Layout(NamedTuple):
    """A row as a numpy record (ts i8 ms, request, item, scenario u8, ids u8[F], version i4, label f4[O], x f4[D]), and limits.

    A packed set is the fingerprint, u32 number of rows, u32 bytes of a row, and the rows in ascending (ts, request, item).
    """

    dtype: np.dtype[np.void]
    fingerprint: int
    size: int
    max_age_ms: int

    @property
    def words(self) -> int:
        """Eight-byte words of a row."""
        return self.dtype.itemsize // 8

    @property
    def version_at(self) -> int:
        """The word whose lower half is the version."""
        return IDS + int(self.dtype["ids"].shape[0])


def layout(config: Config) -> Layout:
    """The rows of a configuration. The fingerprint covers what gives the numbers meaning, feature spec and objectives, and what a
    task is.
    """
    return shaped(config, spec.id_width(config.features), len(spec.number_names(config.features)))


def shaped(config: Config, n_ids: int, numbers: int, also: Sequence[str | int] = ()) -> Layout:
    """Rows of so many ids F and numbers D; `also` is what the fingerprint covers beside what `layout` says."""
    n_objectives = len(config.objectives)
    at = 8 * (IDS + n_ids)
    fields: dict[str, tuple[Any, int]] = {
        "ts": ("<i8", 8 * TS),
        "request": ("<u8", 8 * REQUEST),
        "item": ("<u8", 8 * ITEM),
        "scenario": ("<u8", 8 * SCENARIO),
        "ids": (("<u8", (n_ids,)), 8 * IDS),
        "version": ("<i4", at),
        "label": (("<f4", (n_objectives,)), at + 4),
        "x": (("<f4", (numbers,)), at + 4 + 4 * n_objectives),
    }
    end = at + 4 + 4 * n_objectives + 4 * numbers
    formats, offsets = zip(*fields.values(), strict=True)
    dtype = np.dtype({"names": list(fields), "formats": formats, "offsets": offsets, "itemsize": end + -end % 8})
    # Tasks of other keys may have the same hash: a user "7" and an item "7". Sets of the default key stay readable as they were.
    tasks: tuple[str, ...] = () if config.task == Task() else ("task", *config.task.key)
    objectives = [meaning_of(o) for o in config.objectives]
    meaning = (spec.fingerprint(config.features, config.action_kinds), objectives, *tasks, *also)
    digest = hashlib.blake2b(msgspec.json.encode(meaning), digest_size=8).digest()
    return Layout(dtype, int.from_bytes(digest, "little"), config.support.size, round(config.support.max_age_s * 1000))


def meaning_of(objective: Objective) -> dict[str, Any]:
    """What gives a label its meaning. Settings that came later are left out at their default, so that old sets stay readable."""
    fields = [f for f in msgspec.structs.fields(Objective) if f.name not in {"layers", "loss_weight"}]
    said = {f.name: getattr(objective, f.name) for f in fields}
    always = ("name", "action", "min_value")
    return {name: said[name] for name in always} | {
        f.name: said[f.name] for f in fields if f.name not in always and said[f.name] != _default(f)
    }


def _default(field: msgspec.structs.FieldInfo) -> Any:
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()


def pack(shape: Layout, rows: Rows) -> bytes:
    """Pack rows that are already a set (ascending, unique)."""
    head = np.array([shape.fingerprint, len(rows) | shape.dtype.itemsize << 32], "<u8")
    return head.tobytes() + rows.tobytes()


def unpack(shape: Layout, packed: bytes) -> Rows | None:
    """The rows of a packed set, a read-only view; None when it belongs to another spec or is damaged."""
    if len(packed) < 8 * HEAD_WORDS:
        return None
    fingerprint, sizes = np.frombuffer(packed, "<u8", HEAD_WORDS).tolist()
    count, row_bytes = sizes & 0xFFFFFFFF, sizes >> 32
    if fingerprint != shape.fingerprint or row_bytes != shape.dtype.itemsize or len(packed) != 8 * HEAD_WORDS + count * row_bytes:
        return None
    return np.frombuffer(packed, shape.dtype, count, 8 * HEAD_WORDS)


@kernel
def _place(store: U64, order: npt.NDArray[np.uint16], count: int, row: U64) -> int:
    """How many rows of a set stand at or before `row`."""
    at = count
    while at > 0:
        held = store[order[at - 1]]
        ts, mine = np.int64(held[0]), np.int64(row[0])
        if ts < mine or (ts == mine and (held[1] < row[1] or (held[1] == row[1] and held[2] <= row[2]))):
            break
        at -= 1
    return at


@kernel
def _newer(held: U64, row: U64, version_at: int) -> bool:
    """Whether `row` replaces `held`: a greater version, or the same and greater words, so that arrival order is nothing."""
    low = np.uint64(0xFFFFFFFF)
    old, new = held[version_at] & low, row[version_at] & low
    if old != new:
        return bool(new > old)
    for w in range(3, len(row)):
        if held[w] != row[w]:
            return bool(row[w] > held[w])
    return False


@kernel
def insert_row(store: U64, order: npt.NDArray[np.uint16], count: int, row: U64, version_at: int, max_age: int) -> int:
    """Put one row (W words) in a set (K, W) and return its number of rows.

    `order` is a permutation of the K places: the live ones first, in ascending order, so that rows never move.
    """
    size = len(order)
    if size == 0:
        return 0
    at = _place(store, order, count, row)
    if at > 0:
        held = store[order[at - 1]]
        if held[0] == row[0] and held[1] == row[1] and held[2] == row[2]:
            if _newer(held, row, version_at):
                held[:] = row
            return count
    if count < size:
        place = order[count]
        for i in range(count, at, -1):
            order[i] = order[i - 1]
        order[at] = place
        store[place, :] = row
        count += 1
    elif at > 0:
        place = order[0]
        for i in range(at - 1):
            order[i] = order[i + 1]
        order[at - 1] = place
        store[place, :] = row
    oldest = np.int64(store[order[count - 1], 0]) - max_age
    gone = 0
    while np.int64(store[order[gone], 0]) < oldest:
        gone += 1
    if gone:
        freed = order[:gone].copy()
        for i in range(gone, count):
            order[i - gone] = order[i]
        count -= gone
        order[count : count + gone] = freed
    return count


@kernel
def earlier(store: U64, order: npt.NDArray[np.uint16], count: int, ts: int) -> int:
    """How many rows of a set are strictly earlier than `ts`; they are the first ones."""
    while count > 0 and np.int64(store[order[count - 1], 0]) >= ts:
        count -= 1
    return count


@kernel
def _insert_lists(
    slots: I64,
    n_items: npt.NDArray[np.int32],
    rows: U64,
    store: U64,
    order: npt.NDArray[np.uint16],
    count: I64,
    version_at: int,
    max_age: int,
) -> None:
    at = 0
    for i in range(len(slots)):
        s = slots[i]
        for r in range(at, at + n_items[i]):
            count[s] = insert_row(store[s], order[s], count[s], rows[r], version_at, max_age)
        at += n_items[i]


@kernel
def _gather(
    slots: I64, store: U64, order: npt.NDArray[np.uint16], count: I64, fingerprint: np.uint64, row_bytes: int, out: U64, ends: I64
) -> None:
    at = 0
    for i in range(len(slots)):
        s = slots[i]
        out[at], out[at + 1] = fingerprint, np.uint64(count[s]) | np.uint64(row_bytes) << np.uint64(32)
        at += 2
        for j in range(count[s]):
            out[at : at + store.shape[2]] = store[s, order[s, j]]
            at += store.shape[2]
        ends[i] = at


class Sets:
    """The support sets of the tasks that this worker owns, in memory, read and written in batches.

    The caller reads what `missing` names, gives it to `fill`, inserts, and writes what `writes` returns. Of these writes at most
    `config.streams.in_flight` may be unfinished at any time: a task is dropped from memory, least recently used first, only after
    that many later ones, since reading it again sooner could miss its own write. Memory stays near `cache_bytes` unless that many
    batches touch more tasks.
    """

    def __init__(self, config: Config, cache_bytes: int = CACHE_BYTES, shape: Layout | None = None) -> None:
        """`shape` says what the rows are, if not those of `layout`."""
        self.layout = shape or layout(config)
        self.foreign = 0
        self._in_flight = config.streams.in_flight
        self._most = max(1, cache_bytes // (8 * max(1, self.layout.size) * self.layout.words))
        self.forget()

    def forget(self) -> None:
        """Drop everything, for when partitions are taken away; unwritten rows are lost, so let writes finish first."""
        self._slots: collections.OrderedDict[int, int] = collections.OrderedDict()
        self._dirty: dict[int, None] = {}
        self._batch = 0
        size, words, n = self.layout.size, self.layout.words, min(FIRST_SLOTS, self._most)
        self._free = list(range(n - 1, -1, -1))
        self.store = np.zeros((n, size, words), np.uint64)
        self.order = np.tile(np.arange(size, dtype=np.uint16), (n, 1))
        self.count = np.zeros(n, np.int64)
        self._used = np.zeros(n, np.int64)

    def __len__(self) -> int:
        """Tasks in memory."""
        return len(self._slots)

    def missing(self, tasks: U64) -> U64:
        """The tasks, each once, that must be read before `slots` or `insert` may name them."""
        unseen: dict[int, None] = {}
        for task in tasks.tolist():
            slot = self._slots.get(task)
            if slot is None:
                unseen[task] = None
            else:
                self._slots.move_to_end(task)
                self._used[slot] = self._batch
        return np.array(list(unseen), np.uint64)

    def fill(self, tasks: U64, packed: Sequence[bytes | None]) -> None:
        """Take what the store held for these tasks; a set of another feature spec counts in `foreign` and starts empty."""
        for task, value in zip(tasks.tolist(), packed, strict=True):
            if task in self._slots:
                continue
            slot = self._slots[task] = self._slot()
            self._used[slot] = self._batch
            self.count[slot] = 0
            rows = None if value is None else unpack(self.layout, value)
            self.foreign += value is not None and rows is None
            if rows is not None and self.layout.size:
                newest = rows[-self.layout.size :]
                self.store[slot, : len(newest)] = newest.view(np.uint64).reshape(len(newest), self.layout.words)
                self.order[slot] = np.arange(self.layout.size)
                self.count[slot] = len(newest)

    def _slot(self) -> int:
        if len(self._slots) >= self._most:
            task, slot = next(iter(self._slots.items()))
            if task not in self._dirty and self._batch - self._used[slot] > self._in_flight:
                del self._slots[task]
                return slot
        if not self._free:
            n = len(self.count)
            self.store, self._used = (np.concatenate([a, np.zeros_like(a)]) for a in (self.store, self._used))
            self.order = np.concatenate([self.order, np.tile(np.arange(self.layout.size, dtype=np.uint16), (n, 1))])
            self.count = np.concatenate([self.count, np.zeros(n, np.int64)])
            self._free = list(range(2 * n - 1, n - 1, -1))
        return self._free.pop()

    def slots(self, tasks: U64, *, change: bool) -> I64:
        """Where the sets of these tasks stand in `store`, `order` and `count`; with `change` they will be written.

        Raises:
            KeyError: a task was not filled.
        """
        names = tasks.tolist()
        if change:
            self._dirty.update(dict.fromkeys(names))
        return np.array([self._slots[task] for task in names], np.int64)

    def insert(self, tasks: U64, n_items: npt.NDArray[np.int32], rows: Rows) -> None:
        """Insert `n_items[i]` rows into the set of `tasks[i]`, for every i, all filled before."""
        shape, words = self.layout, rows.view(np.uint64).reshape(len(rows), self.layout.words)
        slots = self.slots(tasks, change=True)
        _insert_lists(slots, n_items, words, self.store, self.order, self.count, shape.version_at, shape.max_age_ms)

    def rows(self, task: int) -> Rows:
        """A copy of a task's set, ascending."""
        slot = self._slots[task]
        held = self.store[slot, self.order[slot, : self.count[slot]]]
        return np.ascontiguousarray(held).view(self.layout.dtype).reshape(-1)

    def as_of(self, task: int, ts_ms: int) -> Rows:
        """The rows of a task that are strictly earlier than `ts_ms`."""
        rows = self.rows(task)
        return rows[rows["ts"] < ts_ms]

    def writes(self) -> tuple[U64, list[bytes]]:
        """Tasks that changed since the last call and their packed sets; see the class for what the caller owes."""
        self._batch += 1
        tasks = np.array(list(self._dirty), np.uint64)
        self._dirty = {}
        slots = np.array([self._slots[task] for task in tasks.tolist()], np.int64)
        out = np.empty(HEAD_WORDS * len(slots) + int(self.count[slots].sum()) * self.layout.words, np.uint64)
        ends = np.zeros(len(slots), np.int64)
        fingerprint = np.uint64(self.layout.fingerprint)
        _gather(slots, self.store, self.order, self.count, fingerprint, self.layout.dtype.itemsize, out, ends)
        raw, bounds = out.tobytes(), [0, *(8 * ends).tolist()]
        return tasks, [raw[a:b] for a, b in itertools.pairwise(bounds)]
