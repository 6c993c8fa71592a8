import pathlib
import re
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from typer.testing import CliRunner

from state import dead_letters as contract
from state import kafka_settings
from state.config import Config
from thousandfold import dead_letters

Make = Callable[..., Any]
BROKEN = b'{"request_id": "r1", "ts_ms": '
PACKED = b"\x81\xa1a\x01"


def letter(config: Config, reason: str, partition: int = 2, offset: int = 17) -> contract.Letter:
    return contract.Letter(reason, "what is wrong", "enrich", config.topics.clicks, partition, offset, 1_700_000_000_123)


def put(config: Config, *rows: tuple[bytes | None, bytes, contract.Letter | None]) -> None:
    producer = Producer(kafka_settings.producer(config))
    for key, value, why in rows:
        producer.produce(config.topics.dead_letters, value, key=key, headers=[*contract.headers(why)] if why else None)
    assert producer.flush(20) == 0


def run(path: pathlib.Path, *arguments: str) -> str:
    result = CliRunner().invoke(dead_letters.app, [*arguments, "--config", str(path)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def messages(config: Config, topic: str, partition: int) -> list[Any]:
    consumer = Consumer(kafka_settings.consumer(config))
    consumer.assign([TopicPartition(topic, partition, 0)])
    _, end = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)
    found = [consumer.poll(10) for _ in range(end)]
    consumer.close()
    return found


@pytest.fixture
def filled(deployed: Make) -> Any:
    made = deployed()
    config = made.config
    put(
        config,
        (b"u1", BROKEN, letter(config, "malformed")),
        (b"u2", PACKED, letter(config, "orphan", partition=1)),
        (None, b"\xff\xfe", letter(config, "malformed", partition=0)),
    )
    return made


def test_ls_counts_all_and_shows_the_newest(filled: Any) -> None:
    output = run(filled.path, "ls", "--limit", "1")
    assert re.search(r"^ +2  enrich: malformed$", output, re.MULTILINE)
    assert re.search(r"^ +1  enrich: orphan$", output, re.MULTILINE)
    assert output.count("what is wrong") == 1
    assert "3 dead letters" in output


def test_ls_by_reason_shows_where_each_came_from(filled: Any) -> None:
    output = run(filled.path, "ls", "--reason", "orphan")
    assert f"{filled.config.topics.clicks}[1]@17" in output
    assert "2023-11-14T22:13:20+00:00" in output
    assert "malformed" not in output


def test_an_empty_topic_lists_as_empty(deployed: Make) -> None:
    assert run(deployed().path, "ls").startswith("0 dead letters")


def test_show_prints_why_and_the_content_readably(filled: Any) -> None:
    output = run(filled.path, "show", "1")
    assert "reason  orphan" in output
    assert '"a": 1' in output
    assert "request_id" in run(filled.path, "show", "0")


def test_show_raw_prints_the_very_bytes(filled: Any) -> None:
    result = CliRunner().invoke(dead_letters.app, ["show", "2", "--raw", "--config", str(filled.path)])
    assert result.stdout_bytes == b"\xff\xfe"


def test_show_of_an_offset_that_is_not_there_says_how_to_list(filled: Any) -> None:
    with pytest.raises(dead_letters.DeadLettersError, match=r"no dead letter at offset 9 .* dlq ls"):
        run(filled.path, "show", "9")


def test_where_nothing_is_to_be_read_the_consumer_is_sent_nowhere(filled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []

    class Watched(Consumer):
        def assign(self, partitions: list[TopicPartition]) -> None:
            sent.extend(at.offset for at in partitions)
            super().assign(partitions)

    monkeypatch.setattr(dead_letters, "Consumer", Watched)
    assert list(dead_letters.read(filled.config, first=9)) == []
    assert sent == []
    assert len(list(dead_letters.read(filled.config, first=1))) == 2
    assert sent == [1]


def test_requeue_sends_the_original_key_and_bytes_to_where_they_came_from(filled: Any) -> None:
    output = run(filled.path, "requeue", "0", "1")
    assert "requeued 2" in output
    [first] = messages(filled.config, filled.config.topics.clicks, 2)
    [second] = messages(filled.config, filled.config.topics.clicks, 1)
    assert (first.key(), first.value()) == (b"u1", BROKEN)
    assert (second.key(), second.value()) == (b"u2", PACKED)
    assert second.headers() == [(dead_letters.REQUEUED, b"1")]
    assert messages(filled.config, filled.config.topics.clicks, 0) == []


def test_requeue_by_reason_and_of_everything(filled: Any) -> None:
    assert "requeued 2" in run(filled.path, "requeue", "--reason", "malformed")
    assert "requeued 2" in run(filled.path, "requeue", "--all", "--from", "1")


@pytest.mark.parametrize("arguments", [(), ("0", "77")])
def test_requeue_of_nothing_named_or_of_a_missing_letter_sends_nothing(filled: Any, arguments: tuple[str, ...]) -> None:
    with pytest.raises(dead_letters.DeadLettersError, match=r"say which letters|no such dead letter: 77; nothing was sent"):
        run(filled.path, "requeue", *arguments)
    assert messages(filled.config, filled.config.topics.clicks, 2) == []


def test_a_letter_that_does_not_say_where_it_came_from_holds_the_whole_requeue(filled: Any) -> None:
    put(filled.config, (b"k", b"v", None))
    with pytest.raises(dead_letters.DeadLettersError, match="letters 3 do not say"):
        run(filled.path, "requeue", "--all")
    assert messages(filled.config, filled.config.topics.clicks, 2) == []


def test_an_unreachable_broker_is_one_clear_line(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letters, "WAIT_S", 0.5)
    with pytest.raises(dead_letters.DeadLettersError, match=r"127\.0\.0\.1:1: .*thousandfold doctor"):
        run(make_config(kafka={"bootstrap": "127.0.0.1:1"}).path, "ls")


def test_long_content_is_cut_and_says_so() -> None:
    assert dead_letters.readable(b"x" * 10_000, limit=100).endswith("more characters; --raw prints all bytes")
