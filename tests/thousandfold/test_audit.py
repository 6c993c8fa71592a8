"""The audit finds what is lost and what was trained twice, from the topics alone."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
from confluent_kafka import Producer

from state import columns, config, dead_letters, ids, kafka_settings, plan, snapshots
from thousandfold import audit

NOW_MS = 1_700_000_000_000


class Log:
    """Writes the topics of a deployment by hand."""

    def __init__(self, settings: config.Config) -> None:
        self.settings = settings
        self._producer = Producer(kafka_settings.producer(settings))
        self._episodes = 0

    def show(self, request: str, items: int, *, at_ms: int) -> None:
        message = {"request_id": request, "ts_ms": at_ms, "user_id": "u", "scenario": "home"}
        message["items"] = [{"item_id": f"i{k}", "position": k} for k in range(items)]
        self.put(self.settings.topics.impressions, msgspec.json.encode(message), timestamp=at_ms)

    def episodes(self, *lists: tuple[str, int, int]) -> int:
        """(request, rows, positive) each; returns the message's offset in partition 0."""
        rows = sum(n for _, n, _ in lists)
        label = np.concatenate([np.arange(n) < positive for _, n, positive in lists]).astype("<f4").reshape(rows, 1)
        packed: columns.Columns = {
            "request": np.array([ids.of(r) for r, _, _ in lists], "<u8"),
            "task": np.array([1 for _ in lists], "<u8"),
            "version": np.zeros(len(lists), "<i4"),
            "n_items": np.array([n for _, n, _ in lists], "<i4"),
            "label": label,
        }
        self.put(self.settings.topics.episodes, columns.pack(packed))
        self._episodes += 1
        return self._episodes - 1

    def plan(self, sequence: int, start: int, end: int, *skipped: tuple[int, int]) -> None:
        topic = self.settings.topics.episodes
        record = plan.Record(
            sequence=sequence, incarnation=0, first_step=sequence, last_step=sequence, wall_ms=0, rows=0,
            seed=0, threads=1, code="", spec="",
            ranges=((topic, 0, start, end),), skipped=tuple((topic, 0, o, i, plan.DUPLICATE) for o, i in skipped),
        )  # fmt: skip
        self.put(self.settings.topics.plan, plan.encode(record))

    def put(self, topic: str, value: bytes, **more: Any) -> None:
        self._producer.produce(topic, value, partition=0, **more)
        self._producer.flush()


@pytest.fixture
def log(deployed: Callable[..., Any]) -> Log:
    return Log(deployed().config)


@contextlib.contextmanager
def auditing(settings: config.Config) -> Iterator[audit.Audit]:
    found = audit.Audit(settings)
    try:
        yield found
    finally:
        found.close()


def test_a_list_without_an_episode_in_the_plan_is_lost_and_one_planned_twice_is_duplicated(log: Log) -> None:
    for request, items in (("a", 3), ("b", 2), ("c", 4), ("d", 1)):
        log.show(request, items, at_ms=NOW_MS)
    log.episodes(("a", 3, 1), ("b", 2, 0))
    log.episodes(("b", 2, 0))
    log.episodes(("c", 4, 4))
    log.plan(0, 0, 2)
    with auditing(log.settings) as found:
        found.advance()
        outcome = found.outcome()
    assert (outcome.produced, outcome.trained) == (10, 5)
    assert outcome.lost == 4 + 1
    assert outcome.duplicated == 2
    assert outcome.positive == 5


def test_a_skipped_copy_is_no_duplicate_and_a_superseded_record_does_not_count(log: Log) -> None:
    log.show("a", 3, at_ms=NOW_MS)
    log.episodes(("a", 3, 1))
    log.episodes(("a", 3, 1))
    log.plan(0, 0, 1)
    log.plan(0, 0, 2, (1, 0))
    with auditing(log.settings) as found:
        found.advance()
        outcome = found.outcome()
    assert (outcome.lost, outcome.duplicated, outcome.superseded) == (0, 0, 1)


def test_what_is_in_dead_letters_is_not_lost(log: Log) -> None:
    log.show("a", 3, at_ms=NOW_MS)
    letter = dead_letters.Letter("expired", "", "enrich", log.settings.topics.impressions, 0, 0, NOW_MS)
    log.put(log.settings.topics.dead_letters, b"{}", headers=dead_letters.headers(letter))
    with auditing(log.settings) as found:
        found.advance()
        outcome = found.outcome()
    assert (outcome.produced, outcome.lost, outcome.dead_lettered) == (0, 0, 1)


def test_it_goes_on_reading_from_where_it_was(log: Log) -> None:
    log.show("a", 3, at_ms=NOW_MS)
    with auditing(log.settings) as found:
        assert found.advance() == 1
        assert found.advance() == 0
        log.show("b", 1, at_ms=NOW_MS)
        assert found.advance() == 1
        assert found.outcome().produced == 4


def test_freshness_runs_from_the_click_to_the_first_score_by_a_model_that_holds_its_list(log: Log) -> None:
    offset = log.episodes(("a", 1, 1))
    for step, following in ((10, offset), (20, offset + 1)):
        manifest = snapshots.Manifest(
            version=f"v{step}", step=step, created_ms=0, directory="", files={}, spec="", model="", trained_rows=0,
            offsets=((log.settings.topics.episodes, 0, following),),
        )  # fmt: skip
        log.put(log.settings.topics.snapshots, snapshots.pack(snapshots.seal(manifest)))
    with auditing(log.settings) as found:
        found.advance()
        assert found.freshness_s([("a", 1000), ("never trained", 1000)], {10: 2000, 20: 5000}) == [4.0]
        assert found.freshness_s([("a", 1000)], {10: 2000}) == []
