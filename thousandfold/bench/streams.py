"""Impressions per second of enrich, join and group, alone and in one worker, on a real broker and a real store.

Lists of 20 in JSON are preloaded, then a worker as a deployment runs it drains them: counters and support sets on, the store with
its append-only file written every second. The rate is taken between a tenth and 85 % of the rows, where nothing starts or idles.
"""

import contextlib
import pathlib
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
import psutil
import tomli_w
import typer
from confluent_kafka import Producer
from rich.console import Console

from state import config as configuration
from state import ids, kafka_settings, kafka_topics
from state.config import Config
from thousandfold import brokers, children, live, stores, supervisor
from thousandfold.bench import report

ITEMS_PER_LIST = 20
LISTS_PER_S = 1000
USERS, ITEMS, SCENARIOS, CLICK_RATE = 5000, 20_000, 8, 0.05
WINDOW_S = 5.0
FIRST, LAST = 0.1, 0.85
TARGETS = {"enrich": 60_000.0, "join": 250_000.0, "group": 250_000.0, "all": 50_000.0}
PATIENCE_S = 60.0
POLL_S = 0.05

SPEC = """
[features]
categories = [
  { name = "user", source = "user_id" },
  { name = "item", source = "item_id" },
  { name = "scenario", source = "scenario" },
  { name = "country", source = "user.country" },
  { name = "device", source = "context.device" },
]
numbers = [
  { name = "price", source = "item.price", transform = "log1p" },
  { name = "score", source = "item.score" },
]
statistics = [
  { name = "item_rate", key = ["item"], kind = "rate" },
  { name = "item_count", key = ["item"], kind = "count" },
  { name = "item_scenario_rate", key = ["item", "scenario"], kind = "rate", toward = "item_rate" },
  { name = "item_scenario_count", key = ["item", "scenario"], kind = "count" },
  { name = "scenario_rate", key = ["scenario"], kind = "rate" },
  { name = "user_rate", key = ["user"], kind = "rate", prior = 5 },
  { name = "user_count", key = ["user"], kind = "count" },
  { name = "user_actions", key = ["user"], kind = "actions" },
]
recent = [
  { name = "since_action", match = "any", value = "age" },
  { name = "same_item_age", match = "item", value = "age" },
  { name = "same_item_count", match = "item", value = "count" },
]
places = [
  { name = "price_rank", of = "price", value = "rank" },
  { name = "price_difference", of = "price", value = "difference" },
  { name = "score_rank", of = "score", value = "rank" },
  { name = "score_difference", of = "score", value = "difference" },
  { name = "rate_rank", of = "item_rate", value = "rank" },
]

[join]
window_s = 5.0
lateness_s = 0.5
idle_timeout_s = 2.0
"""


class Measured(NamedTuple):
    """One worker over one preloaded input: rows a second, and CPU seconds per million rows of worker, store and broker."""

    rows_per_s: float
    worker_cpu_s: float
    store_cpu_s: float
    broker_cpu_s: float
    peak_rss_mb: float


def settings(directory: pathlib.Path, name: str, bootstrap: str, store_url: str) -> tuple[Config, pathlib.Path]:
    """A configuration whose derived topics, group and keys are of this run alone; the raw topics are shared by all runs."""
    (port,) = children.free_ports(1)
    derived = ("enriched", "samples", "episodes", "plan", "snapshots", "deltas", "control", "dead_letters")
    raw = tomllib.loads(SPEC) | {
        "kafka": {"bootstrap": bootstrap, "group": name},
        "store": {"url": store_url, "prefix": f"{name}:"},
        "topics": {topic: f"{name}-{topic.replace('_', '-')}" for topic in derived},
        "streams": {"metrics_port": port},
    }
    path = directory / f"{name}.toml"
    path.write_text(tomli_w.dumps(raw), encoding="utf-8")
    return configuration.load(path), path


def preload(config: Config, lists: int, seed: int) -> None:
    """Write `lists` impressions of 20 items and their clicks, event times ending now."""
    random = np.random.default_rng(seed)
    producer = Producer(kafka_settings.producer(config, **{"queue.buffering.max.messages": 1_000_000, "linger.ms": 20}))
    begin_ms = int(time.time() * 1000) - lists * 1000 // LISTS_PER_S - round(2000 * WINDOW_S)
    weights = 1 / np.arange(1, ITEMS + 1)
    chances = np.cumsum(weights / weights.sum())
    price = np.round(random.lognormal(3, 1, ITEMS), 2).tolist()
    partitions = {u: ids.of(f"user-{u:05d}") % config.kafka.partitions for u in range(USERS)}
    clicks: list[tuple[int, int, str, str]] = []
    for i in range(lists):
        ts_ms, user, request = begin_ms + i * 1000 // LISTS_PER_S, int(random.integers(USERS)), f"request-{seed}-{i:08d}"
        drawn = np.unique(np.searchsorted(chances, random.random(3 * ITEMS_PER_LIST)))
        if len(drawn) < ITEMS_PER_LIST:
            drawn = random.choice(ITEMS, ITEMS_PER_LIST, replace=False)
        shown = random.permutation(drawn)[:ITEMS_PER_LIST].tolist()
        scores = np.round(random.random(ITEMS_PER_LIST), 4).tolist()
        message = {
            "request_id": request,
            "ts_ms": ts_ms,
            "user_id": f"user-{user:05d}",
            "scenario": f"scenario-{random.integers(SCENARIOS)}",
            "user": {"country": "de"},
            "context": {"device": "phone"},
            "items": [
                {"item_id": f"item-{k:05d}", "position": j, "features": {"price": price[k], "score": scores[j]}}
                for j, k in enumerate(shown)
            ],
        }
        _send(producer, config.topics.impressions, message, partitions[user])
        for j in np.flatnonzero(random.random(ITEMS_PER_LIST) < CLICK_RATE).tolist():
            clicks.append((ts_ms + int(random.integers(50, round(900 * WINDOW_S))), user, request, f"item-{shown[j]:05d}"))
    for ts_ms, user, request, item in sorted(clicks):
        click = {"request_id": request, "item_id": item, "user_id": f"user-{user:05d}", "ts_ms": ts_ms}
        _send(producer, config.topics.clicks, click, partitions[user])
    producer.flush()


def _send(producer: Producer, topic: str, message: dict[str, object], partition: int) -> None:
    while True:
        try:
            producer.produce(topic, msgspec.json.encode(message), partition=partition)
            break
        except BufferError:
            producer.poll(0.1)
    producer.poll(0)


def measure(
    path: pathlib.Path,
    config: Config,
    stages: str,
    rows: int,
    directory: pathlib.Path,
    cpu: Callable[[], tuple[float, float]],
) -> Measured:
    """Run a worker until its last stage has passed all rows on; `cpu` gives CPU seconds of (store, broker)."""
    settling_s = 2 * (config.join.window_s + config.join.idle_timeout_s + config.join.lateness_s) if stages == "enrich" else 0.5
    last = stages.rsplit(",", 1)[-1]
    ready = directory / f"{config.kafka.group}-{last}.ready"
    argv = [sys.executable, "-m", "streams", "--config", str(path), "--stages", stages, "--instance", "bench-0"]
    worker = supervisor.Process("streams", [*argv, "--ready-file", str(ready)], ready=ready)
    endpoint = {"streams": f"http://127.0.0.1:{config.streams.metrics_port}/metrics"}
    marks: list[tuple[float, float, float, tuple[float, float]]] = []
    with supervisor.Supervisor([worker], lambda _name, _line: None, directory) as running:
        running.start()
        process = psutil.Process(running.pid("streams") or 0)
        deadline_s = time.monotonic() + PATIENCE_S
        while not marks or marks[-1][1] < LAST * rows:
            running.poll()
            samples, _ = live.scrape(endpoint)
            done = live.total(samples, "thousandfold_events_total", stage=last, kind="rows")
            if not marks or done > marks[-1][1]:
                deadline_s = time.monotonic() + PATIENCE_S
            used = process.cpu_times()
            marks.append((time.monotonic(), done, used.user + used.system, cpu()))
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"{stages}: {done:,.0f} of {rows:,} rows, and nothing moved for {PATIENCE_S:g} s")
            time.sleep(POLL_S)
        begin, end = next(m for m in marks if m[1] >= FIRST * rows), marks[-1]
        while live.total(samples, "thousandfold_events_total", stage=last, kind="rows") < rows:
            running.poll()
            samples, _ = live.scrape(endpoint)
            if time.monotonic() > deadline_s + PATIENCE_S:
                raise TimeoutError(f"{stages}: the rest of {rows:,} rows did not come")
            time.sleep(POLL_S)
        # The next stage closes its windows by the watermarks that an idle worker still sends.
        time.sleep(settling_s)
        if end[1] <= begin[1]:
            raise ValueError(f"{stages}: {rows:,} rows passed between two looks; preload more with --lists")
        per_million = 1e6 / (end[1] - begin[1])
        return Measured(
            (end[1] - begin[1]) / (end[0] - begin[0]),
            (end[2] - begin[2]) * per_million,
            (end[3][0] - begin[3][0]) * per_million,
            (end[3][1] - begin[3][1]) * per_million,
            running.peak_rss_mb.get("streams", 0.0),
        )


def _cpu_of(*pids: int | None) -> Callable[[], tuple[float, float]]:
    processes = [psutil.Process(pid) if pid else None for pid in pids]

    def look() -> tuple[float, float]:
        times = [p.cpu_times() if p else None for p in processes]
        store, broker = (t.user + t.system if t else 0.0 for t in times)
        return store, broker

    return look


def run(lists: int = 40_000, seed: int = 0, say: Callable[[str], None] = print) -> list[report.Row]:
    """Measure the stages one after the other, then the three in one worker; returns the rows of the report."""
    rows = lists * ITEMS_PER_LIST
    out: list[report.Row] = []
    with _parts() as (directory, broker, store):
        alone, path = settings(directory, "bench-alone", broker.bootstrap, store.url)
        together, path_together = settings(directory, "bench-all", broker.bootstrap, store.url)
        for config in (alone, together):
            kafka_topics.create(config, keep_for_ever=broker.keep_for_ever)
        say(f"{broker.label}, {store.name}; preloading {lists:,} lists of {ITEMS_PER_LIST}")
        preload(alone, lists, seed)
        cpu = _cpu_of(store.pid, broker.pid)
        runs = [(stage, alone, path, stage) for stage in ("enrich", "join", "group")]
        for name, config, file, stages in [*runs, ("all", together, path_together, "enrich,join,group")]:
            found = measure(file, config, stages, rows, directory, cpu)
            say(
                f"{name:7s} {found.rows_per_s:,.0f} impressions/s; CPU s per million: worker {found.worker_cpu_s:.1f}, "
                f"store {found.store_cpu_s:.1f}, broker {found.broker_cpu_s:.1f}; {found.peak_rss_mb:.0f} MB"
            )
            out += [
                report.row(f"streams/{name}", found.rows_per_s, "impressions/s", target=TARGETS[name]),
                report.row(f"streams/{name}/worker_cpu", found.worker_cpu_s, "CPU s per million impressions", better="lower"),
                report.row(f"streams/{name}/store_cpu", found.store_cpu_s, "CPU s per million impressions", better="lower"),
                report.row(f"streams/{name}/broker_cpu", found.broker_cpu_s, "CPU s per million impressions", better="lower"),
            ]
    return out


@contextlib.contextmanager
def _parts() -> Iterator[tuple[pathlib.Path, brokers.Broker, stores.RunningStore]]:
    with tempfile.TemporaryDirectory(prefix="thousandfold-bench-") as folder:
        directory = pathlib.Path(folder)
        with brokers.chosen(None, directory) as broker, stores.chosen(None, directory) as store:
            yield directory, broker, store


app = typer.Typer()


@app.command()
def streams(
    lists: Annotated[int, typer.Option(help="shown lists of 20 to preload")] = 40_000,
    seed: Annotated[int, typer.Option()] = 0,
    report_file: Annotated[pathlib.Path | None, typer.Option("--report", help="write the rows to this JSON file")] = None,
) -> None:
    """Impressions per second of enrich, join and group, alone and in one worker."""
    console = Console()
    rows = run(lists, seed, console.print)
    console.print(report.table(rows, "streams"))
    if report_file:
        report.write(report_file, rows)
