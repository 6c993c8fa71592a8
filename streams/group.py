"""Group: labelled lists in, episodes out. An episode is a list of one task with that task's earlier rows, its support.

Pure: what the store held and what it shall hold go through `wanted`, `fill` and `writes`. For every list, in order, the support
as of its time is copied out, then its own rows are put into the set. A revision does the same, and replaces its rows in the set.
"""

import collections
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from state import columns, spec, supports
from state.config import Config
from state.kernels import kernel
from state.supports import I64, U64

U32 = npt.NDArray[np.uint32]
I32 = npt.NDArray[np.int32]
LISTS = {"request": "<u8", "user": "<u8", "scenario": "<u8", "task": "<u8", "ts": "<i8", "n_items": "<i4", "version": "<i4"}
ROWS = {"item": "<u8", "ids": "<u8", "x": "<f4", "label": "<f4", "weight": "<f4"}
OPTIONAL = {"propensity": "<f4"}
"""Further columns of rows, in messages in which somebody said them."""
REMEMBERED_LISTS = 65_536
HEAD_BYTES = 2048

Message = tuple[dict[str, Any], columns.Columns]


@kernel
def _identities(task: U64, request: U64, ts: I64, version: I32, n_items: I32, item: U64, out: U64) -> None:
    """A hash (FNV-1a over words, then a finaliser) of what makes a list the same list."""
    at, prime = 0, np.uint64(1099511628211)
    for i in range(len(task)):
        h = np.uint64(14695981039346656037)
        for word in (task[i], request[i], np.uint64(ts[i]), np.uint64(version[i]), np.uint64(n_items[i])):
            h = (h ^ word) * prime
            h ^= h >> np.uint64(29)
        for r in range(at, at + n_items[i]):
            h = (h ^ item[r]) * prime
            h ^= h >> np.uint64(29)
        at += n_items[i]
        h = (h ^ (h >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
        out[i] = h ^ (h >> np.uint64(33))


@kernel
def _episodes(
    slots: I64,
    ts: I64,
    n_items: I32,
    most: I64,
    rows: U64,
    store: U64,
    halves: U32,
    order: npt.NDArray[np.uint16],
    count: I64,
    version_at: int,
    max_age: int,
    out_ids: U64,
    out_ts: U64,
    out_label: U32,
    out_x: U32,
    n_support: I32,
) -> tuple[int, int]:
    """Copy supports out and put rows in, list by list; return how many support rows were written and how many did not fit."""
    at = o = trimmed = 0
    label_at = 2 * version_at + 1
    x_at = label_at + out_label.shape[1]
    for i in range(len(slots)):
        s = slots[i]
        m = supports.earlier(store[s], order[s], count[s], ts[i])
        first = max(0, m - most[i])
        trimmed += first
        for j in range(first, m):
            place = order[s, j]
            out_ts[o] = store[s, place, 0]
            for c in range(out_ids.shape[1]):
                out_ids[o, c] = store[s, place, supports.IDS + c]
            for c in range(out_label.shape[1]):
                out_label[o, c] = halves[s, place, label_at + c]
            for c in range(out_x.shape[1]):
                out_x[o, c] = halves[s, place, x_at + c]
            o += 1
        n_support[i] = m - first
        for r in range(at, at + n_items[i]):
            count[s] = supports.insert_row(store[s], order[s], count[s], rows[r], version_at, max_age)
        at += n_items[i]
    return o, trimmed


class Group:
    """The group stage of one worker. `lists`, `rows`, `duplicates` (lists dropped), `trimmed` (support rows that did not fit a
    message) and `foreign` (sets of another feature spec) count since the start.

    For messages of the topic `samples`, in the order of their partitions: read the tasks that `wanted` names, give them to
    `fill`, then call `episodes`. What `writes` returns is stored once the episodes before it are delivered, at most
    `config.streams.in_flight` of them unfinished at a time. When a partition is taken away, call `forget`: what is remembered
    here was perhaps never delivered, and another worker may change the sets.
    """

    def __init__(self, config: Config, cache_bytes: int = supports.CACHE_BYTES) -> None:
        self._sets = supports.Sets(config, cache_bytes)
        self._spec = spec.fingerprint(config.features, config.action_kinds)
        self._widths = {
            "ids": spec.id_width(config.features),
            "x": len(spec.number_names(config.features)),
            "label": len(config.objectives),
            "weight": len(config.objectives),
        }
        # In window mode a row's label is known only when its window has passed: a query must not be adapted on it before.
        self._settling_ms = round(config.join.window_s * 1000) if config.join.mode == "window" else 0
        self._most_lists = config.streams.lists_per_message
        self._max_bytes = config.topics.max_message_bytes
        self.ttl_ms = self._sets.layout.max_age_ms
        self.lists = self.rows = self.duplicates = self.trimmed = 0
        self.forget()

    @property
    def foreign(self) -> int:
        """Sets read from the store that belong to another feature spec; they started empty."""
        return self._sets.foreign

    def forget(self) -> None:
        """Drop all memory: sets and remembered lists."""
        self._sets.forget()
        self._remembered: set[int] = set()
        self._oldest: collections.deque[int] = collections.deque()

    def problem(self, message: Message) -> str:
        """Why a message cannot be grouped, or an empty string."""
        head, found = message
        if head.get("spec") != self._spec:
            return f"samples of feature spec {head.get('spec')!r}, this worker has {self._spec!r}"
        n_lists, n_rows = (len(found[name]) if name in found else 0 for name in ("task", "item"))
        said = {name: dtype for name, dtype in OPTIONAL.items() if name in found}
        for names, n in ((LISTS, n_lists), (ROWS | said, n_rows)):
            for name, dtype in names.items():
                shape = (n, self._widths[name]) if name in self._widths else (n,)
                if name not in found or found[name].dtype != np.dtype(dtype) or found[name].shape != shape:
                    return f"column {name!r} is not {dtype} of shape {shape}"
        n_items = found["n_items"]
        if (n_items < 0).any() or int(n_items.sum(dtype=np.int64)) != n_rows:
            return f"n_items do not add up to the {n_rows} rows"
        return ""

    def wanted(self, messages: Sequence[Message]) -> U64:
        """The tasks whose sets must be read from the store and given to `fill` before `episodes`."""
        parts = [found["task"] for _, found in messages]
        return self._sets.missing(np.concatenate(parts) if parts else np.zeros(0, np.uint64))

    def fill(self, tasks: U64, packed: Sequence[bytes | None]) -> None:
        """What the store held for the tasks that `wanted` named."""
        self._sets.fill(tasks, packed)

    def writes(self) -> tuple[U64, list[bytes]]:
        """Tasks and packed sets to store; they already contain the rows of every episode returned so far."""
        return self._sets.writes()

    def episodes(self, messages: Sequence[Message]) -> list[tuple[int, bytes]]:
        """(index in `messages`, packed episodes message) in order; a message of samples gives any number of them.

        Raises:
            ValueError: a message that `problem` objects to.
            KeyError: a task that was not filled.
        """
        out: list[tuple[int, bytes]] = []
        for index, message in enumerate(messages):
            problem = self.problem(message)
            if problem:
                raise ValueError(f"message {index}: {problem}; ask `problem` first and keep it as a dead letter")
            out += [(index, value) for value in self._of(message[0], self._unseen(message[1]))]
        return out

    def _unseen(self, found: columns.Columns) -> columns.Columns:
        """The lists that are not repetitions of what this worker remembers."""
        names = np.empty(len(found["task"]), np.uint64)
        keys = (found["task"], found["request"], found["ts"])
        _identities(*keys, found["version"], found["n_items"], found["item"], names)
        keep = np.ones(len(names), bool)
        for i, name in enumerate(names.tolist()):
            if name in self._remembered:
                keep[i] = False
                continue
            self._remembered.add(name)
            self._oldest.append(name)
            if len(self._oldest) > REMEMBERED_LISTS:
                self._remembered.discard(self._oldest.popleft())
        if keep.all():
            return found
        self.duplicates += int(len(keep) - keep.sum())
        of_rows = np.repeat(keep, found["n_items"])
        return {name: array[keep if name in LISTS else of_rows] for name, array in found.items()}

    def _of(self, head: dict[str, Any], found: columns.Columns) -> Iterator[bytes]:
        n_items, n_rows = found["n_items"], len(found["item"])
        n_lists, shape = len(n_items), self._sets.layout
        self.lists += n_lists
        self.rows += n_rows
        per_support = 8 + 8 * self._widths["ids"] + 4 * self._widths["x"] + 4 * self._widths["label"]
        said = [name for name in OPTIONAL if name in found]
        per_row = sum(found[name].itemsize * int(np.prod(found[name].shape[1:])) for name in (*ROWS, *said))
        per_list = sum(found[name].itemsize for name in LISTS) + 4
        own = {key: value for key, value in head.items() if key not in {"v", "cols"}}
        room = self._max_bytes - HEAD_BYTES - len(msgspec.msgpack.encode(own))
        sizes = per_list + n_items.astype(np.int64) * per_row
        most = np.clip((room - sizes) // per_support, 0, shape.size)
        n_support, support = self._grouped(found, most)
        sizes += n_support * np.int64(per_support)
        row_ends, support_ends = (np.cumsum(n, dtype=np.int64).tolist() for n in (n_items, n_support))
        row = s = 0
        for start, end in _cuts(sizes.tolist(), self._most_lists, room):
            last_row, last_s = row_ends[end - 1], support_ends[end - 1]
            part = {name: found[name][start:end] for name in LISTS} | {name: found[name][row:last_row] for name in ROWS}
            part["n_support"] = n_support[start:end]
            part |= {name: array[s:last_s] for name, array in support.items()}
            part |= columns.known({name: found[name][row:last_row] for name in said})
            yield columns.pack(part, **own)
            row, s = last_row, last_s

    def _grouped(self, found: columns.Columns, most: I64) -> tuple[I32, columns.Columns]:
        """Support rows per list and the columns of all support rows; the lists' own rows are in the sets afterwards."""
        shape, sets, n_items = self._sets.layout, self._sets, found["n_items"]
        rows = np.zeros(len(found["item"]), shape.dtype)
        for name in ("ts", "request", "scenario", "version"):
            rows[name] = np.repeat(found[name], n_items)
        for name in ("item", "ids", "label", "x"):
            rows[name] = found[name]
        slots = sets.slots(found["task"], change=True)
        capacity, words = len(slots) * shape.size, rows.view(np.uint64).reshape(len(rows), shape.words)
        n_support, s_ts = np.empty(len(slots), np.int32), np.empty(capacity, np.uint64)
        s_ids = np.empty((capacity, self._widths["ids"]), np.uint64)
        s_label, s_x = (np.empty((capacity, self._widths[name]), np.uint32) for name in ("label", "x"))
        place = (sets.store, sets.store.view(np.uint32), sets.order, sets.count)
        limits = (shape.version_at, shape.max_age_ms)
        known_at = found["ts"] - self._settling_ms
        n, trimmed = _episodes(
            slots, known_at, n_items, most, words, *place, *limits, s_ids, s_ts, s_label, s_x, n_support
        )  # fmt: skip
        self.trimmed += trimmed
        support = {
            "s_ids": s_ids[:n],
            "s_x": s_x[:n].view("<f4"),
            "s_label": s_label[:n].view("<f4"),
            "s_ts": s_ts[:n].view("<i8"),
        }
        return n_support, support


def _cuts(sizes: Sequence[int], most_lists: int, room: int) -> Iterator[tuple[int, int]]:
    """[start, end) of consecutive lists that fit a message of `room` bytes; a list that does not fit alone stands alone."""
    start, held = 0, 0
    for i, size in enumerate(sizes):
        if i > start and (i - start == most_lists or held + size > room):
            yield start, i
            start, held = i, 0
        held += size
    if start < len(sizes):
        yield start, len(sizes)
