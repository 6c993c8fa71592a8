"""Back-fill: re-read a range of the raw topics by time, through the same pure stages, into a learner of its own."""

import datetime as dt
import pathlib
import time
from collections import deque
from collections.abc import Sequence
from typing import Annotated, Literal

import typer
from confluent_kafka import Consumer, KafkaException, Message, TopicPartition
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from learner import episodes, publishing
from learner.explored import Explored
from learner.loop import DeadLetter, Loop, Note, Origin
from learner.prequential import Quality
from state import config as configuration
from state import disk_snapshots, kafka_settings, snapshots
from state.config import Config, Refused
from thousandfold import pipeline

BATCH = 512
AHEAD = 4096
TIMEOUT_S = 15.0
TOPIC = "replay"


class NothingToReplay(Refused, ValueError):
    """The raw topics hold no message in the range asked for; the message says what they hold."""


class RawRange:
    """The messages of `impressions` and `clicks` with a broker time in [from_ms, to_ms), merged in order of that time.

    Partitions are merged because a stage must not see the impressions of an hour before the clicks of the same hour.
    """

    def __init__(self, config: Config, from_ms: int, to_ms: int) -> None:
        settings = {"group.id": f"{config.kafka.group}-replay", "enable.auto.commit": False, "auto.offset.reset": "error"}
        self._consumer = Consumer(kafka_settings.client(config, **settings))
        self._kinds: dict[str, Literal["impressions", "clicks"]] = {
            config.topics.impressions: "impressions",
            config.topics.clicks: "clicks",
        }
        places = [TopicPartition(topic, p) for topic in self._kinds for p in range(config.kafka.partitions)]
        starts, ends = self._find(places, from_ms), self._find(places, to_ms)
        self._ends = {key: end for key, end in ends.items() if end > starts[key]}
        self.total = sum(end - starts[key] for key, end in self._ends.items())
        if not self.total:
            raise NothingToReplay(
                f"{' and '.join(self._kinds)} hold nothing between {_text(from_ms)} and {_text(to_ms)}; "
                "check the range and topics.raw_retention_hours"
            )
        self._queues: dict[tuple[str, int], deque[Message]] = {key: deque() for key in self._ends}
        self._paused: set[tuple[str, int]] = set()
        self._consumer.assign([TopicPartition(topic, p, starts[topic, p]) for topic, p in self._ends])

    def take(self, limit: int) -> list[pipeline.Raw]:
        """Up to `limit` messages in order; empty at the end of the range.

        Raises:
            KafkaException: the broker refused, or a message of the range is no longer there.
        """
        out: list[pipeline.Raw] = []
        while self._queues and len(out) < limit:
            self._fill()
            key = min(self._queues, key=lambda k: (self._queues[k][0].timestamp()[1], k))
            message = self._queues[key].popleft()
            offset, (_, at_ms) = int(message.offset() or 0), message.timestamp()
            out.append(pipeline.Raw(self._kinds[key[0]], key[1], offset, message.value(), at_ms))
            if offset + 1 >= self._ends[key]:
                del self._queues[key]
        return out

    def close(self) -> None:
        """Leave the broker."""
        self._consumer.close()

    def _find(self, places: Sequence[TopicPartition], at_ms: int) -> dict[tuple[str, int], int]:
        """The first offset at or after a time, the end of the partition where there is none."""
        found = self._consumer.offsets_for_times([TopicPartition(t.topic, t.partition, at_ms) for t in places], timeout=TIMEOUT_S)
        out = {}
        for place in found:
            _, high = self._consumer.get_watermark_offsets(TopicPartition(place.topic, place.partition), timeout=TIMEOUT_S)
            out[place.topic, place.partition] = place.offset if place.offset >= 0 else high
        return out

    def _fill(self) -> None:
        """Wait until every partition that has messages left shows its next one; hold back those that are far ahead."""
        quiet_s = time.monotonic()
        while any(not queue for queue in self._queues.values()):
            got = self._consumer.consume(BATCH, 0.5)
            for message in got:
                if message.error() is not None:
                    raise KafkaException(message.error())
                key = (str(message.topic()), int(message.partition() or 0))
                if key in self._queues and int(message.offset() or 0) < self._ends[key]:
                    self._queues[key].append(message)
            self._balance()
            if got:
                quiet_s = time.monotonic()
            elif time.monotonic() - quiet_s > TIMEOUT_S:
                empty = [f"{t}[{p}]" for (t, p), queue in self._queues.items() if not queue]
                raise Refused(
                    f"nothing came from {', '.join(empty)} for {TIMEOUT_S:g} s; is the broker healthy? try: thousandfold doctor"
                )

    def _balance(self) -> None:
        ahead = {key for key, queue in self._queues.items() if len(queue) > AHEAD}
        if start := [TopicPartition(*key) for key in self._paused - ahead if key in self._queues]:
            self._consumer.resume(start)
        if stop := [TopicPartition(*key) for key in ahead - self._paused]:
            self._consumer.pause(stop)
        self._paused = ahead


class Episodes:
    """`learner.loop.Source`: the episodes that the pure stages make of a range."""

    def __init__(self, config: Config, raw: RawRange) -> None:
        self._raw, self._pipeline = raw, pipeline.Pipeline(config)
        self._ready: deque[bytes] = deque()
        self._offset = self.read = 0
        self.ended = False

    @property
    def counts(self) -> pipeline.Counts:
        """What became of the input."""
        return self._pipeline.counts

    def fetch(self, limit: int, deadline_s: float) -> list[episodes.Message]:
        """Up to `limit` messages; reads on in the range while there are none. The deadline is not needed: nothing is live."""
        del deadline_s
        while not self._ready and not self.ended:
            messages = self._raw.take(BATCH)
            self.read += len(messages)
            self._ready.extend(self._pipeline.feed(messages) if messages else self._pipeline.end())
            self.ended = not messages
        out: list[episodes.Message] = []
        while self._ready and len(out) < limit:
            out.append(episodes.Message(TOPIC, 0, self._offset, None, self._ready.popleft()))
            self._offset += 1
        return out

    def lag(self) -> dict[tuple[str, int], int]:
        """Raw messages not read yet."""
        return {(TOPIC, 0): self._raw.total - self.read}


class NoLog:
    """`learner.loop.Log`: the raw topics are the record of a back-fill; what cannot be trained on ends it."""

    def write(self, record: bytes, letters: Sequence[DeadLetter], notes: Sequence[Note] = ()) -> None:
        """Accept a plan record.

        Raises:
            Refused: an episode of our own stages could not be trained on.
        """
        del record, notes
        for letter in letters:
            raise Refused(f"an episode could not be trained on: {letter.letter.reason}: {letter.letter.detail}")


class Nowhere:
    """`learner.publishing.Writer` of a back-fill whose figures are all that is wanted: it never takes a snapshot."""

    busy = True

    def submit(self, manifest: snapshots.Manifest, parts: disk_snapshots.Parts) -> None:
        """Nothing is written."""

    def collect(self, timeout_s: float = 0.0) -> snapshots.Manifest | None:
        """Nothing was written."""
        del timeout_s
        return None


app = typer.Typer()


@app.command()
def replay(
    config: Annotated[pathlib.Path, typer.Option(help="the configuration of the deployment")],
    begin: Annotated[str, typer.Option("--from", help="ISO time, or milliseconds since 1970")] = "0",
    end: Annotated[str, typer.Option("--to", help="ISO time, or milliseconds since 1970; default: now")] = "",
    into: Annotated[
        pathlib.Path | None, typer.Option(help="leave the learner's snapshot here; goes on from one that is there")
    ] = None,
) -> None:
    """Re-read raw topics by time into a fresh learner, and print its prequential figures.

    Neither the live learner nor the store is touched: counters and support sets start empty at --from.
    """
    settings = configuration.load(config)
    console = Console(stderr=True)
    raw = RawRange(settings, _moment(begin), _moment(end) if end else int(time.time() * 1000))
    source = Episodes(settings, raw)
    writer = disk_snapshots.Writer(into, settings.snapshot.keep) if into else Nowhere()
    loop = Loop(
        settings, source, NoLog(), publishing.Publisher(writer, lambda _: None, settings.snapshot), origin=Origin("replay")
    )
    if into and into.is_dir() and (newest := disk_snapshots.newest_intact(into)):
        parts = (disk_snapshots.read(into, newest, part) for part in (snapshots.SERVING, snapshots.TRAINING))
        loop.load(newest, {name: array for part in parts for name, array in part.items()})
        console.print(f"going on from {into}/{newest.version}, step {newest.step:,}; lists that it was trained on are skipped")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    begun_s = time.monotonic()
    try:
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("replaying", total=raw.total, rate="")
            while loop.once() or not source.ended:
                rate = source.counts.rows / max(time.monotonic() - begun_s, 1e-9)
                progress.update(task, completed=source.read, rate=f"{rate:,.0f} rows/s")
        if into:
            loop.stop()
    finally:
        raw.close()
    c = source.counts
    console.print(
        f"{source.read:,} messages, {c.lists:,} lists, {c.rows:,} rows, {c.positive:,} positive, "
        f"{c.late:,} late and {c.orphans:,} orphaned actions, {c.rejected:,} rejected, "
        f"{loop.step:,} steps in {time.monotonic() - begun_s:.1f} s"
    )
    Console().print(table(loop.measures.figures.report()))
    if explored := loop.measures.explored.report():
        Console().print(explored_table(explored))


def table(qualities: Sequence[Quality]) -> Table:
    """The prequential figures by scenario and variant."""
    out = Table("scenario", "objective", "variant", "rows", "AUC", "GAUC", "logloss", "calibration")
    for q in qualities:
        if q.rows:
            figures = (f"{value:.4f}" for value in (q.auc, q.gauc, q.logloss, q.calibration))
            out.add_row(q.scenario, q.objective, q.variant, f"{q.rows:,.0f}", *figures)
    return out


def explored_table(figures: Sequence[Explored]) -> Table:
    """The figures by inverse propensities, of scenarios that explore."""
    out = Table("scenario", "objective", "variant", "rows", "effective rows", "IPS AUC", "IPS mean label", "shown")
    for e in figures:
        if e.rows and e.window == "cumulative":
            values = (f"{value:.4f}" for value in (e.auc, e.mean_label, e.shown))
            out.add_row(e.scenario, e.objective, e.variant, f"{e.rows:,.0f}", f"{e.effective:,.0f}", *values)
    return out


def _moment(text: str) -> int:
    if text.isdigit():
        return int(text)
    try:
        found = dt.datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no time; write 2026-11-22T10:00:00+00:00 or milliseconds since 1970") from None
    return round((found if found.tzinfo else found.replace(tzinfo=dt.UTC)).timestamp() * 1000)


def _text(ms: int) -> str:
    return dt.datetime.fromtimestamp(ms / 1000, dt.UTC).isoformat(timespec="seconds")
