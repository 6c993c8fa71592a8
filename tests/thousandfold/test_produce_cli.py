import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition
from typer.testing import CliRunner

from state import config as configuration
from state import ids, kafka_settings, kafka_topics
from thousandfold import produce_cli
from thousandfold.brokers import Broker

Make = Callable[..., Any]


def consumed(config: configuration.Config, topic: str, expected: int) -> list[tuple[int, dict[str, Any]]]:
    """(partition, message) of everything in a topic; waits until `expected` messages have come."""
    consumer = Consumer(kafka_settings.consumer(config))
    consumer.assign([TopicPartition(topic, p, 0) for p in range(config.kafka.partitions)])
    found: list[tuple[int, dict[str, Any]]] = []
    deadline = time.monotonic() + 20
    while len(found) < expected and time.monotonic() < deadline:
        for message in consumer.consume(1000, 0.5):
            found.append((message.partition() or 0, json.loads(message.value() or b"")))
    consumer.close()
    return found


def start(config_path: pathlib.Path, *options: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "thousandfold", "produce", "simulate", "--config", str(config_path), *options]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": "."})


def test_every_list_arrives_once_in_the_partition_of_its_user(broker: Broker, make_config: Make) -> None:
    made = make_config(kafka={"bootstrap": broker.bootstrap, "partitions": 3})
    kafka_topics.create(made.config, keep_for_ever=broker.keep_for_ever)
    with start(made.path, "--limit", "200", "--rate", "20000", "--delay-median", "0.01", "--delay-p90", "0.1") as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    summary = json.loads(out.splitlines()[-1])
    assert summary["lists"] == 200
    assert summary["failed"] == 0
    lists = consumed(made.config, made.config.topics.impressions, 200 + summary["repeated"])
    assert len({m["request_id"] for _, m in lists}) == 200
    assert all(partition == ids.of(m["user_id"]) % 3 for partition, m in lists)
    assert sum(len(m["items"]) for m in {m["request_id"]: m for _, m in lists}.values()) == summary["rows"]
    actions = consumed(made.config, made.config.topics.clicks, summary["actions"])
    assert len(actions) >= summary["actions"] > 0


def test_sigterm_delivers_what_is_in_flight_and_prints_the_summary(broker: Broker, make_config: Make) -> None:
    made = make_config(kafka={"bootstrap": broker.bootstrap, "partitions": 2})
    kafka_topics.create(made.config, keep_for_ever=broker.keep_for_ever)
    with start(made.path, "--rate", "2000") as process:
        arrived = consumed(made.config, made.config.topics.impressions, 20)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert len(arrived) >= 20
    assert process.returncode == 0, err
    summary = json.loads(out.splitlines()[-1])
    assert summary["failed"] == 0
    sent = summary["lists"] + summary["repeated"]
    assert len(consumed(made.config, made.config.topics.impressions, summary["lists"])) <= sent
    assert len({m["request_id"] for _, m in consumed(made.config, made.config.topics.impressions, sent)}) == summary["lists"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--speed", "2", "--rate", "5"], "--speed or --rate, not both"),
        (["--delay-median", "5", "--delay-p90", "1"], "--delay-p90 1 is below --delay-median 5"),
        (["--for", "soon"], "give a time such as 90s"),
    ],
)
def test_contradictory_options_are_refused(tmp_path: pathlib.Path, options: list[str], message: str) -> None:
    file = tmp_path / "t.toml"
    file.write_text("")
    result = CliRunner().invoke(produce_cli.app, ["simulate", "--config", str(file), *options])
    assert isinstance(result.exception, configuration.Refused)
    assert message in str(result.exception)


def test_unknown_settings_of_the_simulator_are_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "t.toml").write_text("")
    (tmp_path / "s.toml").write_text("userz = 3\n")
    options = ["simulate", "--config", str(tmp_path / "t.toml"), "--settings", str(tmp_path / "s.toml")]
    result = CliRunner().invoke(produce_cli.app, options)
    assert isinstance(result.exception, configuration.Refused)
    assert "userz" in str(result.exception)
