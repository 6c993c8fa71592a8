import time
from collections.abc import Callable
from typing import Any

import numpy as np

from state import dead_letters, ids, spec

JOIN = {"window_s": 1.5, "lateness_s": 0.3, "idle_timeout_s": 0.5}


def test_produced_events_become_episodes_with_labels_features_and_support(
    deployed: Callable[..., Any], start: Callable[..., Any], kafka_of: Callable[..., Any], eventually: Callable[..., None]
) -> None:
    config, path = deployed(join=JOIN, kafka={"partitions": 2})
    kafka, worker = kafka_of(config), start(path)
    now = time.time_ns() // 1_000_000
    kafka.impression("r1", "ann", now, ["a", "b"])
    kafka.click("r1", "ann", now + 50, "a")
    kafka.impression("r2", "ann", now + 100, ["a", "c"])
    kafka.impression("r3", "bob", now + 100, ["a"], scenario="search")
    kafka.impression("r4", "ann", now + 1_700, ["b"])
    kafka.flush()
    worker.until_ready()
    eventually(lambda: len(kafka.lists(config.topics.episodes)) >= 4)
    assert worker.stop() == 0, worker.text
    lists = {one["request"]: one for one in kafka.lists(config.topics.episodes)}
    clicked = {"r1": {ids.of("a")}, "r2": set(), "r3": set(), "r4": set()}
    assert kafka.labels(config.topics.episodes) == {ids.of(request): items for request, items in clicked.items()}
    names = spec.number_names(config.features)
    count = names.index("user_count")
    assert lists[ids.of("r1")]["x"][:, count].tolist() == [0.0, 0.0]
    np.testing.assert_allclose(lists[ids.of("r2")]["x"][:, count], np.log1p(2))
    rate = names.index("item_rate")
    shown = dict(zip(lists[ids.of("r2")]["item"].tolist(), lists[ids.of("r2")]["x"][:, rate].tolist(), strict=True))
    assert shown[ids.of("a")] > shown[ids.of("c")], "the click on a was counted before r2 was stamped"
    last = lists[ids.of("r4")]
    assert sorted(last["s_ts"].tolist()) == [now, now, now + 100, now + 100]
    assert sorted(last["s_label"][:, 0].tolist()) == [0.0, 0.0, 0.0, 1.0]
    assert last["task"] == ids.of("ann")
    assert last["partition"] == kafka.partition("ann")
    assert lists[ids.of("r2")]["s_ts"].tolist() == [], "the labels of r1 were not known yet"
    assert lists[ids.of("r3")]["head"]["scenarios"][str(ids.of("search"))] == "search"


def test_a_task_that_is_no_user_is_keyed_anew_and_learns_from_users_of_other_partitions(
    deployed: Callable[..., Any], start: Callable[..., Any], kafka_of: Callable[..., Any], eventually: Callable[..., None]
) -> None:
    config, path = deployed(join=JOIN, kafka={"partitions": 2}, task={"key": ["item"]})
    kafka, worker = kafka_of(config), start(path)
    now = time.time_ns() // 1_000_000
    ann, bob = "ann", next(user for user in ("bob", "cid", "dan", "eve") if kafka.partition(user) != kafka.partition("ann"))
    kafka.impression("r1", ann, now, ["a", "b"])
    kafka.click("r1", ann, now + 50, "a")
    kafka.flush()
    worker.until_ready()
    eventually(lambda: len(kafka.lists(config.topics.episodes)) >= 2)
    kafka.impression("r2", bob, now + 1_700, ["a"])
    kafka.flush()
    eventually(lambda: len(kafka.lists(config.topics.episodes)) >= 3)
    assert worker.stop() == 0, worker.text
    lists = {(one["request"], one["task"]): one for one in kafka.lists(config.topics.episodes)}
    a, b = ids.of("a"), ids.of("b")
    assert set(lists) == {(ids.of("r1"), a), (ids.of("r1"), b), (ids.of("r2"), a)}
    assert [lists[ids.of("r1"), task]["item"].tolist() for task in (a, b)] == [[a], [b]]
    assert all(one["partition"] == task % 2 for (_, task), one in lists.items())
    of_bob = lists[ids.of("r2"), a]
    user = next(c.start for c in spec.id_columns(config.features) if c.name == "user")
    assert of_bob["s_ids"][:, user].tolist() == [ids.of(ann)]
    assert of_bob["s_label"].tolist() == [[1.0]]


def test_what_cannot_be_used_is_a_dead_letter_with_its_bytes_and_the_agent_goes_on(
    deployed: Callable[..., Any], start: Callable[..., Any], kafka_of: Callable[..., Any], eventually: Callable[..., None]
) -> None:
    config, path = deployed(join=JOIN, kafka={"partitions": 2})
    kafka, worker = kafka_of(config), start(path)
    now = time.time_ns() // 1_000_000
    topics = config.topics
    bad = [
        (topics.impressions, b"{not json", "malformed"),
        (topics.impressions, b'{"request_id": "r"}', "missing_or_mistyped"),
        (topics.clicks, b"\xc1\x00", "malformed"),
        (topics.clicks, b'{"request_id":"r","user_id":"u","ts_ms":%d,"action":"dance"}' % now, "unknown_action"),
        (topics.clicks, b'{"request_id":"r","user_id":"u","item_id":"i","ts_ms":%d}' % (now + 200_000_000), "future"),
        (topics.enriched, b"foreign bytes", "schema"),
        (topics.samples, b"", "schema"),
    ]
    for topic, value, _ in bad:
        kafka.raw(topic, value, "ann")
    kafka.impression("r1", "ann", now, ["a"])
    kafka.click("r1", "ann", now + 10, "z")
    kafka.click("r9", "ann", now + 20, "a")
    kafka.flush()
    worker.until_ready()
    eventually(lambda: len(kafka.read(topics.dead_letters)) >= len(bad) + 2 and kafka.lists(topics.episodes))
    assert worker.stop() == 0, worker.text
    letters = [(dead_letters.read_headers(m.headers()), m) for m in kafka.read(topics.dead_letters)]
    found = {(letter.origin_topic, m.value() or b"", letter.reason) for letter, m in letters if letter.reason != "orphan"}
    assert found == set(bad)
    orphans = [(letter, m) for letter, m in letters if letter.reason == dead_letters.ORPHAN]
    clicks = {m.offset(): m.value() for m in kafka.read(topics.clicks)}
    assert sorted(letter.origin_offset for letter, _ in orphans) == [3, 4]
    for letter, message in orphans:
        assert (letter.origin_topic, letter.origin_partition) == (topics.clicks, kafka.partition("ann"))
        assert message.value() == clicks[letter.origin_offset]
        assert message.key() == b"ann"
    assert [one["request"] for one in kafka.lists(topics.episodes)] == [ids.of("r1")]
