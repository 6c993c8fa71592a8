"""`thousandfold meta`: switch meta-learning while the learner runs, and see what was asked for and what is in force."""

import datetime as dt
import pathlib
import sys
import time
from typing import Annotated, NamedTuple

import typer
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from rich.console import Console
from rich.table import Table

from state import config as configuration
from state import control, kafka_settings, kafka_topics
from state.config import Config, Refused
from thousandfold import live

app = typer.Typer(help="Switch meta-learning of the running learner, per scenario.", no_args_is_help=True)
File = Annotated[pathlib.Path, typer.Option("--config", help="the configuration file")]
DEFAULT_FILE = pathlib.Path("thousandfold.toml")
WAIT_S = 10.0


class MetaFailed(Refused, RuntimeError):
    """A switch could not be written, or the switches not be read; the message says why and what to do."""


class Asked(NamedTuple):
    """The newest switch of a scenario, and where it lies in `control`."""

    switch: control.Switch
    offset: int


@app.command("set")
def set_mode(
    mode: Annotated[control.Mode, typer.Argument(help="fine_tune_only: without meta-training; auto: on while it gains")],
    scenario: Annotated[str, typer.Option(help="one scenario; without it, all that have no mode of their own")] = control.EVERY,
    config: File = DEFAULT_FILE,
) -> None:
    """Switch meta-learning; the learner obeys before its next step, serving with the next snapshot."""
    if not scenario:
        raise MetaFailed("--scenario is empty; name one, or leave it away to switch all that have no mode of their own")
    loaded = configuration.load(config)
    known = loaded.scenarios.known
    if scenario != control.EVERY and known and scenario not in known:
        print(f"note: {scenario} is none of scenarios.known ({', '.join(known)})", file=sys.stderr)
    offset = write(loaded, control.Switch(scenario=scenario, mode=mode, wall_ms=time.time_ns() // 1_000_000))
    whom = "every scenario without a mode of its own" if scenario == control.EVERY else scenario
    print(f"{whom}: {mode} (offset {offset} of {loaded.topics.control}); see: thousandfold meta show")


@app.command()
def show(
    config: File = DEFAULT_FILE,
    url: Annotated[str, typer.Option(help="the learner's metrics, if they are not on this machine")] = "",
) -> None:
    """List the switches that were asked for, and the modes that the learner says are in force."""
    loaded = configuration.load(config)
    asked = read(loaded)
    port = loaded.learner.metrics_port
    where = url or (f"http://127.0.0.1:{port}/metrics" if port else "")
    samples, silent = live.scrape({"learner": where}) if where else ({}, ("learner",))
    Console().print(table(asked, live.in_force(samples)))
    if silent:
        print(f"the learner does not answer at {where or 'learner.metrics_port = 0'}; give --url", file=sys.stderr)


def write(config: Config, switch: control.Switch) -> int:
    """Write a switch; durable when it returns. Its offset in `control`.

    Raises:
        kafka_topics.TopicsWrong, kafka_topics.BrokerUnreachable: as `kafka_topics.require`.
        MetaFailed: the broker did not take it.
    """
    kafka_topics.require(config)
    answers: list[KafkaError | int | None] = []

    def delivered(error: KafkaError | None, message: Message) -> None:
        answers.append(error or message.offset())

    key, value = control.encode(switch)
    producer = Producer(kafka_settings.producer(config, **{"log_level": 0, "message.timeout.ms": int(WAIT_S * 1000)}))
    producer.produce(config.topics.control, value, key=key, partition=0, on_delivery=delivered)
    producer.flush(2 * WAIT_S)
    [answer] = answers or [None]
    if not isinstance(answer, int):
        problem = answer.str() if answer is not None else "no answer in time"
        raise MetaFailed(f"{config.topics.control}: the switch was not written: {problem}; run: thousandfold doctor")
    return answer


def read(config: Config) -> dict[str, Asked]:
    """The newest switch of every scenario, in the order in which they were asked for; what is malformed is passed over.

    Raises:
        kafka_topics.TopicsWrong, kafka_topics.BrokerUnreachable: as `kafka_topics.require`.
        MetaFailed: the topic could not be read to its end.
    """
    kafka_topics.require(config)
    topic, found = config.topics.control, dict[str, Asked]()
    # Compaction leaves holes, so the end is what the broker says it is, not an offset that was counted to.
    consumer = Consumer(kafka_settings.consumer(config, **{"log_level": 0, "enable.partition.eof": True}))
    try:
        low, _ = consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=WAIT_S)
        consumer.assign([TopicPartition(topic, 0, low)])
        while True:
            message = consumer.poll(WAIT_S)
            error = message.error() if message is not None else None
            if error is not None and error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 - librdkafka's own code
                return dict(sorted(found.items(), key=lambda at: at[1].offset))
            if message is None or error is not None:
                problem = error.str() if error is not None else f"nothing came for {WAIT_S:g} s"
                raise MetaFailed(f"{topic}: it could not be read to its end: {problem}; run: thousandfold doctor")
            if control.is_decision(message.key()):
                continue
            try:
                switch = control.decode(message.value() or b"")
            except control.Malformed:
                continue
            found[switch.scenario] = Asked(switch, int(message.offset() or 0))
    except KafkaException as error:
        raise MetaFailed(f"{topic}: {error.args[0].str()}; run: thousandfold doctor") from error
    finally:
        consumer.close()


def table(asked: dict[str, Asked], force: dict[str, str]) -> Table:
    """What was asked for, beside what is in force where the learner says so."""
    out = Table("scenario", "in force", "switched to", "at", "offset")
    for name in dict.fromkeys([control.EVERY, *force, *asked]):
        found = asked.get(name)
        when = dt.datetime.fromtimestamp(found.switch.wall_ms / 1000, dt.UTC).isoformat(timespec="seconds") if found else "-"
        mode, offset = (found.switch.mode, str(found.offset)) if found else ("-", "-")
        out.add_row(name, force.get(name, "?"), mode, when, offset)
    return out
