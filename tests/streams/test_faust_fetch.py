"""What our changes to Faust keep from being lost in a rebalance."""

import asyncio
from collections.abc import Callable
from typing import Any

import aiokafka
import faust
import faust.streams
import faust.transport.consumer
import faust.transport.drivers.aiokafka
import pytest
from faust.types import TP, ConsumerMessage

from streams import faust_fetch


def test_a_worker_that_installed_them_reads_by_the_rewinding_consumer_and_acknowledges_what_was_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver: Any = faust.transport.drivers.aiokafka
    consumer: Any = faust.transport.consumer.Consumer
    # Set to what they are, so that they are put back.
    changed = ((consumer, "wait_first"), (consumer, "ack"), (driver, "aiokafka"), (driver.Consumer, "RebalanceListener"))
    for owner, name in changed:
        monkeypatch.setattr(owner, name, getattr(owner, name))
    faust_fetch.install(fetch_wait_ms=20)

    async def made() -> tuple[type, int]:
        reader = driver.aiokafka.AIOKafkaConsumer(bootstrap_servers="127.0.0.1:1", fetch_max_wait_ms=500)
        await reader.stop()
        return type(reader), reader._fetch_max_wait_ms

    assert asyncio.run(made()) == (faust_fetch.RewindingConsumer, 20)
    assert driver.Consumer.ack is faust_fetch.ack_taken
    assert driver.Consumer.RebalanceListener is faust_fetch.NumberedAssignments


@pytest.mark.parametrize(("committed", "first"), [({}, [0, 0]), ({0: 0}, [0, 0]), ({1: 2}, [0, 2])])
def test_stepping_back_to_committed_offsets_rewinds_partitions_that_have_none(
    deployed: Callable[..., Any], kafka_of: Callable[..., Any], committed: dict[int, int], first: list[int]
) -> None:
    config, _ = deployed(kafka={"partitions": 2})
    kafka = kafka_of(config)
    for i in range(40):
        kafka.raw(config.topics.impressions, b"%d" % i, f"user-{i}")
    kafka.flush()
    at = [aiokafka.TopicPartition(config.topics.impressions, p) for p in range(2)]

    async def taken(consumer: Any) -> list[int]:
        """The first offset that is read of either partition."""
        found: dict[int, int] = {}
        while len(found) < 2:
            for tp, records in (await consumer.getmany(timeout_ms=200)).items():
                found.setdefault(tp.partition, records[0].offset)
        return [found[p] for p in range(2)]

    async def stepped_back() -> list[int]:
        consumer = faust_fetch.RewindingConsumer(
            bootstrap_servers=config.kafka.bootstrap, group_id=config.topics.impressions, auto_offset_reset="earliest",
            enable_auto_commit=False,
        )  # fmt: skip
        consumer.assign(at)
        await consumer.start()
        try:
            assert await taken(consumer) == [0, 0]
            if committed:
                await consumer.commit({at[p]: offset for p, offset in committed.items()})
            assert await consumer.seek_to_committed() == {tp: committed.get(tp.partition) for tp in at}
            return await taken(consumer)
        finally:
            await consumer.stop()

    assert asyncio.run(asyncio.wait_for(stepped_back(), 30)) == first


def test_a_message_that_faust_skips_is_not_acknowledged(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faust.transport.consumer.Consumer, "ack", faust_fetch.ack_taken)
    # The compiled iterator does not acknowledge them; installations without it do.
    monkeypatch.setattr(faust.streams, "_CStreamIterator", None)
    tp, generation = TP("enriched", 0), 7

    async def acknowledged() -> tuple[int, list[int]]:
        app = faust.App(
            "tested", broker="kafka://127.0.0.1:1", datadir=tmp_path, web_enabled=False, loop=asyncio.get_running_loop()
        )
        app.topics.acking_topics.add("enriched")
        app.consumer_generation_id = generation
        app.flow_control.resume()
        consumer: Any = app.consumer
        topic = app.topic("enriched", key_serializer="raw", value_serializer="raw")
        stream: Any = topic.stream()
        stream = stream.noack()
        for offset, number in ((5, faust_fetch.UNASSIGNED), (6, generation)):
            message = ConsumerMessage("enriched", 0, offset, 0.0, 0, [], None, b"", None, 0, 0, tp=tp, generation_id=number)
            message.incref()
            await stream.channel.put(await topic.decode(message))
        events = stream.events()
        event = await anext(events)
        event.message.ack(consumer)
        await events.aclose()
        await stream.stop()
        consumer._thread.thread_loop.close()
        return event.message.offset, list(consumer._acked[tp])

    assert asyncio.run(acknowledged()) == (6, [6])
