"""The messages of `enriched`: a micro-batch that was stamped, packed for the partitions that its input came from."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from state import columns, features, layout, spec
from state import config as configuration
from streams import event_time, partitions

I64 = npt.NDArray[np.int64]
HEADER_BYTES = 4096
PROPENSITY_BYTES = 4
NAME_BYTES = 28
"""A hash as decimal text and the lengths of it and of a name, in a header."""


class Message(NamedTuple):
    """A message of `enriched`, for the same partition as its input."""

    partition: int
    value: bytes


class Batch(NamedTuple):
    """A micro-batch between `begin` and `finish`: its events as columns, their order, and the watermarks that leave with it."""

    shown: list[partitions.Taken]
    acted: list[partitions.Taken]
    lists: features.Lists
    actions: features.Actions
    order: I64
    partition: I64
    a_partition: I64
    watermarks: dict[int, int]
    inputs: list[partitions.Taken]
    counted: dict[tuple[str, int], int]
    ahead_s: float | None
    propensity: features.F32 | None
    """(R,) of the rows of `lists`, NaN where not known; None: of none."""


class Packer:
    """Packs a batch into messages, within the limits of count and size."""

    def __init__(self, config: configuration.Config, compiled: layout.Compiled) -> None:
        self.room = config.topics.max_message_bytes - HEADER_BYTES
        self.row_bytes = 8 + 8 * compiled.id_width + 4 * compiled.number_width
        self._most_lists = config.streams.lists_per_message
        self._spec = spec.fingerprint(config.features, config.action_kinds)
        self._names = config.names_items

    def bytes_of(self, event: Any) -> int:
        """What the items of an impression take in a message, with their propensities and names where there are any."""
        logged = any(item.propensity is not None for item in event.items)
        per_row = self.row_bytes + (PROPENSITY_BYTES if logged else 0)
        return len(event.items) * per_row + (self._name_bytes(event) if self._names else 0)

    def _name_bytes(self, event: Any) -> int:
        return sum(NAME_BYTES + len(str(item.item_id).encode()) for item in event.items)

    def messages(
        self, batch: Batch, held: partitions.Partition, partition: int, shown: I64, acted: I64, x: features.F32, watermark: int
    ) -> Iterator[Message]:
        """Messages of one partition: lists, then actions; the last moves the watermark. `held` learns what was sent."""
        lists = batch.lists
        per_row = self.row_bytes + (PROPENSITY_BYTES if batch.propensity is not None else 0)
        weights = lists.n_items[shown].astype(np.int64) * per_row + 36
        if self._names:
            weights += np.array([self._name_bytes(batch.shown[i].event) for i in shown.tolist()], np.int64)
        pieces = [(piece, acted[:0]) for piece in _cut(shown, weights, self._most_lists, self.room)]
        a_weights = np.array([len(batch.acted[a].raw) + 52 for a in acted.tolist()], np.int64)
        a_pieces = list(_cut(acted, a_weights, len(acted), self.room))
        both = int(weights[-len(pieces[-1][0]) :].sum()) + int(a_weights[: len(a_pieces[0])].sum()) if pieces and a_pieces else 0
        if both and both <= self.room:
            pieces[-1] = pieces[-1][0], a_pieces.pop(0)
        pieces += [(shown[:0], piece) for piece in a_pieces]
        pieces = pieces or [(shown[:0], acted[:0])]
        starts = np.cumsum(lists.n_items, dtype=np.int64) - lists.n_items
        for i, (some, actions) in enumerate(pieces):
            head = {
                "spec": self._spec,
                "watermark_ms": watermark if i == len(pieces) - 1 else held.sent_ms,
                "before_ms": held.clock.before,
                "before_offsets": list(held.sent),
                "scenarios": {str(s): lists.names[s] for s in np.unique(lists.scenario[some]).tolist()},
            }
            if self._names:
                head["items"] = _names_of(batch, some, starts)
            packed = {**_list_columns(batch, x, some, starts), **_action_columns(batch, actions)}
            for k, offsets in enumerate((packed["offset"], packed["a_offset"])):
                held.sent[k] = max(held.sent[k], int(offsets.max(initial=-1)))
            newest = max(part.max(initial=event_time.NEVER) for part in (lists.ts[some], batch.actions.ts[actions]))
            held.clock.before = max(held.clock.before, int(newest))
            yield Message(partition, columns.pack(packed, **head))


def _cut(which: I64, weights: I64, most: int, room: int) -> Iterator[I64]:
    """Cut `which` into runs of at most `most` entries whose weights sum to at most `room` (one entry may be alone beyond it)."""
    start, total = 0, 0
    for i, weight in enumerate(weights.tolist()):
        if i > start and (i - start >= most or total + weight > room):
            yield which[start:i]
            start, total = i, 0
        total += weight
    if len(which):
        yield which[start:]


def _names_of(batch: Batch, which: I64, starts: I64) -> dict[str, str]:
    """The ids of the items of some lists as they were sent, by their hash."""
    items = batch.lists.item
    return {
        str(items[starts[i] + k]): str(item.item_id) for i in which.tolist() for k, item in enumerate(batch.shown[i].event.items)
    }


def _list_columns(batch: Batch, x: features.F32, which: I64, starts: I64) -> columns.Columns:
    lists = batch.lists
    n = lists.n_items[which]
    rows = np.repeat(starts[which] - (np.cumsum(n, dtype=np.int64) - n), n) + np.arange(int(n.sum()))
    of_lists = {name: getattr(lists, name)[which] for name in ("request", "user", "scenario", "ts", "n_items")}
    of_lists["offset"] = np.array([batch.shown[i].offset for i in which.tolist()], np.int64)
    out = {**of_lists, "item": lists.item[rows], "ids": lists.ids[rows], "x": x[rows]}
    if batch.propensity is not None:
        out |= columns.known({"propensity": batch.propensity[rows]})
    return out


def _action_columns(batch: Batch, which: I64) -> columns.Columns:
    chosen = [batch.acted[a] for a in which.tolist()]
    named = {f"a_{name}": getattr(batch.actions, name)[which] for name in ("request", "item", "user", "ts", "kind", "value")}
    return {
        **named,
        "a_offset": np.array([taken.offset for taken in chosen], np.int64),
        "a_raw_length": np.array([len(taken.raw) for taken in chosen], np.int32),
        "a_raw": np.frombuffer(b"".join(taken.raw for taken in chosen), np.uint8),
    }
