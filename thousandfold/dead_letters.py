"""`thousandfold dlq`: look at what nobody could use, and send it again once the cause is gone."""

import datetime as dt
import pathlib
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Annotated, NamedTuple

import msgspec
import typer
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from state import config as configuration
from state import dead_letters, kafka_settings
from state.config import Config, Refused

app = typer.Typer(help="List, show and requeue dead letters.", no_args_is_help=True)
File = Annotated[pathlib.Path, typer.Option("--config", help="the configuration file")]
Reason = Annotated[str | None, typer.Option(help=f"only this reason: {', '.join(dead_letters.REASONS)}")]
First = Annotated[int, typer.Option("--from", min=0, help="only letters at this offset or later")]
DEFAULT_FILE = pathlib.Path("thousandfold.toml")
REQUEUED = "requeued_from"
WAIT_S = 10.0


class DeadLettersError(Refused, RuntimeError):
    """The letters could not be read or sent; the message says which and why."""


class Kept(NamedTuple):
    """A dead letter as it lies in its topic."""

    offset: int
    key: bytes | None
    value: bytes
    letter: dead_letters.Letter


@app.command("ls")
def list_letters(
    config: File = DEFAULT_FILE,
    reason: Reason = None,
    first: First = 0,
    limit: Annotated[int, typer.Option(min=1, help="newest letters shown; the counts are of all")] = 50,
) -> None:
    """Count dead letters by stage and reason, and list the newest."""
    loaded = configuration.load(config)
    kept = list(read(loaded, reason=reason, first=first))
    for (stage, why), count in sorted(Counter((k.letter.stage, k.letter.reason) for k in kept).items()):
        print(f"{count:>8}  {stage}: {why}")
    for each in kept[-limit:]:
        print(line(each))
    print(f"{len(kept)} dead letters in {loaded.topics.dead_letters}")


@app.command()
def show(
    offset: Annotated[int, typer.Argument(min=0, help="as printed by ls")],
    config: File = DEFAULT_FILE,
    raw: Annotated[bool, typer.Option("--raw", help="the original bytes alone, to standard output")] = False,
) -> None:
    """Show one dead letter: why, where from, and the original bytes."""
    loaded = configuration.load(config)
    kept = next(read(loaded, first=offset), None)
    if kept is None or kept.offset != offset:
        raise DeadLettersError(f"no dead letter at offset {offset} in {loaded.topics.dead_letters}; see: thousandfold dlq ls")
    if raw:
        sys.stdout.buffer.write(kept.value)
        sys.stdout.buffer.flush()
        return
    for name, value in kept.letter._asdict().items():
        print(f"{name:>16}  {value}")
    print(f"{'at':>16}  {_time(kept.letter.at_ms)}\n{'key':>16}  {kept.key!r}\n{'bytes':>16}  {len(kept.value)}\n")
    print(readable(kept.value))


@app.command()
def requeue(
    offsets: Annotated[list[int] | None, typer.Argument(min=0, help="as printed by ls")] = None,
    config: File = DEFAULT_FILE,
    reason: Reason = None,
    first: First = 0,
    everything: Annotated[bool, typer.Option("--all", help="every letter")] = False,
) -> None:
    """Send original keys and bytes to the topic and partition they came from, by offset, by reason or all.

    The letters stay where they are. What is sent twice is counted once downstream, and what is still wrong comes back.
    """
    if not (offsets or reason or everything):
        raise DeadLettersError("say which letters: offsets as printed by `thousandfold dlq ls`, or --reason REASON, or --all")
    loaded = configuration.load(config)
    chosen = [k for k in read(loaded, reason=reason, first=first) if not offsets or k.offset in offsets]
    missing = sorted(set(offsets or ()) - {k.offset for k in chosen})
    if missing:
        raise DeadLettersError(f"no such dead letter: {', '.join(map(str, missing))}; nothing was sent; see: thousandfold dlq ls")
    for topic, count in sorted(send_again(loaded, chosen).items()):
        print(f"sent {count} to {topic}")
    print(f"requeued {len(chosen)} of {loaded.topics.dead_letters}")


def read(config: Config, *, reason: str | None = None, first: int = 0) -> Iterator[Kept]:
    """Dead letters from offset `first` up to the end as it is now, oldest first.

    Raises:
        DeadLettersError: the topic cannot be read to its end.
    """
    topic = config.topics.dead_letters
    consumer = Consumer(kafka_settings.consumer(config, log_level=0))
    try:
        start, end = consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=WAIT_S)
        at = max(first, start)
        if at < end:
            # Never beyond the end: while librdkafka looks for an offset that is not there, close() may wait for ever.
            consumer.assign([TopicPartition(topic, 0, at)])
        while at < end:
            message = consumer.poll(WAIT_S)
            problem = f"nothing came for {WAIT_S:g} s" if message is None else message.error()
            if message is None or problem:
                raise DeadLettersError(f"{topic}: stopped at offset {at} of {end}: {problem}")
            kept = _kept(message)
            at = kept.offset + 1
            if reason is None or kept.letter.reason == reason:
                yield kept
    except KafkaException as error:
        detail = error.args[0].str()
        raise DeadLettersError(f"{topic} at {config.kafka.bootstrap}: {detail}; run: thousandfold doctor") from error
    finally:
        consumer.close()


def send_again(config: Config, letters: list[Kept]) -> Counter[str]:
    """Produce letters to where they came from, in order; how many went to each topic.

    Raises:
        DeadLettersError: a letter does not say where it came from (nothing is sent), or a broker refused one.
    """
    foreign = [k.offset for k in letters if not k.letter.origin_topic or k.letter.origin_partition < 0]
    if foreign:
        raise DeadLettersError(f"letters {', '.join(map(str, foreign))} do not say which topic they came from; nothing was sent")
    sent: Counter[str] = Counter()
    failed: list[str] = []
    producer = Producer(kafka_settings.producer(config, log_level=0))

    def delivered(error: KafkaError | None, message: Message) -> None:
        if error is not None:
            failed.append(f"{message.topic()}: {error.str()}")

    for kept in letters:
        producer.produce(
            kept.letter.origin_topic,
            kept.value,
            key=kept.key,
            partition=kept.letter.origin_partition,
            headers=[(REQUEUED, str(kept.offset).encode())],
            on_delivery=delivered,
        )
        sent[kept.letter.origin_topic] += 1
        producer.poll(0)
    left = producer.flush(WAIT_S)
    if failed or left:
        raise DeadLettersError(
            f"{len(failed) + left} of {len(letters)} were not sent: {'; '.join(failed) or 'no answer in time'}"
        )
    return sent


def line(kept: Kept) -> str:
    """One letter on one line."""
    why = kept.letter
    origin = f"{why.origin_topic}[{why.origin_partition}]@{why.origin_offset}"
    return f"{kept.offset:>8}  {_time(why.at_ms)}  {why.stage}: {why.reason}  {origin}  {len(kept.value)} bytes  {why.detail}"


def readable(value: bytes, limit: int = 4000) -> str:
    """The bytes as indented JSON when they are JSON or msgpack, else as text with escapes; cut at `limit` characters."""
    text = repr(value)
    for decode in (msgspec.json.decode, msgspec.msgpack.decode):
        try:
            text = msgspec.json.format(msgspec.json.encode(decode(value)), indent=2).decode()
            break
        except (msgspec.MsgspecError, UnicodeDecodeError, TypeError, ValueError):
            continue
    return text if len(text) <= limit else f"{text[:limit]}\n... {len(text) - limit} more characters; --raw prints all bytes"


def _kept(message: Message) -> Kept:
    key, value, headers, offset = message.key(), message.value(), message.headers(), message.offset()
    listed = headers.items() if isinstance(headers, dict) else headers or ()
    letter = dead_letters.read_headers((name, each.encode() if isinstance(each, str) else each) for name, each in listed)
    if offset is None:
        raise DeadLettersError("a message came without its offset")
    return Kept(offset, _bytes(key), _bytes(value) or b"", letter)


def _bytes(value: str | bytes | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value


def _time(at_ms: int) -> str:
    if at_ms < 0:
        return "-"
    return dt.datetime.fromtimestamp(at_ms / 1000, dt.UTC).isoformat(timespec="seconds")
