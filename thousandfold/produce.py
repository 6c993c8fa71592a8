"""The load generator: events of a data set or of the simulator, re-stamped onto now and sent when they are due.

Event times are moved, since the streams refuse what is older than the retention: either all times between lists are divided by
a speed, or lists follow each other evenly at a rate. Delays of actions and disorder are never scaled.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
from confluent_kafka import KafkaError, Message, Producer

from state import ids, kafka_settings
from state.config import Config
from thousandfold.data import blocks, ml1m, packages, simulator

Clock = Callable[[], float]
Format = Literal["json", "msgpack"]
Source = Literal["ml1m", "simulate"]
FLUSH_S = 30.0
PROGRESS_S = 1.0


class Shown(msgspec.Struct):
    """One row of an impression message; `features` is encoded once per item."""

    item_id: str
    position: int
    features: msgspec.Raw


class Impression(msgspec.Struct):
    """A message of the topic `impressions`."""

    request_id: str
    ts_ms: int
    user_id: str
    scenario: str
    user: msgspec.Raw
    items: list[Shown]


class Action(msgspec.Struct, omit_defaults=True):
    """A message of the topic `clicks`."""

    request_id: str
    user_id: str
    ts_ms: int
    item_id: str | None
    action: str
    value: float = 1.0


class Pace(NamedTuple):
    """Exactly one is given: times between lists divided by `speed`, or `rate` rows (items shown) a second, evenly."""

    speed: float = 0.0
    rate: float = 0.0


class Send(NamedTuple):
    """One message and the time at which it is due; `rows` is 0 for an action, `again` marks the second of two equal messages."""

    due_ms: int
    user: int
    message: Impression | Action
    rows: int
    again: bool


class Delivered(NamedTuple):
    """The broker has acknowledged a message. `ts_ms` is its event time, `sent_ms` the wall clock when it was handed over.

    An impression has `rows` items and no `item_id`; an action has its `item_id` (None for one without) and 0 rows.
    """

    request_id: str
    ts_ms: int
    sent_ms: int
    rows: int
    item_id: str | None
    action: str
    again: bool


class Summary(msgspec.Struct):
    """What was produced; `repeated` messages are the duplicates sent on purpose, `failed` got no acknowledgement."""

    lists: int = 0
    rows: int = 0
    actions: int = 0
    repeated: int = 0
    failed: int = 0
    seconds: float = 0.0


class Stamp:
    """Maps the event times of a log onto the clock of now, one block after the other.

    Raises:
        ValueError: not exactly one positive of `speed` and `rate`.
    """

    def __init__(self, pace: Pace, start_ms: int) -> None:
        if (pace.speed > 0) == (pace.rate > 0) or min(pace) < 0:
            raise ValueError("give one of a speed factor and a rate in rows per second, above 0")
        self._pace, self._start_ms = pace, start_ms
        self._origin_ms: int | None = None
        self._rows = 0

    def __call__(self, block: blocks.Block) -> blocks.I64:
        """(L,) new times in ms, never falling."""
        if self._origin_ms is None:
            self._origin_ms = int(block.ts_ms[0])
        if self._pace.speed > 0:
            elapsed = (block.ts_ms - self._origin_ms) / self._pace.speed
        else:
            elapsed = 1000 * (self._rows + block.start[:-1]) / self._pace.rate
            self._rows += int(block.start[-1])
        return self._start_ms + elapsed.astype(np.int64)


class _Pending(NamedTuple):
    """Messages not yet due, in columns: due time, block number, kind (bit 0: action, bit 1: sent again), place in its block."""

    due_ms: blocks.I64
    block: blocks.I64
    kind: blocks.I64
    place: blocks.I64


def sends(events: Iterable[blocks.Block], world: blocks.World, stamp: Stamp, run: str, form: Format = "json") -> Iterator[Send]:
    """Every message in order of the time at which it is due, duplicates included.

    `run` begins every request id, so that two runs into the same topics do not look like one sent twice.
    """
    raw = _Raw(world, form)
    open_blocks: dict[int, tuple[blocks.Block, blocks.I64]] = {}
    nothing = np.zeros(0, np.int64)
    waiting = _Pending(nothing, nothing, nothing, nothing)
    number = 0
    for number, block in enumerate(events):
        ts_ms = stamp(block)
        open_blocks[number] = (block, ts_ms)
        merged = _merge(waiting, _pending(block, ts_ms, number))
        cut = int(np.searchsorted(merged.due_ms, ts_ms[-1], side="right"))
        yield from _build(_Pending(*(c[:cut] for c in merged)), open_blocks, world, raw, run)
        waiting = _Pending(*(c[cut:].copy() for c in merged))
        open_blocks = {k: open_blocks[k] for k in np.unique(waiting.block).tolist()}
    yield from _build(waiting, open_blocks, world, raw, run)


def _pending(block: blocks.Block, ts_ms: blocks.I64, number: int) -> _Pending:
    lists = ts_ms + block.held_ms
    actions = ts_ms[block.a_list] + block.a_delay_ms + block.a_held_ms
    parts = (
        (0, np.arange(len(lists)), lists),
        (1, np.arange(len(actions)), actions),
        (2, block.again[:, 0], lists[block.again[:, 0]] + block.again[:, 1]),
        (3, block.a_again[:, 0], actions[block.a_again[:, 0]] + block.a_again[:, 1]),
    )
    due, place = np.concatenate([p[2] for p in parts]), np.concatenate([p[1] for p in parts])
    kind = np.concatenate([np.full(len(p[1]), p[0]) for p in parts])
    return _Pending(due, np.full(len(due), number), kind, place)


def _merge(waiting: _Pending, more: _Pending) -> _Pending:
    joined = [np.concatenate(pair) for pair in zip(waiting, more, strict=True)]
    order = np.lexsort((joined[3], joined[2], joined[1], joined[0]))
    return _Pending(*(c[order] for c in joined))


class _Raw:
    """Attributes of users and items, encoded once."""

    def __init__(self, world: blocks.World, form: Format) -> None:
        self._world = world
        self._encode = msgspec.json.encode if form == "json" else msgspec.msgpack.encode
        self._users: dict[int, msgspec.Raw] = {}
        self._items: dict[int, msgspec.Raw] = {}

    def user(self, code: int) -> msgspec.Raw:
        if code not in self._users:
            self._users[code] = msgspec.Raw(self._encode(self._world.users.describe(code)))
        return self._users[code]

    def item(self, code: int) -> msgspec.Raw:
        if code not in self._items:
            self._items[code] = msgspec.Raw(self._encode(self._world.items.describe(code)))
        return self._items[code]


def _build(
    due: _Pending, open_blocks: dict[int, tuple[blocks.Block, blocks.I64]], world: blocks.World, raw: _Raw, run: str
) -> Iterator[Send]:
    item_ids = world.items.ids
    for at, number, kind, k in zip(*(column.tolist() for column in due), strict=True):
        block, ts_ms = open_blocks[number]
        i, again = int(block.a_list[k]) if kind & 1 else k, kind > 1
        user = int(block.user[i])
        request = f"{run}-{block.first + i}"
        if kind & 1:
            item, ts = int(block.a_item[k]), int(ts_ms[i] + block.a_delay_ms[k])
            item_id = item_ids[item] if item >= 0 else None
            value = 1.0 if block.a_value is None else float(block.a_value[k])
            action = Action(request, world.users.ids[user], ts, item_id, world.kinds[block.a_kind[k]], value)
            yield Send(at, user, action, 0, again)
            continue
        codes = block.item[block.start[i] : block.start[i + 1]].tolist()
        shown = [Shown(item_ids[c], p, raw.item(c)) for p, c in enumerate(codes)]
        scenario = world.scenarios[block.scenario[i]]
        message = Impression(request, int(ts_ms[i]), world.users.ids[user], scenario, raw.user(user), shown)
        yield Send(at, user, message, len(codes), again)


class LoadGenerator:
    """Sends messages when they are due; `run` returns when the log ends, at a limit, or soon after `stop` is set.

    A class because the broker's acknowledgements come in while it runs and change `summary`, which others may read meanwhile.
    """

    def __init__(
        self,
        config: Config,
        form: Format = "json",
        delivered: Callable[[Delivered], None] | None = None,
        shown: Callable[[Impression], None] | None = None,
        producer: Any = None,
        clock: Clock = time.time,
    ) -> None:
        self._topics, self._partitions = config.topics, config.kafka.partitions
        self._encode = (msgspec.json if form == "json" else msgspec.msgpack).Encoder().encode
        self._delivered, self._shown, self._clock = delivered, shown, clock
        settings = {"compression.type": "lz4", "queue.buffering.max.messages": 200_000, "delivery.timeout.ms": 300_000}
        self._producer = producer or Producer(kafka_settings.producer(config, **settings))
        self._partition: dict[int, int] = {}
        self.summary = Summary()
        self.first_error = ""
        self.behind_s = 0.0

    def run(
        self,
        messages: Iterable[Send],
        stop: threading.Event,
        seconds: float | None = None,
        progress: Callable[[Summary, float], None] | None = None,
    ) -> Summary:
        """Send `messages` until they end, until `stop` is set or for `seconds`; what is due later is then not sent.

        Everything handed to the broker is flushed before this returns. `progress` is called about once a second with the
        summary so far and the seconds by which sending is behind.
        """
        begin = told = self._clock()
        for send in messages:
            if not self._wait(send.due_ms / 1000, stop, None if seconds is None else begin + seconds):
                break
            self._send(send)
            now = self._clock()
            self.summary.seconds = now - begin
            if progress is not None and now - told >= PROGRESS_S:
                told = now
                progress(self.summary, self.behind_s)
        self.finish()
        self.summary.seconds = self._clock() - begin
        return self.summary

    def finish(self, timeout_s: float = FLUSH_S) -> None:
        """Deliver what is in flight; what has no acknowledgement by then is counted as failed."""
        left = self._producer.flush(timeout_s)
        if left:
            self.summary.failed += left
            self.first_error = self.first_error or f"{left} messages had no acknowledgement {timeout_s:.0f} s after the end"

    def _wait(self, due_s: float, stop: threading.Event, end_s: float | None) -> bool:
        """Wait until `due_s` while serving acknowledgements; False when it is time to end."""
        while not stop.is_set():
            now = self._clock()
            if end_s is not None and now >= end_s:
                return False
            if now >= due_s:
                self.behind_s = now - due_s
                return True
            self._producer.poll(0)
            stop.wait(min(due_s - now, 0.05))
        return False

    def _send(self, send: Send) -> None:
        message = send.message
        partition = self._partition.get(send.user)
        if partition is None:
            partition = self._partition[send.user] = ids.of(message.user_id) % self._partitions
        sent_ms = round(self._clock() * 1000)
        if isinstance(message, Impression):
            topic, note = (
                self._topics.impressions,
                Delivered(message.request_id, message.ts_ms, sent_ms, send.rows, None, "", send.again),
            )
        else:
            topic = self._topics.clicks
            note = Delivered(message.request_id, message.ts_ms, sent_ms, 0, message.item_id, message.action, send.again)
        value, key = self._encode(message), message.user_id.encode()

        def acknowledged(error: KafkaError | None, _: Message) -> None:
            self._count(note, error)

        while True:
            try:
                self._producer.produce(topic, value, key, partition, on_delivery=acknowledged)
                break
            except BufferError:
                self._producer.poll(0.1)
        self._producer.poll(0)
        if self._shown is not None and isinstance(message, Impression):
            self._shown(message)

    def _count(self, note: Delivered, error: KafkaError | None) -> None:
        if error is not None:
            self.summary.failed += 1
            self.first_error = self.first_error or str(error)
            return
        if note.again:
            self.summary.repeated += 1
        elif note.rows:
            self.summary.lists += 1
            self.summary.rows += note.rows
        else:
            self.summary.actions += 1
        if self._delivered is not None:
            self._delivered(note)


def limited(events: Iterable[blocks.Block], lists: int) -> Iterator[blocks.Block]:
    """The first `lists` lists with all their actions."""
    left = lists
    for block in events:
        if left <= 0:
            return
        yield blocks.take(block, left)
        left -= len(block.user)


def until_signalled() -> threading.Event:
    """An event that SIGINT and SIGTERM set, so that what is in flight is delivered before the process ends."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop


def open_log(
    source: Source,
    seed: int = 0,
    delay: blocks.Delay | None = None,
    settings: simulator.Settings | None = None,
    say: packages.Say = print,
) -> tuple[blocks.World, Iterator[blocks.Block]]:
    """The world and the events of a source. `delay` of actions: none unless given (ml1m), that of `settings` (simulate).

    Raises:
        packages.DataError: MovieLens-1M cannot be had.
    """
    if source == "ml1m":
        ratings = ml1m.load(say=say)
        return ml1m.world(ratings), iter([ml1m.block(ratings, delay or blocks.Delay(), seed)])
    chosen = settings or simulator.Settings()
    if delay is not None:
        chosen = msgspec.structs.replace(chosen, delay_median_s=delay.median_s, delay_p90_s=delay.p90_s)
    made = simulator.Simulator(chosen, seed)
    return made.world, made.events()


def produce(
    config: Config,
    source: Source,
    pace: Pace,
    *,
    stop: threading.Event,
    seconds: float | None = None,
    limit: int | None = None,
    form: Format = "json",
    seed: int = 0,
    delay: blocks.Delay | None = None,
    settings: simulator.Settings | None = None,
    delivered: Callable[[Delivered], None] | None = None,
    shown: Callable[[Impression], None] | None = None,
    progress: Callable[[Summary, float], None] | None = None,
    say: packages.Say = print,
) -> Summary:
    """Open a source, stamp it onto now and send it; `thousandfold produce` and the demo call this.

    `delivered` is told what the broker acknowledged, `shown` every impression when it is handed over; both run in this thread.

    Raises:
        packages.DataError: MovieLens-1M cannot be had.
        ConfigError: a secret that the configuration names is missing.
        ValueError: an impossible pace or delay.
    """
    world, events = open_log(source, seed, delay, settings, say)
    if limit is not None:
        events = limited(events, limit)
    generator = LoadGenerator(config, form, delivered, shown)
    start_ms = round(time.time() * 1000)
    messages = sends(events, world, Stamp(pace, start_ms), f"{source}-{start_ms:x}", form)
    summary = generator.run(messages, stop, seconds, progress)
    if generator.first_error:
        say(f"{summary.failed} messages failed, first: {generator.first_error}")
    return summary
