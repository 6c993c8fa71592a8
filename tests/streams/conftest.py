"""Real workers on a real broker and store: how the integration tests start them, feed them and read what they wrote."""

import bisect
import collections
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import confluent_kafka
import msgspec
import numpy as np
import pytest

from state import columns, ids, kafka_settings
from state.config import Config

ROOT = pathlib.Path(__file__).parents[2]


class Worker:
    """A stream worker in a process of its own."""

    def __init__(self, path: pathlib.Path, instance: str = "w0", stages: str = "enrich,join,group") -> None:
        self.ready = path.with_name(f"{instance}-{time.monotonic_ns()}.ready")
        self.log = self.ready.with_suffix(".log")
        command = [sys.executable, "-m", "streams", "--config", path, "--instance", instance, "--stages", stages]
        with self.log.open("w") as log:
            self.process = subprocess.Popen([*map(str, command), "--ready-file", str(self.ready)], stderr=log, cwd=ROOT)

    def until_ready(self, timeout_s: float = 60.0) -> "Worker":
        end = time.monotonic() + timeout_s
        while not self.ready.exists():
            assert self.process.poll() is None, f"the worker ended with {self.process.returncode}:\n{self.text}"
            assert time.monotonic() < end, f"the worker is not ready:\n{self.text}"
            time.sleep(0.05)
        return self

    @property
    def text(self) -> str:
        return self.log.read_text()

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 15.0) -> int:
        """Send a signal and return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(timeout_s)


@pytest.fixture
def start() -> Iterator[Callable[..., Worker]]:
    """`start(path, instance=..., stages=...)` starts a worker; all are ended after the test."""
    workers: list[Worker] = []

    def begin(path: pathlib.Path, **named: Any) -> Worker:
        workers.append(Worker(path, **named))
        return workers[-1]

    yield begin
    for worker in workers:
        if worker.process.poll() is None:
            worker.process.kill()
        worker.process.wait()


class Kafka:
    """Producing raw events and reading topics from their beginning."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._producer = confluent_kafka.Producer(kafka_settings.producer(config, **{"linger.ms": 0}))
        self._reader = confluent_kafka.Consumer(kafka_settings.consumer(config))

    def partition(self, user: str) -> int:
        return ids.of(user) % self.config.kafka.partitions

    def impression(self, request: str, user: str, ts_ms: int, items: list[str], scenario: str = "home") -> None:
        shown = [{"item_id": item, "position": i} for i, item in enumerate(items)]
        event = {"request_id": request, "ts_ms": ts_ms, "user_id": user, "scenario": scenario, "items": shown}
        self.raw(self.config.topics.impressions, msgspec.json.encode(event), user)

    def click(self, request: str, user: str, ts_ms: int, item: str, **more: Any) -> None:
        event = {"request_id": request, "user_id": user, "ts_ms": ts_ms, "item_id": item, **more}
        self.raw(self.config.topics.clicks, msgspec.msgpack.encode(event), user)

    def raw(self, topic: str, value: bytes, user: str) -> None:
        self._producer.produce(topic, value, user, partition=self.partition(user))
        self._producer.poll(0)

    def flush(self) -> None:
        assert self._producer.flush(15) == 0

    def end(self, topic: str) -> int:
        """Messages in a topic."""
        partitions = range(self.config.kafka.partitions)
        at = [confluent_kafka.TopicPartition(topic, p) for p in partitions]
        return sum(self._reader.get_watermark_offsets(one, timeout=10)[1] for one in at)

    def read(self, topic: str) -> list[confluent_kafka.Message]:
        """All messages of a topic, by partition and offset."""
        consumer = confluent_kafka.Consumer(kafka_settings.consumer(self.config))
        try:
            parts = sorted(consumer.list_topics(topic, timeout=10).topics[topic].partitions)
            ends = {p: consumer.get_watermark_offsets(confluent_kafka.TopicPartition(topic, p), timeout=10)[1] for p in parts}
            consumer.assign([confluent_kafka.TopicPartition(topic, p, 0) for p in parts])
            found: list[confluent_kafka.Message] = []
            left = {p for p, end in ends.items() if end > 0}
            deadline = time.monotonic() + 20
            while left:
                assert time.monotonic() < deadline, f"{topic} cannot be read to its end"
                for message in consumer.consume(1000, 0.2):
                    assert message.error() is None
                    found.append(message)
                    if (message.offset() or 0) + 1 >= ends[message.partition()]:
                        left.discard(message.partition())
            return sorted(found, key=lambda m: (m.partition(), m.offset()))
        finally:
            consumer.close()

    def lists(self, topic: str) -> list[dict[str, Any]]:
        """Every list of a derived topic, with its rows, in the order of the log."""
        out = []
        for message in self.read(topic):
            head, c = columns.unpack(message.value() or b"")
            at = support_at = 0
            for i, n in enumerate(c["n_items"].tolist()):
                one: dict[str, Any] = {name: c[name][i].item() for name in ("request", "user", "scenario", "ts")}
                one |= {name: c[name][at : at + n] for name in ("item", "ids", "x")}
                for name in ("task", "version"):
                    one |= {name: c[name][i].item()} if name in c else {}
                for name in ("label", "weight"):
                    one |= {name: c[name][at : at + n]} if name in c else {}
                if "n_support" in c:
                    k = int(c["n_support"][i])
                    one |= {name: c[name][support_at : support_at + k] for name in ("s_ids", "s_x", "s_label", "s_ts")}
                    support_at += k
                out.append({**one, "partition": message.partition(), "head": head})
                at += n
        return out

    def labels(self, topic: str) -> dict[int, set[int]]:
        """Items with a positive label by request, version 0; copies must agree."""
        found: dict[int, set[int]] = collections.defaultdict(set)
        for one in self.lists(topic):
            if one["version"] == 0:
                positive = set(one["item"][one["label"][:, 0] > 0].tolist())
                assert found.setdefault(one["request"], positive) == positive
        return dict(found)

    def close(self) -> None:
        self._reader.close()


@pytest.fixture
def kafka_of() -> Iterator[Callable[[Config], Kafka]]:
    """`kafka_of(config)` produces to and reads from its brokers."""
    opened: list[Kafka] = []

    def connect(config: Config) -> Kafka:
        opened.append(Kafka(config))
        return opened[-1]

    yield connect
    for kafka in opened:
        kafka.close()


def _eventually(check: Callable[[], object], timeout_s: float = 20.0, every_s: float = 0.2) -> None:
    end = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(every_s)


@pytest.fixture
def eventually() -> Callable[..., None]:
    """`eventually(check)` waits until `check()` is true."""
    return _eventually


@pytest.fixture(autouse=True)
def _single_threaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "OPENBLAS_NUM_THREADS", "1")


class Load:
    """Lists and clicks in event time, and what must come out of them."""

    SPEC = """
    [features]
    categories = [
      { name = "user", source = "user_id" },
      { name = "item", source = "item_id" },
      { name = "scenario", source = "scenario" },
    ]
    statistics = [
      { name = "user_count", key = ["user"], kind = "count" },
      { name = "user_actions", key = ["user"], kind = "actions" },
      { name = "item_count", key = ["item"], kind = "count" },
      { name = "item_actions", key = ["item"], kind = "actions" },
    ]
    """

    def __init__(self, n_lists: int, window_ms: int, start_ms: int, step_ms: int, seed: int = 3) -> None:
        draw = random.Random(seed)
        self.users, self.items = [f"user-{i}" for i in range(40)], [f"item-{i}" for i in range(300)]
        self.lists = [
            (start_ms + i * step_ms, f"request-{seed}-{i}", draw.choice(self.users), draw.sample(self.items, 4))
            for i in range(n_lists)
        ]
        self.clicks = sorted(
            (ts + draw.randrange(1, window_ms - 100), request, user, item)
            for ts, request, user, items in self.lists
            for item in items
            if draw.random() < 0.2
        )

    def produce(self, kafka: Kafka, *, paced: bool = False) -> None:
        """Produce both topics side by side in event time; paced: each event at its time."""
        merged: list[tuple[int, str, str, Any]] = sorted([*self.lists, *self.clicks], key=lambda e: e[0])
        for ts, request, user, shown in merged:
            if paced:
                time.sleep(max(0.0, ts / 1000 - time.time()))
            if isinstance(shown, list):
                kafka.impression(request, user, ts, shown)
            else:
                kafka.click(request, user, ts, shown)
        kafka.flush()

    def labels(self) -> dict[int, set[int]]:
        """Clicked items by request."""
        found: dict[int, set[int]] = {ids.of(request): set() for _, request, _, _ in self.lists}
        for _, request, _, item in self.clicks:
            found[ids.of(request)].add(ids.of(item))
        return found

    def check_stamps(self, lists: list[dict[str, Any]]) -> None:
        """Every exposure strictly before a list was counted in it exactly once, and no action after it."""
        exposures: dict[str, int] = collections.Counter()
        clicked: dict[str, list[int]] = collections.defaultdict(list)
        for ts, _, user, _ in self.clicks:
            clicked[user].append(ts)
        expected = {}
        for ts, request, user, items in self.lists:
            expected[ids.of(request)] = (exposures[user], bisect.bisect_right(clicked[user], ts))
            exposures[user] += len(items)
        for one in lists:
            if one["request"] in expected:
                shown, most = expected[one["request"]]
                counted, acted = np.rint(np.expm1(one["x"][0, :2].astype(float))).tolist()
                assert counted == shown, "exposures of the user"
                assert acted <= most, "a stamped value saw a later action"

    def probe(self, kafka: Kafka, ts_ms: int) -> dict[int, list[int]]:
        """Show every item once to one user; return the counts that each row must be stamped with."""
        shown = collections.Counter(item for _, _, _, items in self.lists for item in items)
        acted = collections.Counter(item for _, _, _, item in self.clicks)
        kafka.impression("probe", self.users[0], ts_ms, self.items)
        kafka.flush()
        user = self.users[0]
        both = [sum(4 for one in self.lists if one[2] == user), sum(1 for one in self.clicks if one[2] == user)]
        return {ids.of(item): [*both, shown[item], acted[item]] for item in self.items}


@pytest.fixture
def load() -> type[Load]:
    """`load(n_lists, window_ms, start_ms, step_ms)` makes up events; see Load."""
    return Load
