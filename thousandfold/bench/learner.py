"""Rows per second of the continuous learner from its topic, its memory, and how long a snapshot holds it up.

MovieLens lists go through the pure stages in this process into `episodes`; then the learner runs as a deployment runs it (PEPNet,
MAML on, 50 rows a step, one thread, a durable plan, prequential metrics, drift; the river baseline off) and the wall times of its
plan records give the rate, between a tenth and nine tenths of the rows. What meta-learning costs is measured apart (`maml_cost`).
"""

import pathlib
import statistics
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from typing import Annotated

import numpy as np
import tomli_w
import typer
from confluent_kafka import Consumer, Producer, TopicPartition
from rich.console import Console

from state import config as configuration
from state import disk_snapshots, kafka_settings, kafka_topics, plan, snapshots
from state.config import Config
from thousandfold import brokers, children, pipeline, produce, specs, supervisor
from thousandfold.bench import maml_cost, report

TARGET_ROWS_PER_S, TARGET_HELD_MS, TARGET_RSS_MB = 30_000.0, 20.0, 1500.0
FIRST, LAST = 0.1, 0.9
PATIENCE_S = 120.0
BATCH = 512
EVENT_HOURS, EVENT_ROWS_PER_S = 24, 20
SNAPSHOT_MB, SNAPSHOT_ROUNDS = 200, 7


def episodes(config: Config, lists: int, source: produce.Source, seed: int) -> tuple[list[bytes], int]:
    """Packed episodes of the first lists of a source, and their rows."""
    world, events = produce.open_log(source, seed)
    # Slow enough in event time that users come back after their window: supports are as full as in a real stream.
    begin_ms = int(time.time() * 1000) - EVENT_HOURS * 3_600_000
    stamp = produce.Stamp(produce.Pace(rate=EVENT_ROWS_PER_S), begin_ms)
    flow, out, batch = pipeline.Pipeline(config), list[bytes](), list[pipeline.Raw]()
    for message in pipeline.raw(produce.sends(produce.limited(events, lists), world, stamp, "bench"), config.kafka.partitions):
        batch.append(message)
        if len(batch) == BATCH:
            out += flow.feed(batch)
            batch = []
    out += [*flow.feed(batch), *flow.end()]
    return out, flow.counts.rows


def settings(directory: pathlib.Path, bootstrap: str) -> tuple[Config, pathlib.Path]:
    """The MovieLens configuration with 50 rows a step, one partition of episodes and no baseline."""
    raw = tomllib.loads(specs.path("ml1m").read_text(encoding="utf-8"))
    raw["kafka"] = {"bootstrap": bootstrap, "partitions": 1, "group": "bench-learner"}
    (port,) = children.free_ports(1)
    raw["learner"] = {"rows_per_step": 50, "threads": 1, "baseline": "off", "metrics_port": port}
    raw["snapshot"] = {"directory": str(directory / "snapshots"), "every_s": 5.0}
    path = directory / "learner.toml"
    path.write_text(tomli_w.dumps(raw), encoding="utf-8")
    return configuration.load(path), path


def send(config: Config, packed: list[bytes]) -> None:
    """Put messages into the topic `episodes`."""
    producer = Producer(kafka_settings.producer(config))
    for value in packed:
        producer.produce(config.topics.episodes, value, partition=0)
        if len(producer) > BATCH:
            producer.flush()
    producer.flush()


def records(config: Config, rows: int, look: Callable[[], object]) -> list[plan.Record]:
    """The learner's plan records, up to those that hold `rows`."""
    reading = kafka_settings.client(
        config, **{"group.id": "bench", "enable.auto.commit": False, "isolation.level": "read_committed"}
    )
    consumer = Consumer(reading)
    consumer.assign([TopicPartition(config.topics.plan, 0, 0)])
    found: list[plan.Record] = []
    deadline_s = time.monotonic() + PATIENCE_S
    try:
        while sum(r.rows for r in found) < rows:
            look()
            got = [plan.decode(m.value() or b"") for m in consumer.consume(500, 0.5) if m.error() is None]
            found += got
            deadline_s = time.monotonic() + PATIENCE_S if got else deadline_s
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"the learner planned {sum(r.rows for r in found):,} of {rows:,} rows and stopped")
    finally:
        consumer.close()
    return found


def rate(found: list[plan.Record], rows: int) -> float:
    """Rows a second between FIRST and LAST of the rows; a record's wall time is when its rows begin."""
    before = np.cumsum([0, *(r.rows for r in found)])[:-1]
    wall_s = np.array([r.wall_ms for r in found]) / 1000
    begin, end = int(np.searchsorted(before, FIRST * rows)), int(np.searchsorted(before, LAST * rows)) - 1
    if end <= begin or wall_s[end] <= wall_s[begin]:
        raise ValueError(f"{rows:,} rows are too few to time; preload more with --lists")
    return float((before[end] - before[begin]) / (wall_s[end] - wall_s[begin]))


def held_ms_per_100_mb(directory: pathlib.Path) -> list[float]:
    """How long `disk_snapshots.Writer.submit` holds its caller up, in ms per 100 MB, over several snapshots."""
    count = SNAPSHOT_MB * 1_000_000 // 4
    parts = {
        snapshots.SERVING: {"table": np.random.default_rng(0).standard_normal(count // 2, np.float32)},
        snapshots.TRAINING: {"sums": np.random.default_rng(1).standard_normal(count // 2, np.float32)},
    }
    writer = disk_snapshots.Writer(directory / "held", 1)
    writer.prepare(parts)
    took = []
    for step in range(SNAPSHOT_ROUNDS):
        manifest = snapshots.Manifest(
            version="",
            directory="",
            files={},
            step=step,
            created_ms=int(time.time() * 1000) + step,
            spec="",
            model="",
            offsets=(),
            trained_rows=0,
        )
        begun_s = time.perf_counter()
        writer.submit(manifest, parts)
        took.append((time.perf_counter() - begun_s) * 1000 * 100 / SNAPSHOT_MB)
        writer.collect(PATIENCE_S)
    return took


def run(
    lists: int = 100_000, source: produce.Source = "ml1m", seed: int = 0, say: Callable[[str], None] = print
) -> list[report.Row]:
    """Measure; returns the rows of the report."""
    with tempfile.TemporaryDirectory(prefix="thousandfold-bench-") as folder:
        directory = pathlib.Path(folder)
        with brokers.chosen(None, directory) as broker:
            config, path = settings(directory, broker.bootstrap)
            kafka_topics.create(config, keep_for_ever=broker.keep_for_ever)
            packed, rows = episodes(config, lists, source, seed)
            send(config, packed)
            say(f"{broker.label}; {len(packed):,} messages with {rows:,} rows ({sum(map(len, packed)) / 1e6:.0f} MB)")
            ready = directory / "learner.ready"
            argv = [sys.executable, "-m", "learner", "--config", str(path), "--ready-file", str(ready)]
            with supervisor.Supervisor(
                [supervisor.Process("learner", argv, ready=ready)], lambda _n, _l: None, directory
            ) as running:
                running.start()
                found = records(config, rows, running.poll)
                peak_mb = running.peak_rss_mb.get("learner", 0.0)
        held = held_ms_per_100_mb(directory)
        cost = maml_cost.cost(config, packed[: len(packed) * maml_cost.LISTS // max(lists, maml_cost.LISTS)], say=say)
    per_s = rate(found, rows)
    say(f"learner {per_s:,.0f} rows/s, {peak_mb:.0f} MB; a snapshot holds it up {statistics.median(held):.1f} ms per 100 MB")
    return [
        report.row("learner/rows", per_s, "rows/s", target=TARGET_ROWS_PER_S),
        report.row("learner/peak_rss", peak_mb, "MB", better="lower", target=TARGET_RSS_MB),
        report.row("learner/snapshot_held_up", statistics.median(held), "ms per 100 MB", better="lower", target=TARGET_HELD_MS),
        cost,
    ]


app = typer.Typer()


@app.command()
def learner(
    lists: Annotated[int, typer.Option(help="shown lists to preload")] = 100_000,
    data: Annotated[produce.Source, typer.Option(help="ml1m (MovieLens-1M) or simulate")] = "ml1m",
    seed: Annotated[int, typer.Option()] = 0,
    report_file: Annotated[pathlib.Path | None, typer.Option("--report", help="write the rows to this JSON file")] = None,
) -> None:
    """Rows per second of the continuous learner from its topic."""
    console = Console()
    rows = run(lists, data, seed, console.print)
    console.print(report.table(rows, "learner"))
    if report_file:
        report.write(report_file, rows)
