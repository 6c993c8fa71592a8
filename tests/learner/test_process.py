"""The learner as a process on real brokers: killed, restarted, fenced, stopped; every list is trained once."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from learner import kafka_input, kafka_output, rehearsal
from models import base, modes, scorer
from state import columns, config, control, disk_snapshots, ids, kafka_settings, kafka_topics, plan, snapshots, spec
from thousandfold import brokers, meta_cli

ROOT = pathlib.Path(__file__).parents[2]
PATIENCE_S = 180.0
LISTS = 8


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def deploy(broker: brokers.Broker, make_config: Callable[..., Any], **sections: Any) -> Any:
    learner = {"rows_per_step": 20, "fetch_messages": 4, "dedup_rows": 4096, "deadline_ms": 50, "metrics_port": free_port()}
    found = make_config(
        kafka={"bootstrap": broker.bootstrap, "partitions": 2}, learner=learner, embedding={"capacity": 4096},
        model={"scenario_features": ["scenario"], "personal_features": ["user", "item"]}, **sections,
    )  # fmt: skip
    kafka_topics.create(found.config, keep_for_ever=broker.keep_for_ever)
    return found


@pytest.fixture
def made(broker: brokers.Broker, make_config: Callable[..., Any]) -> Any:
    return deploy(broker, make_config)


@contextlib.contextmanager
def learner(made: Any, tmp_path: pathlib.Path) -> Iterator[subprocess.Popen[bytes]]:
    ready = tmp_path / "ready"
    ready.unlink(missing_ok=True)
    with (tmp_path / "learner.log").open("ab") as log:
        command = [sys.executable, "-m", "learner", "--config", str(made.path), "--ready-file", str(ready)]
        process = subprocess.Popen(command, cwd=ROOT, stderr=log, env=os.environ | {"PYTHONPATH": str(ROOT)})
        try:
            wait(lambda: ready.exists() or process.poll() is not None, tmp_path)
            assert process.poll() is None, (tmp_path / "learner.log").read_text()
            yield process
        finally:
            process.kill()
            process.wait()


def wait(condition: Callable[[], bool], tmp_path: pathlib.Path) -> None:
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until, (tmp_path / "learner.log").read_text()
        time.sleep(0.05)


def produce(settings: config.Config, first: int, last: int) -> None:
    producer = Producer(kafka_settings.producer(settings))
    for seed in range(first, last):
        message = rehearsal.message(settings, seed, seed=seed, lists=LISTS)
        producer.produce(settings.topics.episodes, message.value, partition=seed % 2)
    assert producer.flush(30) == 0


def everything(settings: config.Config, topic: str, partitions: int = 1) -> list[tuple[int, int, bytes]]:
    """All committed records of a topic, as (partition, offset, value)."""
    consumer = Consumer(kafka_settings.consumer(settings, **{"isolation.level": "read_committed", "enable.partition.eof": True}))
    consumer.assign([TopicPartition(topic, p, 0) for p in range(partitions)])
    found: list[tuple[int, int, bytes]] = []
    ended: set[int | None] = set()
    until = time.monotonic() + PATIENCE_S
    while len(ended) < partitions and time.monotonic() < until:
        for message in consumer.consume(1000, 0.2):
            if message.error() is None:
                found.append((int(message.partition() or 0), int(message.offset() or 0), message.value() or b""))
            else:
                ended.add(message.partition())
    consumer.close()
    return found


def records(settings: config.Config) -> list[plan.Record]:
    return [plan.decode(value) for _, _, value in everything(settings, settings.topics.plan)]


def metric(settings: config.Config, name: str) -> float:
    url = f"http://127.0.0.1:{settings.learner.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=5) as reply:
        lines = [line for line in reply.read().decode().splitlines() if line.startswith(name)]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def trained(settings: config.Config) -> list[tuple[int, int]]:
    """(partition, request) of every list that counts as trained, by the plan's rule."""
    consumed = plan.consumed(records(settings))
    assert not consumed.gaps
    topic, out = settings.topics.episodes, []
    for partition, offset, value in everything(settings, topic, settings.kafka.partitions):
        if any(a <= offset < b for a, b in consumed.ranges.get((topic, partition), [])):
            requests = columns.unpack(value)[1]["request"].tolist()
            places = [i for i in range(len(requests)) if (topic, partition, offset, i) not in consumed.skipped]
            out += [(partition, requests[i]) for i in places]
    return out


def test_a_learner_more_than_100_mb_behind_reads_on(made: Any) -> None:
    # The embedded broker sends all that a partition has left, and librdkafka accepts 100 MB at once by default.
    producer, size, count = Producer(kafka_settings.producer(made.config)), 4_000_000, 26
    for _ in range(count):
        producer.produce(made.config.topics.episodes, os.urandom(size), partition=0)
        producer.flush(PATIENCE_S)
    reader, found, until = kafka_input.KafkaInput(made.config), 0, time.monotonic() + PATIENCE_S
    try:
        reader.assign({})
        while found < count and time.monotonic() < until:
            found += len(reader.fetch(count, 1.0))
    finally:
        reader.close()
    assert found == count


def test_a_learner_killed_in_the_middle_trains_every_list_once(made: Any, tmp_path: pathlib.Path) -> None:
    settings = made.config
    produce(settings, 0, 30)
    with learner(made, tmp_path) as process:
        wait(lambda: metric(settings, "thousandfold_snapshot_step") > 0, tmp_path)
        produce(settings, 30, 60)
        process.kill()
    produce(settings, 50, 70)
    with learner(made, tmp_path) as process:
        wait(lambda: len(trained(settings)) == 70 * LISTS, tmp_path)
        wait(lambda: metric(settings, "thousandfold_duplicates_total") > 0, tmp_path)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    found = trained(settings)
    assert len(found) == len(set(found)) == 70 * LISTS
    manifest = disk_snapshots.newest_intact(settings.snapshot.directory)
    assert manifest is not None
    assert manifest.offsets == (
        (settings.topics.control, 0, 0), (settings.topics.episodes, 0, 40), (settings.topics.episodes, 1, 40),
    )  # fmt: skip
    assert manifest.trained_rows == plan.consumed(records(settings)).rows
    announced = [snapshots.unpack(value) for _, _, value in everything(settings, settings.topics.snapshots)]
    assert announced[-1] == manifest


def test_a_second_learner_fences_the_first_which_exits_with_3(made: Any, tmp_path: pathlib.Path) -> None:
    settings = made.config
    produce(settings, 0, 4)
    with learner(made, tmp_path) as first:
        wait(lambda: len(records(settings)) > 0, tmp_path)
        port = f"metrics_port = {settings.learner.metrics_port}"
        made.path.write_text(made.path.read_text().replace(port, f"metrics_port = {free_port()}"))
        with learner(made, tmp_path):
            produce(settings, 4, 8)
            assert first.wait(PATIENCE_S) == 3
            wait(lambda: len(trained(settings)) == 8 * LISTS, tmp_path)
    assert len(trained(settings)) == len(set(trained(settings)))


def test_a_message_of_another_spec_reaches_dead_letters_and_learning_goes_on(made: Any, tmp_path: pathlib.Path) -> None:
    settings = made.config
    producer = Producer(kafka_settings.producer(settings))
    producer.produce(settings.topics.episodes, b"junk", partition=0)
    assert producer.flush(30) == 0
    produce(settings, 0, 4)
    with learner(made, tmp_path):
        wait(lambda: metric(settings, "thousandfold_dead_letters_total") == 1, tmp_path)
        wait(lambda: plan.consumed(records(settings)).rows > 0, tmp_path)
    assert [value for _, _, value in everything(settings, settings.topics.dead_letters)] == [b"junk"]


def switch(settings: config.Config, mode: control.Mode, scenario: str = control.EVERY) -> int:
    return meta_cli.write(settings, control.Switch(scenario=scenario, mode=mode, wall_ms=time.time_ns() // 1_000_000))


def switched(settings: config.Config) -> list[plan.Record]:
    """The records that count and switch something."""
    kept, _ = plan.effective(records(settings))
    return [record for record in kept if record.switches]


def served(settings: config.Config, scenario: str) -> tuple[int, int]:
    """The mode of a scenario in the newest snapshot, and how many of 3 support rows serving's scorer uses with it."""
    manifest = disk_snapshots.newest_intact(settings.snapshot.directory)
    assert manifest is not None
    model = scorer.Scorer(settings, disk_snapshots.read(settings.snapshot.directory, manifest, snapshots.SERVING))
    some = np.ones((3, spec.id_width(settings.features)), np.uint64)
    numbers = np.zeros((3, len(spec.number_names(settings.features))), np.float32)
    support = base.Support(some, numbers, np.ones((3, 1), np.float32))
    return model.modes.code(ids.of(scenario)), model.score(some, numbers, ids.of(scenario), support).adapted_on


def test_switches_are_planned_served_and_outlive_a_kill(
    broker: brokers.Broker, make_config: Callable[..., Any], tmp_path: pathlib.Path
) -> None:
    made = deploy(broker, make_config, snapshot={"every_s": 0.5})
    settings = made.config
    produce(settings, 0, 10)
    with learner(made, tmp_path) as process:
        wait(lambda: len(trained(settings)) == 10 * LISTS, tmp_path)
        first = switch(settings, "off", "odd")
        wait(lambda: len(switched(settings)) == 1, tmp_path)
        [record] = switched(settings)
        assert record.switches == (("odd", "off"),)
        assert record.ranges == ((settings.topics.control, 0, first, first + 1),)
        wait(lambda: served(settings, "odd") == (modes.OFF, 0), tmp_path)
        assert served(settings, "even") == (modes.ON, 3)
        wait(lambda: metric(settings, 'thousandfold_meta_mode{mode="off",scenario="odd"}') == 1, tmp_path)
        process.kill()
    producer = Producer(kafka_settings.producer(settings))
    producer.produce(settings.topics.control, b"junk", key=b"odd", partition=0)  # without a key the broker would refuse it
    assert producer.flush(30) == 0
    last = switch(settings, "fine_tune_only")
    produce(settings, 10, 20)
    with learner(made, tmp_path) as process:
        wait(lambda: len(trained(settings)) == 20 * LISTS, tmp_path)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    again = switched(settings)[-1]
    assert again.switches == (("*", "fine_tune_only"),)
    assert again.ranges[0] == (settings.topics.control, 0, first + 1, last + 1) == (settings.topics.control, 0, 1, 3)
    restarted = [r for r in plan.effective(records(settings))[0] if r.incarnation == again.incarnation]
    assert restarted[0] == again, "before the first step after the restart"
    assert (served(settings, "odd"), served(settings, "even")) == ((modes.OFF, 0), (modes.FINE_TUNE_ONLY, 3))
    assert [value for _, _, value in everything(settings, settings.topics.dead_letters)] == [b"junk"]


def test_a_decision_stands_in_control_beside_its_plan_record_and_leaves_no_lag(
    broker: brokers.Broker, make_config: Callable[..., Any]
) -> None:
    settings = deploy(broker, make_config).config
    output = kafka_output.KafkaOutput(settings, lambda: False)
    output.open()
    decision = control.Decision(scenario="odd", on=True, first_step=1, sequence=0, wall_ms=0)
    record = plan.Record(
        sequence=0, incarnation=1, first_step=1, last_step=0, wall_ms=0, ranges=(), skipped=(), rows=0, seed=0, threads=1,
        code="", spec="", decisions=(("odd", ids.of("odd"), True),),
    )  # fmt: skip
    output.write(plan.encode(record), [], [control.encode_decision(decision)])
    assert records(settings) == [record]
    source = kafka_input.KafkaInput(settings)
    try:
        source.assign({})
        [message] = source.fetch(10, 0.5)
        assert control.is_decision(message.key)
        assert control.decode_decision(message.value) == decision
        assert source.lag()[settings.topics.control, 0] == 0
    finally:
        source.close()


def test_missing_topics_end_it_with_2_and_what_to_run(broker: brokers.Broker, make_config: Callable[..., Any]) -> None:
    made = make_config(kafka={"bootstrap": broker.bootstrap})
    command = [sys.executable, "-m", "learner", "--config", str(made.path)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, check=False, timeout=120
    )
    assert done.returncode == 2
    assert b"topics create" in done.stderr


def test_a_broken_configuration_ends_it_with_2(tmp_path: pathlib.Path) -> None:
    (tmp_path / "bad.toml").write_text("[learner]\nthread = 1\n")
    command = [sys.executable, "-m", "learner", "--config", str(tmp_path / "bad.toml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, timeout=120)
    assert done.returncode == 2
    assert b"unknown key" in done.stderr


@pytest.mark.skipif(
    brokers.KAFKA not in brokers.available(), reason="needs a broker that keeps what it acknowledged: set KAFKA_HOME"
)
def test_a_broker_killed_and_restarted_costs_nothing_but_time(make_config: Callable[..., Any], tmp_path: pathlib.Path) -> None:
    with brokers.running(brokers.KAFKA) as broker:
        small = {"rows_per_step": 20, "fetch_messages": 4, "deadline_ms": 50, "metrics_port": free_port()}
        model = {"scenario_features": ["scenario"], "personal_features": ["user", "item"]}
        made = make_config(kafka={"bootstrap": broker.bootstrap, "partitions": 2}, learner=small, model=model)
        kafka_topics.create(made.config)
        produce(made.config, 0, 30)
        with learner(made, tmp_path) as process:
            wait(lambda: metric(made.config, "thousandfold_snapshot_step") > 0, tmp_path)
            produce(made.config, 30, 40)
            broker.kill()
            broker.start()
            produce(made.config, 40, 50)
            wait(lambda: len(trained(made.config)) == 50 * LISTS, tmp_path)
            assert len(set(trained(made.config))) == 50 * LISTS
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == 0
