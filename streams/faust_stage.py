"""What the three stages share: micro-batches that are finished strictly in order, and the process around them."""

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, NamedTuple, NoReturn

import aiokafka
import faust
import msgspec

from state import config as configuration
from state import dead_letters, stores
from streams import event_time, prometheus_metrics

EXIT_DEFECT, EXIT_REFUSED = 1, 3
GAP_MS = 30_000
log = logging.getLogger("thousandfold.streams")
Delivery = asyncio.Future[Any]


class Batch(NamedTuple):
    """Work on its way: first every message is delivered, then `write` is done, then `messages` are acknowledged."""

    deliveries: list[Delivery]
    write: Callable[[], Awaitable[None]] | None
    messages: list[Any]


class Shell:
    """The process: what stages use to reach Kafka, the store, the clock and the metrics."""

    def __init__(
        self,
        config: configuration.Config,
        app: faust.App,
        producer: aiokafka.AIOKafkaProducer,
        store: stores.Store,
        metrics: prometheus_metrics.Metrics,
    ) -> None:
        self.config, self.app, self.store, self.metrics = config, app, store, metrics
        self._producer = producer
        self._taken: dict[tuple[str, int], int] = {}
        self._heard: dict[tuple[str, int], int] = {}
        self._sight = event_time.Sight(round(config.join.idle_timeout_s * 1000))
        self._tasks: set[asyncio.Task[Any]] = set()

    @staticmethod
    def now_ms() -> int:
        """Wall time since the epoch."""
        return time.time_ns() // 1_000_000

    async def send(self, topic: str, value: bytes, partition: int | None, **more: Any) -> Delivery:
        """Produce a message; what comes back is done when the brokers have it. Waits while the producer's buffer is full."""
        delivery: Delivery = await self._producer.send(topic, value, partition=partition, **more)
        return delivery

    async def send_dead_letter(self, letter: dead_letters.Letter, key: bytes | None, value: bytes) -> Delivery:
        """Put a message that cannot be used into dead-letters, and count it."""
        self.metrics.dead_letters.labels(letter.stage, letter.reason).inc()
        log.debug("dead letter: %s", letter)
        return await self.send(self.config.topics.dead_letters, value, None, key=key, headers=dead_letters.headers(letter))

    def took(self, message: Any) -> None:
        """A message was taken from its topic."""
        at = (message.topic, message.partition)
        self._taken[at], self._heard[at] = message.offset + 1, self.now_ms()

    def forget(self) -> None:
        """Partitions are assigned anew: every position is unknown."""
        self._taken.clear()
        self._heard.clear()
        self._sight.forget()

    async def locate(self, inputs: list[tuple[str, int]]) -> None:
        """Find out where reading starts in partitions that nothing was taken from yet."""
        consumer: Any = self.app.consumer
        at = [faust.types.TP(topic, partition) for topic, partition in inputs]
        earliest = await consumer.earliest_offsets(*at)
        for tp in at:
            committed = consumer._committed_offset.get(tp) or 0  # noqa: SLF001 -- as of the assignment: nothing was acknowledged since
            self._taken.setdefault((tp.topic, tp.partition), max(committed, earliest[tp]))
            self._heard.setdefault((tp.topic, tp.partition), self.now_ms())

    def is_caught_up(self, topic: str, partition: int, now: int) -> bool:
        """Whether all that the partition held at a recent fetch has been taken, and no outage of the brokers lies close behind.

        Offsets at the end of a partition may hold no message (a transaction's mark): one that all was fetched of and that gave
        nothing for `GAP_MS` counts as caught up.
        """
        consumer = self._consumer()
        at, tp = (topic, partition), aiokafka.TopicPartition(topic, partition)
        if at not in self._taken or tp not in consumer.assignment():
            return False
        state = consumer._subscription.subscription.assignment.state_value(tp)  # noqa: SLF001 -- its public reading waits
        fetched_ms = state.timestamp or 0
        in_sight = self._sight.holds(at, fetched_ms, now)
        fresh_ms = min(1000.0, max(100.0, self.config.join.lateness_s * 1000))
        if state.highwater is None or not in_sight or now - fetched_ms > fresh_ms:
            return False
        silent = state.has_valid_position and state.position >= state.highwater and now - self._heard[at] >= GAP_MS
        return self._taken[at] >= state.highwater or silent

    def show_lag(self) -> None:
        """Update the gauges of lag, for every partition that something was taken from."""
        for (topic, partition), taken in self._taken.items():
            end = self._end(topic, partition)
            if end is not None:
                self.metrics.lag.labels(topic, partition).set(max(0, end - taken))

    def _end(self, topic: str, partition: int) -> int | None:
        """The end of a partition at the last fetch; None before the first one or without an assignment."""
        consumer = self._consumer()
        at = aiokafka.TopicPartition(topic, partition)
        end: int | None = consumer.highwater(at) if at in consumer.assignment() else None
        return end

    def _consumer(self) -> Any:
        consumer: Any = self.app.consumer
        return consumer._thread._consumer  # noqa: SLF001 -- Faust itself does not say when it fetched last

    def run(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        """Run a task for the life of the process; an exception of it ends the process."""
        task = asyncio.get_running_loop().create_task(self.guard(coroutine), name=name)
        self._tasks.add(task)

    async def guard(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Faust would acknowledge the event of an agent that fails, and drop it; so nothing fails quietly here."""
        try:
            await coroutine
        except stores.Fenced as error:
            self.die(EXIT_REFUSED, f"fenced: {error}")
        except (stores.StoreUnavailable, stores.StoreRefused) as error:
            self.die(EXIT_REFUSED, str(error))
        except Exception:
            log.exception("a defect: this worker stops without acknowledging what it holds, a restart reads it again")
            self.die(EXIT_DEFECT, "stopped by a defect")

    @staticmethod
    def die(code: int, why: str) -> NoReturn:
        """End the process at once: what was not acknowledged is read again by the next owner of the partition."""
        log.critical("%s", why)
        logging.shutdown()
        os._exit(code)


class Stage:
    """Buffers events, processes them in micro-batches by size or time, and finishes batches strictly in order.

    A subclass says what a batch becomes (`process`), and drops its state when partitions change hands (`forget`).
    """

    name = ""

    def __init__(self, shell: Shell, most_events: int) -> None:
        self.shell, self.config = shell, shell.config
        self._most, self._within_s = most_events, shell.config.streams.batch_ms / 1000
        self._buffer: list[Any] = []
        self._since = 0.0
        self._turn = asyncio.Lock()
        self._room = asyncio.Semaphore(shell.config.streams.in_flight)
        self._batches: asyncio.Queue[Batch] = asyncio.Queue()

    async def process(self, events: list[Any]) -> None:
        """Turn events (sometimes none) into a batch and hand it to `finish`."""
        raise NotImplementedError

    def is_due(self) -> bool:
        """Whether `process` may have something to do without new events."""
        return False

    def forget(self) -> None:
        """Drop all that belongs to partitions."""

    async def settle(self) -> None:
        """Finish what is under way and drop what was not begun; the next owner reads that again."""
        async with self._turn:
            self._buffer.clear()
            await self.conclude()
            await self._batches.join()
            self.forget()

    async def conclude(self) -> None:
        """Write what was delivered and not written yet."""

    def is_stale(self, event: Any) -> bool:
        """Whether the event was fetched before the last rebalance: it is read again by whoever owns its partition now."""
        return bool(event.message.generation_id != self.shell.app.consumer_generation_id)

    async def feed(self, stream: Any) -> None:
        """Take the events of the stage's own topic."""
        async for event in stream.noack().events():
            if self.is_stale(event):
                continue
            self.shell.took(event.message)
            if not self._buffer:
                self._since = time.monotonic()
            self._buffer.append(event)
            if len(self._buffer) >= self._most:
                await self._flush()

    async def tick(self) -> None:
        """Flush a buffer that has waited long enough."""
        while True:
            await asyncio.sleep(self._within_s / 2)
            if time.monotonic() - self._since >= self._within_s if self._buffer else self.is_due():
                await self._flush()

    async def _flush(self) -> None:
        async with self._turn:
            events, self._buffer = self._buffer, []
            await self.process(events)

    async def finish(
        self, deliveries: list[Delivery], messages: list[Any], write: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """Queue a batch for finishing; waits while too many are under way."""
        await self._room.acquire()
        self._batches.put_nowait(Batch(deliveries, write, messages))

    async def finish_in_order(self) -> None:
        """Deliver, write, acknowledge: one batch after the other."""
        consumer = self.shell.app.consumer
        while True:
            batch = await self._batches.get()
            for delivery in batch.deliveries:
                await delivery
            if batch.write:
                await batch.write()
            for message in batch.messages:
                message.ack(consumer)
            self._room.release()
            self._batches.task_done()

    def count(self, **kinds: int) -> None:
        """Add to the events of this stage."""
        for kind, n in kinds.items():
            if n:
                self.shell.metrics.events.labels(self.name, kind).inc(n)

    async def reject(self, reason: str, detail: str, message: Any) -> Delivery:
        """Put an input message into dead-letters as it is."""
        origin = (message.topic, message.partition, message.offset, self.shell.now_ms())
        letter = dead_letters.Letter(reason, detail, self.name, *origin)
        return await self.shell.send_dead_letter(letter, message.key, message.value or b"")


def user_key(raw: bytes) -> bytes | None:
    """The key of a raw message, where it does not travel along: producers use the user's id."""
    try:
        found = msgspec.msgpack.decode(raw) if raw[:1] >= b"\x80" else msgspec.json.decode(raw)
        return str(found["user_id"]).encode()
    except (msgspec.DecodeError, KeyError, TypeError):
        return None
