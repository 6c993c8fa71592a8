"""The pure core of the enrich stage: raw events in, counted and stamped micro-batches out. No I/O, no clock of its own.

One round of the shell, in this order:

1. `impression` and `action` take raw messages as they arrive (what is rejected comes back, for dead-letters); `ahead` closes
   a group of the lists taken and says what to read for it, so that the store's reply can be waited for while earlier groups run;
2. `begin` makes a micro-batch of the oldest group; `wanted`, a read of the store and `fill`, until nothing is wanted; `finish`
   gives the messages;
3. now and then `take` drains what the store lacks, with the fences of all that was finished, and the tokens that may be
   acknowledged; the shell waits until the messages of everything finished so far (dead letters too) are delivered, then
   calls the store's `count`, then `merged`, then acknowledges the tokens in the order given.

Order of events. Lists and actions are put in order of event time, a list before an action of the same time, and an action never
before its own list, whatever their clocks say. An action waits until the impressions up to its time have been taken; one whose
list has not been seen waits `join.lateness_s` of event time longer, for its list may be late, and a value stamped into that list
must not contain it. Neither waits beyond `join.idle_timeout_s` once the partition's impressions are caught up. Actions leave in
the order of their offsets, so that one number, the fence, says what was counted.

The watermark of a partition is that of `event_time.Clock` (the lesser of the newest times of the two inputs, unless one is quiet
and caught up), but never beyond an action that still waits. Only the last message of a partition's batch moves it.
"""

from collections import deque
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from state import config as configuration
from state import events, features, ids, records, stores
from streams import enriched, event_time, partitions, presence

I64 = npt.NDArray[np.int64]
QUIET_MS = 100
"""A message that carries nothing but a watermark leaves a partition at most this often."""


class CaughtUp(NamedTuple):
    """Whether all that a partition's inputs held at a recent fetch has been taken."""

    impressions: bool
    clicks: bool


class Counting(NamedTuple):
    """One call of the store's `count`, and the tokens that may be acknowledged after it, in offset order per input."""

    counted: stores.Counted
    tokens: list[Any]


class Counts:
    """What became of the input: `stale` was counted before it was assigned, `duplicates` were sent twice by the producer,
    `bad_propensities` are rows whose propensity is no probability above 0 and was left out.
    """

    __slots__ = ("actions", "bad_propensities", "duplicates", "items", "lists", "rejected", "stale")

    def __init__(self) -> None:
        self.lists = self.items = self.actions = self.duplicates = self.stale = self.rejected = self.bad_propensities = 0


class _Group(NamedTuple):
    """Impressions taken together: `inputs`, those `shown` that are lists to stamp, and when `ahead` closed it."""

    inputs: list[partitions.Taken]
    shown: list[partitions.Taken]
    lists: features.Lists
    ahead_s: float | None
    propensity: features.F32 | None


class Enrich:
    """Enriches the partitions assigned to one worker; `now_ms` is wall time since the epoch throughout."""

    def __init__(self, config: configuration.Config, capacity: int = 1 << 20) -> None:
        self.engine = features.Engine(config, capacity)
        self.counts, self.presence = Counts(), presence.Presence(config.features)
        self._decoder, self._ids = records.decoder(config), ids.Ids()
        self._topics = config.topics.impressions, config.topics.clicks
        self._idle_ms, self._lateness_ms = round(config.join.idle_timeout_s * 1000), round(config.join.lateness_s * 1000)
        self._settled_ms = 4 * (round(config.join.window_s * 1000) + max(self._lateness_ms, 1000))
        self._packer = enriched.Packer(config, self.engine.compiled)
        self._partitions: dict[int, partitions.Partition] = {}
        self._shown: list[partitions.Taken] = []
        self._groups: deque[_Group] = deque()
        self._acted: dict[int, int] = {}
        self._batch: enriched.Batch | None = None
        self._finished: dict[tuple[str, int], int] = {}
        self._applied: dict[tuple[str, int], int] = {}
        self._tokens: list[Any] = []

    @property
    def waiting_lists(self) -> int:
        """Lists taken and not yet in a micro-batch."""
        return len(self._shown) + sum(len(group.inputs) for group in self._groups)

    @property
    def groups(self) -> int:
        """Groups that `ahead` closed and no batch took yet."""
        return len(self._groups)

    def waiting_partitions(self) -> set[int]:
        """Partitions with impressions that are taken and that the next batch will not hold: they are not caught up."""
        later = [*(group.inputs for group in self._groups), self._shown][1:]
        return {taken.partition for inputs in later for taken in inputs}

    @property
    def held_actions(self) -> int:
        """Actions taken that still wait; the shell stops reading clicks when they are too many."""
        return sum(len(p.held) for p in self._partitions.values())

    @property
    def uncounted(self) -> bool:
        """Whether `take` has something to drain."""
        return bool(self._tokens) or self._finished != self._applied

    def watermarks(self) -> dict[int, int]:
        """The watermark last sent to each partition, in ms."""
        return {p: held.sent_ms for p, held in self._partitions.items()}

    def assign(self, partition: int, impressions_fence: int, clicks_fence: int, now_ms: int) -> None:
        """Take over a partition whose inputs are counted up to these offsets (-1: nothing yet)."""
        self._partitions[partition] = partitions.Partition((impressions_fence, clicks_fence), self._idle_ms, now_ms)
        for topic, fence in zip(self._topics, (impressions_fence, clicks_fence), strict=True):
            self._finished[topic, partition] = self._applied[topic, partition] = fence

    def revoke(self, given_up: Collection[int]) -> None:
        """Give partitions up, between two batches, after a last `take` and count; what was not finished others read again."""
        gone = set(given_up)
        taken = [taken for inputs in (*(group.inputs for group in self._groups), self._shown) for taken in inputs]
        self._shown = [one for one in taken if one.partition not in gone]
        self._groups.clear()
        for partition in gone:
            self._partitions.pop(partition, None)
            self._acted.pop(partition, None)
            for topic in self._topics:
                self._finished.pop((topic, partition), None)
                self._applied.pop((topic, partition), None)
        self.engine.forget()

    def impression(self, partition: int, offset: int, value: bytes | None, token: Any, now_ms: int) -> records.Rejected | None:
        """Take a message of `impressions`; what is returned belongs in dead-letters."""
        held = self._partitions[partition]
        event, rejected = None, None
        try:
            event = self._decoded(value, now_ms)
        except records.Rejected as error:
            event, rejected = None, error
        ts, request = (event.ts_ms, self._ids[event.request_id]) if event is not None else (event_time.NEVER, 0)
        fresh = held.is_fresh(0, offset)
        self._count(fresh=fresh, rejected=rejected)
        taken = partitions.Taken(partition, offset, token, ts, event if fresh else None, b"", request, now_ms)
        self._shown.append(taken)
        return rejected if fresh else None

    def action(self, partition: int, offset: int, value: bytes | None, token: Any, now_ms: int) -> records.Rejected | None:
        """Take a message of `clicks`; what is returned belongs in dead-letters."""
        held = self._partitions[partition]
        event, rejected = None, None
        try:
            event = self._decoder.action(value, now_ms)
        except records.Rejected as error:
            rejected = error
        fresh = held.is_fresh(1, offset)
        self._count(fresh=fresh, rejected=rejected)
        ts, request = (event.ts_ms, self._ids[event.request_id]) if event is not None else (event_time.NEVER, 0)
        self._acted[partition] = max(self._acted.get(partition, event_time.NEVER), ts)
        held.hold(partitions.Taken(partition, offset, token, ts, event if fresh else None, value or b"", request, now_ms))
        return rejected if fresh else None

    def _decoded(self, value: bytes | None, now_ms: int) -> Any:
        """An impression that fits into one message of `enriched`."""
        event = self._decoder.impression(value, now_ms)
        size = self._packer.bytes_of(event)
        if size > self._packer.room:
            raise records.Rejected("too_large", f"{len(event.items)} items take {size} bytes once enriched")
        return event

    def _count(self, *, fresh: bool, rejected: records.Rejected | None) -> None:
        if not fresh:
            self.counts.stale += 1
        elif rejected is not None:
            self.counts.rejected += 1

    def ahead(self, now_s: float) -> stores.Wanted:
        """Close a group of the lists taken since the last one, and say what to read for it; not while a batch is open.

        `fill` takes the reply whenever it comes; replies come in the order of the questions.
        """
        if self._batch is not None:
            raise RuntimeError("a batch is open: finish() it before ahead()")
        group = self._closed(now_s)
        self._groups.append(group)
        return self.engine.ahead(group.lists, now_s)

    def _closed(self, ahead_s: float | None) -> _Group:
        inputs, self._shown = self._shown, []
        shown = [taken for taken in inputs if taken.event is not None]
        compiled = self.engine.compiled
        lists = events.lists_of([t.event for t in shown], compiled, self._ids) if shown else events.no_lists(compiled)
        propensity, bad = events.propensities([t.event for t in shown])
        self.counts.bad_propensities += bad
        return _Group(inputs, shown, lists, ahead_s, propensity)

    def begin(self, now_ms: int, caught_up: Mapping[int, CaughtUp]) -> bool:
        """Make a micro-batch of the oldest group (without one, of all that was taken) and of the actions that are due.

        False if there is nothing to do. A partition not named is not caught up.
        """
        if self._batch is not None:
            raise RuntimeError("a batch is open: finish() it before the next begin()")
        group = self._groups.popleft() if self._groups else self._closed(None)
        inputs = group.inputs
        acted, self._acted = self._acted, {}
        newest: dict[int, int] = {}
        first: dict[int, int] = {}
        for taken in inputs:
            newest[taken.partition] = max(newest.get(taken.partition, event_time.NEVER), taken.ts)
            if taken.ts != event_time.NEVER:
                held = self._partitions[taken.partition]
                if held.know(taken.request):
                    first[taken.request] = taken.ts
                if taken.event is None:
                    held.clock.before = max(held.clock.before, taken.ts)
        counted: dict[tuple[str, int], int] = {}
        for taken in inputs:
            _raise_to(counted, (self._topics[0], taken.partition), taken.offset)
        watermarks: dict[int, int] = {}
        released: list[partitions.Taken] = []
        for partition, held in sorted(self._partitions.items()):
            state = caught_up.get(partition, CaughtUp(impressions=False, clicks=False))
            if partition in newest:
                held.clock.show(newest[partition], now_ms)
            if partition in acted:
                held.clock.act(acted[partition], now_ms)
            due = list(self._due(held, now_ms, state))
            released += due
            for taken in due:
                _raise_to(counted, (self._topics[1], partition), taken.offset)
            mark = held.clock.watermark(now_ms, impressions_caught_up=state.impressions, clicks_caught_up=state.clicks)
            mark = min(mark, held.low[0]) if held.low else mark
            if self._moves(held, mark, now_ms, busy=partition in newest or bool(due)):
                watermarks[partition] = max(mark, held.sent_ms)
        if not (inputs or released or watermarks):
            return False
        self._batch = self._cut(group, released, first, watermarks, counted)
        return True

    def _due(self, held: partitions.Partition, now_ms: int, state: CaughtUp) -> Iterator[partitions.Taken]:
        """Take the actions that may be counted off the front of a partition's queue."""
        while held.held:
            first = held.held[0]
            expected = first.event is not None and first.event.item_id is not None and first.request not in held.known
            ts = first.ts + self._lateness_ms if expected else first.ts
            if first.event is not None and not held.clock.is_due(ts, first.since_ms, now_ms, caught_up=state.impressions):
                return
            yield held.release()

    def _moves(self, held: partitions.Partition, mark: int, now_ms: int, *, busy: bool) -> bool:
        """Whether a message has to go to this partition: it has content, or its watermark moved and somebody may wait for it."""
        if busy:
            return True
        waits = held.sent_ms < max(held.clock.shown, held.clock.acted) + self._settled_ms
        return mark > held.sent_ms and waits and now_ms - held.quiet_ms >= QUIET_MS

    def _cut(
        self,
        group: _Group,
        released: list[partitions.Taken],
        first: dict[int, int],
        watermarks: dict[int, int],
        counted: dict[tuple[str, int], int],
    ) -> enriched.Batch:
        """Columns of the events and their order; `first` holds the times of the lists that are in no earlier batch."""
        shown, lists = group.shown, group.lists
        acted = [taken for taken in released if taken.event is not None]
        compiled = self.engine.compiled
        actions = events.actions_of([t.event for t in acted], compiled, self._ids) if acted else events.no_actions()
        times = np.array([*(t.ts for t in shown), *(max(t.ts, first.get(t.request, t.ts)) for t in acted)], np.int64)
        code = np.concatenate([np.arange(len(shown)), -1 - np.arange(len(acted))])
        order = code[np.lexsort((code < 0, times))]
        partition = np.array([t.partition for t in shown], np.int64)
        a_partition = np.array([t.partition for t in acted], np.int64)
        inputs = [*group.inputs, *released]
        return enriched.Batch(
            shown, acted, lists, actions, order, partition, a_partition, watermarks, inputs, counted, group.ahead_s,
            group.propensity,
        )  # fmt: skip

    def wanted(self, now_s: float) -> stores.Wanted:
        """What must be read for the batch begun; ask again after `fill`, until nothing is wanted.

        Counters may be as old as `store.cache_age_s` when the group was closed, or now if `ahead` did not close it.
        """
        batch = self._open()
        as_of_s = now_s if batch.ahead_s is None else batch.ahead_s
        return self.engine.wanted(batch.lists, batch.actions, as_of_s, batch.order)

    def fill(self, wanted: stores.Wanted, found: stores.Found, now_s: float) -> None:
        """Take over what was read."""
        self.engine.fill(wanted, found, now_s)

    def finish(self, now_ms: int) -> list[enriched.Message]:
        """Stamp and count the batch, and return its messages; they have to be delivered before what they hold is counted."""
        batch = self._open()
        x = self.engine.run(batch.lists, batch.actions, batch.order)
        duplicates = self.engine.duplicates
        self._batch = None
        self._tokens += [taken.token for taken in batch.inputs]
        for at, offset in batch.counted.items():
            _raise_to(self._finished, at, offset)
        self._see(batch.lists, duplicates)
        self.counts.lists += int((~duplicates).sum())
        self.counts.items += int(batch.lists.n_items[~duplicates].sum())
        self.counts.duplicates += int(duplicates.sum())
        self.counts.actions += len(batch.acted)
        out: list[enriched.Message] = []
        for partition, watermark in batch.watermarks.items():
            shown = np.flatnonzero((batch.partition == partition) & ~duplicates)
            acted = np.flatnonzero(batch.a_partition == partition)
            held = self._partitions[partition]
            out += self._packer.messages(batch, held, partition, shown, acted, x, watermark)
            held.sent_ms, held.quiet_ms = watermark, now_ms
        return out

    def _see(self, lists: features.Lists, duplicates: npt.NDArray[np.bool_]) -> None:
        """Count which sources the rows carried that are sent on."""
        if duplicates.any():
            fresh = np.repeat(~duplicates, lists.n_items)
            self.presence.add(lists.ids[fresh], lists.numbers[fresh])
        else:
            self.presence.add(lists.ids, lists.numbers)

    def take(self) -> Counting:
        """Drain what the store lacks; see the head of this file for when. One count at a time: `merged` before the next."""
        fences = tuple(
            stores.Fence(topic, partition, self._applied[topic, partition], offset)
            for (topic, partition), offset in sorted(self._finished.items())
            if offset != self._applied[topic, partition]
        )
        tokens, self._tokens = self._tokens, []
        self._applied = dict(self._finished)
        return Counting(self.engine.take()._replace(fences=fences), tokens)

    def merged(self, values: tuple[stores.F64, ...]) -> None:
        """What the store's `count` returned for the last `take`."""
        self.engine.merged(values)

    def _open(self) -> enriched.Batch:
        if self._batch is None:
            raise RuntimeError("no batch is open: begin() one first")
        return self._batch


def _raise_to(offsets: dict[tuple[str, int], int], at: tuple[str, int], offset: int) -> None:
    """A fence never moves back, though a message may come again."""
    offsets[at] = max(offsets.get(at, -1), offset)
