"""The audit: what the producer's log holds against what the learner's plan consumed.

It reads the topics themselves, not the counters of the processes, so that a process that miscounts is found out. A list is
trained when a plan record that counts (state/plan.py) covers its episode; it is lost when no such record does and it is not in
dead-letters, and duplicated when two do.
"""

import bisect
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple, cast

import numpy as np
from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from state import columns, dead_letters, ids, kafka_settings, plan, records, snapshots
from state.config import Config

FETCH = 500


class Stalled(RuntimeError):
    """The broker did not hand over a topic to its end."""


class Episode(NamedTuple):
    """What is remembered of one list of an episodes message."""

    request: int
    task: int
    version: int
    rows: int
    positive: int


class Outcome(NamedTuple):
    """The verdict, in rows (an impression is one item shown) unless said otherwise."""

    produced_lists: int
    produced: int
    clicks: int
    joined: int
    positive: int
    orphan: int
    late: int
    dead_lettered: int
    trained: int
    lost: int
    duplicated: int
    plan_records: int
    superseded: int
    gaps: int
    overlaps: int
    snapshots: int


class Audit:
    """Reads the topics as they grow; `advance` takes in what is new, `outcome` judges what was read so far."""

    def __init__(self, config: Config) -> None:
        self._config, self._decoder = config, records.decoder(config)
        self._consumer = Consumer(
            kafka_settings.client(
                config,
                **{
                    "group.id": f"{config.kafka.group}-audit",
                    "enable.auto.commit": False,
                    "enable.partition.eof": True,
                    "isolation.level": "read_committed",
                },
            )
        )
        t = config.topics
        self._readers: dict[str, Callable[[Message], None]] = {
            t.impressions: self._impression,
            t.clicks: self._click,
            t.dead_letters: self._dead_letter,
            t.episodes: self._episodes,
            t.plan: self._plan,
            t.snapshots: self._snapshot,
        }
        self._places: dict[tuple[str, int], int] = {}
        self._behind: set[tuple[str, int]] = set()
        self.shown: dict[tuple[int, int], tuple[int, int]] = {}
        self.clicked: dict[tuple[int, int], int] = {}
        self.dead: dict[tuple[str, int, int], str] = {}
        self.episodes: dict[tuple[int, int], list[Episode]] = {}
        self.plan: list[plan.Record] = []
        self.manifests: list[snapshots.Manifest] = []

    def advance(self, timeout_s: float = 30.0) -> int:
        """Read every topic to its end; returns how many messages were read.

        Raises:
            Stalled: an end was not reached within `timeout_s` of the last message.
        """
        self._assign()
        read, last = 0, time.monotonic()
        self._behind = set(self._places)
        while self._behind:
            for message in self._consumer.consume(FETCH, 0.2):
                error = message.error()
                if error is None:
                    self._readers[str(message.topic())](message)
                    read, last = read + 1, time.monotonic()
                elif error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 - the library's public name for it
                    self._behind.discard((str(message.topic()), int(message.partition() or 0)))
            if time.monotonic() - last > timeout_s:
                raise Stalled(f"the end of {sorted(self._behind)} was not reached within {timeout_s:g} s; is the broker up?")
        return read

    def close(self) -> None:
        """Leave the broker."""
        self._consumer.close()

    def outcome(self) -> Outcome:
        """Compare the produced log with what the plan consumed, as far as both were read."""
        consumed = plan.consumed(self.plan)
        trained = self._trained(consumed)
        dead_lists = {(p, o) for topic, p, o in self.dead if topic == self._config.topics.impressions}
        wanted = {request: rows for at, (request, rows) in self.shown.items() if at not in dead_lists}
        joined = {e.request: e for lists in self.episodes.values() for e in lists if e.version == 0}
        final: dict[tuple[int, int], Episode] = {}
        for lists in self.episodes.values():
            for e in lists:
                if (e.request, e.task) not in final or final[e.request, e.task].version < e.version:
                    final[e.request, e.task] = e
        rows_of_trained = dict.fromkeys(wanted, 0)
        for (request, _, version), (rows, _) in trained.items():
            if version == 0 and request in rows_of_trained:
                rows_of_trained[request] += rows
        reasons = Counter(self.dead.values())
        return Outcome(
            produced_lists=len(wanted),
            produced=sum(wanted.values()),
            clicks=len(self.clicked),
            joined=sum(wanted.get(request, 0) for request in joined),
            positive=sum(e.positive for e in final.values()),
            orphan=reasons[dead_letters.ORPHAN],
            late=reasons[dead_letters.LATE],
            dead_lettered=len(self.dead),
            trained=sum(rows for (_, _, version), (rows, _) in trained.items() if version == 0),
            lost=sum(max(rows - rows_of_trained[request], 0) for request, rows in wanted.items()),
            duplicated=sum(rows * (times - 1) for rows, times in trained.values()),
            plan_records=len(self.plan),
            superseded=consumed.superseded,
            gaps=len(consumed.gaps),
            overlaps=len(consumed.overlaps),
            snapshots=len(self.manifests),
        )

    def freshness_s(self, clicks: Iterable[tuple[str, int]], scored_ms: dict[int, int]) -> list[float]:
        """Seconds from a click's production to the first score by a model that trained on its list, for each click that has one.

        `clicks` are (request id, produced wall ms); `scored_ms` maps a step that serving named in a reply to the wall ms of its
        first reply.
        """
        place: dict[int, tuple[int, int]] = {}
        for at, lists in self.episodes.items():
            for e in lists:
                place[e.request] = max(place.get(e.request, at), at, key=lambda a: a[1])
        first_scores = sorted(scored_ms.items())
        steps = [step for step, _ in first_scores]
        earliest = np.minimum.accumulate([ms for _, ms in reversed(first_scores)])[::-1] if first_scores else np.zeros(0)
        covering = sorted(self.manifests, key=lambda m: m.step)
        out = []
        for request, produced_ms in clicks:
            stands = place.get(ids.of(request))
            if stands is None:
                continue
            holds = next((m for m in covering if _covers(m, self._config.topics.episodes, stands)), None)
            index = bisect.bisect_left(steps, holds.step) if holds else len(steps)
            if index < len(steps):
                out.append((float(earliest[index]) - produced_ms) / 1000)
        return out

    def _trained(self, consumed: plan.Consumed) -> dict[tuple[int, int, int], tuple[int, int]]:
        """(request, task, version) to (rows, how many times it was trained)."""
        topic = self._config.topics.episodes
        out: dict[tuple[int, int, int], tuple[int, int]] = {}
        for (partition, offset), lists in self.episodes.items():
            ranges = consumed.ranges.get((topic, partition), [])
            if (topic, partition, offset, plan.WHOLE_MESSAGE) in consumed.skipped or not any(a <= offset < b for a, b in ranges):
                continue
            for index, e in enumerate(lists):
                if (topic, partition, offset, index) not in consumed.skipped:
                    key = (e.request, e.task, e.version)
                    out[key] = (e.rows, out.get(key, (0, 0))[1] + 1)
        return out

    def _assign(self) -> None:
        """Assign everything once; afterwards go on from where each partition was read to, so that its end is told again."""
        if not self._places:
            found = self._consumer.list_topics(timeout=15).topics
            self._places = {(t, p): 0 for t in self._readers for p in found[t].partitions}
        else:
            for at in self._consumer.position([TopicPartition(t, p) for t, p in self._places]):
                self._places[at.topic, at.partition] = max(at.offset, self._places[at.topic, at.partition])
        self._consumer.assign([TopicPartition(t, p, offset) for (t, p), offset in self._places.items()])

    def _impression(self, message: Message) -> None:
        try:
            decoded = self._decoder.impression(message.value(), message.timestamp()[1])
        except records.Rejected:
            return
        at = (int(message.partition() or 0), int(message.offset() or 0))
        self.shown[at] = (ids.of(decoded.request_id), len(decoded.items))

    def _click(self, message: Message) -> None:
        self.clicked[int(message.partition() or 0), int(message.offset() or 0)] = 1

    def _dead_letter(self, message: Message) -> None:
        found = dead_letters.read_headers(cast("list[tuple[str, bytes | None]] | None", message.headers()))
        self.dead[found.origin_topic, found.origin_partition, found.origin_offset] = found.reason

    def _episodes(self, message: Message) -> None:
        _, c = columns.unpack(message.value() or b"")
        rows = c["n_items"].tolist()
        ends = np.cumsum(c["n_items"])
        positives = np.concatenate([[0], np.cumsum((c["label"] > 0).any(axis=1))])
        positive = (positives[ends] - positives[ends - c["n_items"]]).tolist()
        keys = zip(c["request"].tolist(), c["task"].tolist(), c["version"].tolist(), rows, positive, strict=True)
        self.episodes[int(message.partition() or 0), int(message.offset() or 0)] = [Episode(*key) for key in keys]

    def _plan(self, message: Message) -> None:
        self.plan.append(plan.decode(message.value() or b""))

    def _snapshot(self, message: Message) -> None:
        self.manifests.append(snapshots.unpack(message.value() or b""))


def _covers(manifest: snapshots.Manifest, topic: str, at: tuple[int, int]) -> bool:
    return any(t == topic and p == at[0] and at[1] < following for t, p, following in manifest.offsets)
