"""Replay: a range of the raw topics by time, into a learner of its own."""

import pathlib
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from confluent_kafka import Producer
from typer.testing import CliRunner

from state import config, disk_snapshots, ids, kafka_settings
from thousandfold import replay

START_MS = 1_700_000_000_000
RUNNER = CliRunner()


def produce(settings: config.Config, lists: int) -> None:
    """One list a second of event and broker time, each clicked half a second later."""
    producer = Producer(kafka_settings.producer(settings))
    for i in range(lists):
        ts_ms, user = START_MS + 1000 * i, f"u{i % 5}"
        partition = ids.of(user) % settings.kafka.partitions
        shown = {"request_id": f"r{i}", "ts_ms": ts_ms, "user_id": user, "scenario": "home"}
        items = [{"item_id": f"i{(i + k) % 7}", "position": k} for k in range(3)]
        producer.produce(
            settings.topics.impressions, msgspec.json.encode({**shown, "items": items}), partition=partition, timestamp=ts_ms
        )
        click = {"request_id": f"r{i}", "item_id": items[0]["item_id"], "user_id": user, "ts_ms": ts_ms + 500}
        producer.produce(settings.topics.clicks, msgspec.json.encode(click), partition=partition, timestamp=ts_ms + 500)
    producer.flush()


@pytest.fixture
def made(deployed: Callable[..., Any]) -> Any:
    return deployed(
        join={"window_s": 2.0, "lateness_s": 0.5, "idle_timeout_s": 1.0},
        model={"scenario_features": ["scenario"], "personal_features": ["user", "item"]},
        learner={"baseline": "off", "metrics_port": 0},
    )


def test_everything_in_the_range_is_trained_on_and_nothing_else(made: Any, tmp_path: pathlib.Path) -> None:
    produce(made.config, 40)
    into = tmp_path / "filled"
    begin, end = str(START_MS + 10_000), str(START_MS + 30_000)
    result = RUNNER.invoke(replay.app, ["--config", str(made.path), "--from", begin, "--to", end, "--into", str(into)])
    assert result.exit_code == 0, result.output
    manifest = disk_snapshots.newest_intact(into)
    assert manifest is not None
    assert manifest.trained_rows == 20 * 3


def test_a_second_replay_into_the_same_folder_trains_only_what_is_new(made: Any, tmp_path: pathlib.Path) -> None:
    produce(made.config, 30)
    into = tmp_path / "filled"
    for end in (20_000, 30_000):
        given = ["--config", str(made.path), "--from", str(START_MS), "--to", str(START_MS + end), "--into", str(into)]
        assert RUNNER.invoke(replay.app, given).exit_code == 0
    manifest = disk_snapshots.newest_intact(into)
    assert manifest is not None
    assert manifest.trained_rows == 30 * 3


def test_a_range_of_more_than_100_mb_is_read_to_its_end(made: Any) -> None:
    # The embedded broker sends all that a partition has left, and librdkafka accepts 100 MB at once by default.
    producer, size, count = Producer(kafka_settings.producer(made.config)), 1_000_000, 104
    for i in range(count):
        producer.produce(made.config.topics.impressions, bytes(size), partition=0, timestamp=START_MS + i)
        producer.flush()
    raw, found = replay.RawRange(made.config, START_MS, START_MS + count), list[int]()
    try:
        while taken := raw.take(count):
            found += [message.offset for message in taken]
    finally:
        raw.close()
    assert found == list(range(count))


def test_an_empty_range_is_an_error_that_names_the_range(made: Any) -> None:
    produce(made.config, 3)
    result = RUNNER.invoke(
        replay.app, ["--config", str(made.path), "--from", "2001-01-01T00:00:00", "--to", "2001-01-02T00:00:00"]
    )
    assert isinstance(result.exception, replay.NothingToReplay)
    assert "2001-01-01" in str(result.exception)


def test_a_time_that_is_none_is_refused(made: Any) -> None:
    result = RUNNER.invoke(replay.app, ["--config", str(made.path), "--from", "yesterday"])
    assert result.exit_code == 2
