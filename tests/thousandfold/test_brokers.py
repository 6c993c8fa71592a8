import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from state import kafka_settings, kafka_topics
from thousandfold import brokers

Make = Callable[..., Any]


def test_a_configured_bootstrap_wins_over_everything() -> None:
    with brokers.chosen("10.0.0.1:9092", environment={"KAFKA_HOME": "/nowhere"}) as broker:
        assert (broker.name, broker.bootstrap, broker.pid) == (brokers.EXTERNAL, "10.0.0.1:9092", None)


def test_a_broken_kafka_home_is_an_error_and_not_another_broker(tmp_path: pathlib.Path) -> None:
    with (
        pytest.raises(brokers.BrokerFailed, match=r"kafka-storage\.sh is not there"),
        brokers.chosen(None, environment={"KAFKA_HOME": str(tmp_path)}),
    ):
        pass
    assert brokers.KAFKA not in brokers.available({"KAFKA_HOME": str(tmp_path)})


def test_a_kafka_home_without_java_says_so(tmp_path: pathlib.Path) -> None:
    (tmp_path / "bin").mkdir()
    for script in ("kafka-storage.sh", "kafka-server-start.sh"):
        (tmp_path / "bin" / script).touch()
    environment = {"KAFKA_HOME": str(tmp_path), "PATH": ""}
    with pytest.raises(brokers.BrokerFailed, match="no java"), brokers.chosen(None, environment=environment):
        pass


def test_without_kafka_home_the_embedded_broker_is_chosen_or_named() -> None:
    if brokers.EMBEDDED in brokers.available({}):
        with brokers.chosen(None, environment={}) as broker:
            assert "development only" in broker.label
    else:
        with pytest.raises(brokers.BrokerFailed, match=r"thousandfold\[embedded\]"), brokers.chosen(None, environment={}):
            pass


def test_a_broker_that_cannot_start_reports_its_log(tmp_path: pathlib.Path) -> None:
    argv = (sys.executable, "-c", "print('the reason'); raise SystemExit(3)")
    broker = brokers.Broker(brokers.EMBEDDED, "127.0.0.1:1", argv, tmp_path)
    with pytest.raises(brokers.BrokerFailed, match=r"ended with code 3:\nthe reason"):
        broker.start()


@pytest.mark.parametrize("name", brokers.available())
def test_what_a_stopped_broker_acknowledged_is_there_after_a_kill_and_a_restart(
    name: str, tmp_path: pathlib.Path, make_config: Make
) -> None:
    with brokers.running(name, tmp_path) as broker:
        config = make_config(kafka={"bootstrap": broker.bootstrap}).config
        kafka_topics.create(config, keep_for_ever=broker.keep_for_ever)
        producer = Producer(kafka_settings.producer(config))
        producer.produce(config.topics.plan, b"kept", timestamp=1_000)
        assert producer.flush(10) == 0
        if name == brokers.EMBEDDED:
            # It writes its file about once a second; before that a kill may lose what it acknowledged.
            time.sleep(3)
        old = broker.pid
        broker.kill()
        assert broker.pid is None
        broker.start()
        assert broker.pid != old
        consumer = Consumer(kafka_settings.consumer(config))
        consumer.assign([TopicPartition(config.topics.plan, 0, 0)])
        message = consumer.poll(15)
        assert message is not None
        assert message.value() == b"kept"
        consumer.close()
    assert broker.pid is None
    assert not any(child.is_running() for child in psutil.Process().children() if child.pid == old)
    assert [p for p in tmp_path.iterdir() if p.name.startswith("thousandfold-")] == []


def test_a_broker_ends_when_the_process_that_started_it_is_killed(tmp_path: pathlib.Path) -> None:
    [*_, name] = brokers.available()
    code = (
        "import sys, time\nfrom thousandfold import brokers\n"
        f"with brokers.running({name!r}, __import__('pathlib').Path(sys.argv[1])) as b:\n"
        "    print(b.pid, flush=True); time.sleep(60)\n"
    )
    root = pathlib.Path(brokers.__file__).parent.parent
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=root) as starter:
        assert starter.stdout is not None
        server = psutil.Process(int(starter.stdout.readline()))
        starter.kill()
    psutil.wait_procs([server], timeout=10)
    assert not server.is_running() or server.status() == psutil.STATUS_ZOMBIE


def test_the_embedded_broker_is_full_at_its_cap(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broker = brokers.Broker(brokers.EMBEDDED, "127.0.0.1:1", directory=tmp_path)
    (tmp_path / "data").write_bytes(b"x" * 100)
    assert not broker.full()
    monkeypatch.setattr(brokers, "EMBEDDED_CAP_BYTES", 99)
    assert broker.full()
