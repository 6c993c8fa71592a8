"""kill -9 and rebalances under load: what comes out is what a run without them gives, and every counter is exact."""

import random
import re
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from state import dead_letters, ids

WINDOW_MS = 1500
JOIN = {"window_s": WINDOW_MS / 1000, "lateness_s": 0.3, "idle_timeout_s": 1.0}


def check(load: Any, kafka: Any, config: Any, start: Callable[[], Any], eventually: Callable[..., None]) -> None:
    """Everything arrived once, labelled and stamped right, and a new worker finds every counter exact."""
    assert kafka.labels(config.topics.episodes) == load.labels()
    load.check_stamps(kafka.lists(config.topics.enriched))
    assert [dead_letters.read_headers(message.headers()) for message in kafka.read(config.topics.dead_letters)] == []
    expected = load.probe(kafka, time.time_ns() // 1_000_000)
    worker = start().until_ready()
    eventually(lambda: any(one["request"] == ids.of("probe") for one in kafka.lists(config.topics.enriched)))
    (found,) = [one for one in kafka.lists(config.topics.enriched) if one["request"] == ids.of("probe")]
    counts = dict(zip(found["item"].tolist(), np.rint(np.expm1(found["x"].astype(float))).astype(int).tolist(), strict=True))
    assert counts == expected
    assert worker.stop() == 0, worker.text


def test_killed_at_any_point_under_load_nothing_is_lost_counted_twice_or_leaked(
    deployed: Callable[..., Any],
    start: Callable[..., Any],
    kafka_of: Callable[..., Any],
    load: Any,
    eventually: Callable[..., None],
) -> None:
    made = load(6000, WINDOW_MS, time.time_ns() // 1_000_000 - 60_000, 8)
    config, path = deployed(join=JOIN, kafka={"partitions": 2}, spec=load.SPEC)
    kafka = kafka_of(config)
    made.produce(kafka)
    draw = random.Random(11)
    for _ in range(2):
        worker = start(path).until_ready()
        point = kafka.end(config.topics.enriched) + draw.randrange(2, 10)
        eventually(lambda point=point: kafka.end(config.topics.enriched) >= point, every_s=0.01)
        worker.stop(signal.SIGKILL)
    assert len(kafka.labels(config.topics.episodes)) < len(made.lists), "the load was over before the last kill: make it longer"
    worker = start(path).until_ready()
    eventually(lambda: len(kafka.labels(config.topics.episodes)) == len(made.lists), timeout_s=60)
    assert worker.stop() == 0, worker.text
    check(made, kafka, config, lambda: start(path), eventually)


def test_two_workers_share_the_partitions_and_hand_them_over_without_loss(
    deployed: Callable[..., Any],
    start: Callable[..., Any],
    kafka_of: Callable[..., Any],
    load: Any,
    eventually: Callable[..., None],
) -> None:
    config, path = deployed(join=JOIN, kafka={"partitions": 4}, spec=load.SPEC)
    kafka = kafka_of(config)
    first = start(path, instance="w0").until_ready()
    made = load(3000, WINDOW_MS, time.time_ns() // 1_000_000, 5)
    feeder = threading.Thread(target=made.produce, args=(kafka,), kwargs={"paced": True})
    feeder.start()
    second = start(path, instance="w1").until_ready()
    feeder.join()
    eventually(lambda: len(kafka.labels(config.topics.episodes)) == len(made.lists), timeout_s=60)
    assert (first.stop(), second.stop()) == (0, 0), first.text + second.text
    owned = [set(re.findall(r"\S+\[\d\]", worker.text.split("assigned: ")[-1].split("\n")[0])) for worker in (first, second)]
    assert owned[0] & owned[1] == set()
    assert [len(own) for own in owned] == [8, 8], "each had two of the four partitions of every topic"
    check(made, kafka, config, lambda: start(path), eventually)


def test_sigterm_ends_a_worker_within_five_seconds_with_lists_held_open_and_loses_none(
    deployed: Callable[..., Any],
    start: Callable[..., Any],
    kafka_of: Callable[..., Any],
    load: Any,
    eventually: Callable[..., None],
) -> None:
    made = load(100, WINDOW_MS, time.time_ns() // 1_000_000 - 1_000, 10)
    config, path = deployed(join={**JOIN, "window_s": 12.0}, kafka={"partitions": 2}, spec=load.SPEC)
    kafka = kafka_of(config)
    made.produce(kafka)
    worker = start(path).until_ready()
    eventually(lambda: len(kafka.lists(config.topics.enriched)) == len(made.lists))
    begun = time.monotonic()
    assert worker.stop() == 0, worker.text
    assert time.monotonic() - begun < 5.0
    assert kafka.lists(config.topics.samples) == [], "the lists must still be open, or this test shows nothing"
    worker = start(path).until_ready()
    eventually(lambda: len(kafka.labels(config.topics.episodes)) == len(made.lists), timeout_s=60)
    assert kafka.labels(config.topics.episodes) == made.labels()
    assert worker.stop() == 0, worker.text
