"""Messages of the topic `samples`: labelled lists cut by task and packed by destination partition."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from state import columns, ids, spec
from state.config import Config
from streams.enriched import NAME_BYTES

U64 = npt.NDArray[np.uint64]
LISTS = ("request", "user", "scenario", "task", "ts", "n_items", "version")
ROWS = ("item", "ids", "x", "label", "weight")
OPTIONAL = ("propensity",)
"""Further columns of rows, in messages in which somebody said them."""
HEAD_BYTES = 4096


class Routing(NamedTuple):
    """Where samples go: the parts of the task key (a number is a column of `ids`), partitions and the size of a message."""

    key: tuple[str | int, ...]
    partitions: int
    lists_per_message: int
    max_bytes: int
    spec: str


def routing(config: Config) -> Routing:
    """The routing of a configuration."""
    starts = {c.name: c.start for c in spec.id_columns(config.features)}
    fixed = ("user", "item", "scenario")
    key = tuple(part if part in fixed else starts[part] for part in config.task.key)
    fingerprint = spec.fingerprint(config.features, config.action_kinds)
    return Routing(key, config.kafka.partitions, config.streams.lists_per_message, config.topics.max_message_bytes, fingerprint)


class Names(NamedTuple):
    """What hashes stand for: scenarios, and items where the configuration names them."""

    scenarios: Mapping[int, str]
    items: Mapping[int, str]


def messages(lists: columns.Columns, names: Names, routing: Routing, partition: int) -> Iterator[tuple[int, bytes, int, int]]:
    """Yield (destination partition, packed message, its lists, its rows) for the lists that the join of `partition` emitted.

    A list whose rows belong to several tasks (an item or a category in the key) becomes one list per task. Tasks of
    ("user",) stay in their partition, others go to `task % partitions`. A multi-valued category counts with its first value.
    """
    by_task = with_tasks(lists, routing.key)
    if routing.key == ("user",):
        yield from _packed(by_task, names, routing, partition)
        return
    destination = by_task["task"] % np.uint64(routing.partitions)
    for target in np.unique(destination).tolist():
        yield from _packed(select(by_task, np.flatnonzero(destination == target)), names, routing, int(target))


def with_tasks(lists: columns.Columns, key: tuple[str | int, ...]) -> columns.Columns:
    """Add the column `task`, one task per list: lists with rows of several tasks are cut."""
    n_items = lists["n_items"]
    if all(part in {"user", "scenario"} for part in key):
        return {**lists, "task": _mixed([lists[str(part)] for part in key])}
    of_row = np.repeat(np.arange(len(n_items)), n_items)
    task = _mixed([_of_rows(lists, part, of_row) for part in key])
    order = np.lexsort((np.arange(len(task)), task, of_row))
    of_row, task = of_row[order], task[order]
    first = np.flatnonzero(np.r_[True, (of_row[1:] != of_row[:-1]) | (task[1:] != task[:-1])])
    out = {name: array[of_row[first]] for name, array in lists.items() if name not in (*ROWS, *OPTIONAL)}
    out |= {name: lists[name][order] for name in rows_in(lists)}
    out["n_items"] = np.diff(np.r_[first, len(task)]).astype(n_items.dtype)
    out["task"] = task[first]
    return out


def select(lists: columns.Columns, which: npt.NDArray[np.int64]) -> columns.Columns:
    """The lists `which` (ascending) with their rows."""
    chosen = np.zeros(len(lists["n_items"]), bool)
    chosen[which] = True
    rows = np.repeat(chosen, lists["n_items"])
    of_rows = rows_in(lists)
    return {name: array[rows] if name in of_rows else array[which] for name, array in lists.items()}


def rows_in(lists: columns.Columns) -> tuple[str, ...]:
    """Names of the columns with an entry for every row."""
    return (*ROWS, *(name for name in OPTIONAL if name in lists))


def _of_rows(lists: columns.Columns, part: str | int, of_row: npt.NDArray[np.int64]) -> U64:
    """One part of the task key for every row."""
    if isinstance(part, int):
        return lists["ids"][:, part]
    return lists["item"] if part == "item" else lists[part][of_row]


def _mixed(parts: list[U64]) -> U64:
    out = parts[0]
    for part in parts[1:]:
        out = ids.mix(out, part)
    return out


def _packed(lists: columns.Columns, names: Names, routing: Routing, partition: int) -> Iterator[tuple[int, bytes, int, int]]:
    ends = np.cumsum(lists["n_items"], dtype=np.int64)
    per_row = sum(lists[name].itemsize * int(np.prod(lists[name].shape[1:])) for name in rows_in(lists))
    if names.items:
        per_row += NAME_BYTES + max(len(name.encode()) for name in names.items.values())
    per_list = sum(lists[name].itemsize for name in LISTS)
    for start, end in cuts(lists["n_items"], routing.lists_per_message, routing.max_bytes, per_list, per_row):
        a, b = int(ends[start] - lists["n_items"][start]), int(ends[end - 1])
        part = {name: lists[name][start:end] for name in LISTS} | {name: lists[name][a:b] for name in ROWS}
        part |= columns.known({name: lists[name][a:b] for name in OPTIONAL if name in lists})
        head: dict[str, Any] = {"spec": routing.spec, "scenarios": _named(part["scenario"], names.scenarios)}
        if names.items:
            head["items"] = _named(part["item"], names.items)
        yield partition, columns.pack(part, **head), end - start, b - a


def _named(hashes: U64, names: Mapping[int, str]) -> dict[str, str]:
    return {str(h): names[h] for h in np.unique(hashes).tolist() if h in names}


def cuts(
    n_items: npt.NDArray[np.int32], most_lists: int, max_bytes: int, per_list: int, per_row: int
) -> Iterator[tuple[int, int]]:
    """Yield [start, end) of consecutive lists that fit a message; a list that is too large alone gets one of its own."""
    start, size = 0, HEAD_BYTES
    for i, n in enumerate(n_items.tolist()):
        more = per_list + n * per_row
        if i > start and (i - start == most_lists or size + more > max_bytes):
            yield start, i
            start, size = i, HEAD_BYTES
        size += more
    if start < len(n_items):
        yield start, len(n_items)
