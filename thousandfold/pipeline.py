"""Raw messages to episodes in this process, through the same pure cores as the stream workers: no Faust, no broker, no store.

`replay` and the warm-up of the kernels use it. What the workers read from the store comes from `state.memory_store`.
"""

from collections.abc import Coroutine, Iterable, Iterator
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec
import numpy as np

from state import columns, features, ids, memory_store, records, stores
from state.config import Config
from streams import enrich, group, join, samples
from thousandfold import produce

Result = TypeVar("Result")
CAUGHT_UP = enrich.CaughtUp(impressions=True, clicks=True)
BEHIND = enrich.CaughtUp(impressions=False, clicks=False)
SETTLE_STEP_MS = 1000


class Raw(NamedTuple):
    """A message of a raw topic."""

    topic: Literal["impressions", "clicks"]
    partition: int
    offset: int
    value: bytes | None
    at_ms: int


def raw(sends: Iterable[produce.Send], partitions: int) -> Iterator[Raw]:
    """Messages as the raw topics would hold them: partitioned by user, offsets from 0, at the time they are due."""
    following: dict[tuple[str, int], int] = {}
    for send in sends:
        topic: Literal["impressions", "clicks"] = "impressions" if isinstance(send.message, produce.Impression) else "clicks"
        partition = ids.of(send.message.user_id) % partitions
        offset = following[topic, partition] = following.get((topic, partition), -1) + 1
        yield Raw(topic, partition, offset, msgspec.json.encode(send.message), send.due_ms)


class Counts:
    """What became of the input so far."""

    __slots__ = ("impressions", "late", "lists", "orphans", "positive", "rejected", "rows")

    def __init__(self) -> None:
        self.impressions = self.rejected = self.lists = self.rows = self.positive = self.late = self.orphans = 0


class Pipeline:
    """Enrich, join and group of all partitions. Time is that of the messages themselves."""

    def __init__(self, config: Config) -> None:
        self.counts = Counts()
        self._config, self._now_ms = config, 0
        self._enrich = enrich.Enrich(config)
        self._store = memory_store.MemoryStore(self._enrich.engine.schema, lambda: self._now_ms)
        self._rules, self._routing = join.rules(config), samples.routing(config)
        self._joins: dict[int, join.Partition] = {}
        self._names: dict[int, str] = {}
        self._group = group.Group(config)

    def feed(self, messages: Iterable[Raw]) -> list[bytes]:
        """Take messages, offsets rising per topic and partition, and return the `episodes` messages that are complete."""
        for message in messages:
            self._now_ms = max(self._now_ms, message.at_ms)
            self._own(message.partition)
            take = self._enrich.impression if message.topic == "impressions" else self._enrich.action
            rejected: records.Rejected | None = take(message.partition, message.offset, message.value, None, message.at_ms)
            self.counts.rejected += rejected is not None
            self.counts.impressions += message.topic == "impressions"
        return self._flush(BEHIND)

    def end(self) -> list[bytes]:
        """No more will come: close what is open, as an idle deployment does, and return the last episodes."""
        out = self._flush(BEHIND)
        horizon_ms = self._now_ms + round(
            1000 * (2 * self._config.join.idle_timeout_s + 3 * self._config.join.window_s + 2 * self._config.join.lateness_s)
        )
        step_ms = max(SETTLE_STEP_MS, round(250 * self._config.join.window_s))
        while self._now_ms < horizon_ms:
            self._now_ms += step_ms
            out += self._flush(CAUGHT_UP)
        return out

    @property
    def bad_propensities(self) -> int:
        """Rows taken whose propensity was no probability above 0."""
        return self._enrich.counts.bad_propensities

    def supports(self, tasks: stores.U64) -> list[bytes | None]:
        """The packed support sets of tasks, as a deployment's store would hold them."""
        return _done(self._store.supports(tasks))

    def _own(self, partition: int) -> None:
        if partition not in self._joins:
            self._joins[partition] = join.Partition(self._rules)
            self._enrich.assign(partition, -1, -1, self._now_ms)

    def _flush(self, state: enrich.CaughtUp) -> list[bytes]:
        if not self._enrich.begin(self._now_ms, dict.fromkeys(self._joins, state)):
            return []
        now_s = self._now_ms / 1000
        while not features.is_empty(wanted := self._enrich.wanted(now_s)):
            self._enrich.fill(wanted, _done(self._store.read(wanted)), now_s)
        messages = self._enrich.finish(self._now_ms)
        self._enrich.merged(_done(self._store.count(self._enrich.take().counted)))
        grouped: list[tuple[dict[str, Any], columns.Columns]] = []
        for message in messages:
            grouped += self._joined(message.partition, message.value)
        return self._episodes(grouped)

    def _joined(self, partition: int, value: bytes) -> list[tuple[dict[str, Any], columns.Columns]]:
        head, found = columns.unpack(value)
        self._names |= {int(key): str(name) for key, name in head["scenarios"].items()}
        joined = self._joins[partition]
        joined.take(head, found, None)
        out = joined.emit()
        for unjoined in out.unjoined:
            self.counts.late += unjoined.reason == "late"
            self.counts.orphans += unjoined.reason == "orphan"
        if out.lists is None:
            return []
        self.counts.lists += len(out.lists["ts"])
        self.counts.rows += len(out.lists["item"])
        self.counts.positive += int(np.count_nonzero(out.lists["label"][:, 0] > 0))
        routed = samples.messages(out.lists, samples.Names(self._names, out.items), self._routing, partition)
        return [columns.unpack(packed) for _, packed, _, _ in routed]

    def _episodes(self, messages: list[tuple[dict[str, Any], columns.Columns]]) -> list[bytes]:
        tasks = self._group.wanted(messages)
        if len(tasks):
            self._group.fill(tasks, _done(self._store.supports(tasks)))
        out = [value for _, value in self._group.episodes(messages)]
        tasks, values = self._group.writes()
        if len(tasks):
            _done(self._store.put_supports(tasks, values, self._group.ttl_ms))
        return out


def _done(call: Coroutine[Any, Any, Result]) -> Result:
    """The result of a coroutine that never waits: the memory store's."""
    try:
        call.send(None)
    except StopIteration as finished:
        result: Result = finished.value
        return result
    call.close()
    raise RuntimeError("a store in memory must not wait")
