"""Latency of scoring 200 candidates with adaptation, at an even rate of requests, while snapshots are swapped in.

A model is trained on the first MovieLens lists, the users' support sets go into a real store, and serving runs as a deployment
runs it. Requests come at fixed times whether or not earlier ones were answered (open loop); users with a support set and users
without take turns, so that the cost of adaptation is a ratio within one run.
"""

import http.client
import pathlib
import sys
import tempfile
import threading
import time
import tomllib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
import redis
import tomli_w
import typer
from rich.console import Console

from learner import episodes
from learner.loop import layout_of
from learner.step import Trainer
from state import config as configuration
from state import disk_snapshots, ids, snapshots, spec
from state.config import Config
from thousandfold import children, pipeline, produce, specs, stores, supervisor
from thousandfold.bench import report

CANDIDATES, REQUESTS_PER_S, PUBLISH_S = 200, 50.0, 5.0
TARGET_P99_MS, TARGET_RATIO = 15.0, 1.05
WARM_UP = 100
CLIENTS = 8
TRAINED_LISTS = 3000
TTL_MS = 3_600_000


class Users(NamedTuple):
    """Users with a full support set, and made-up ones without any."""

    known: list[str]
    unknown: list[str]


class Load(NamedTuple):
    """Latencies in ms of adapted and of plain answers, failures, and known users who got the plain tower (the store was slow)."""

    adapted: list[float]
    plain: list[float]
    errors: int
    degraded: int


def settings(directory: pathlib.Path, store_url: str) -> tuple[Config, pathlib.Path]:
    """The MovieLens configuration with a support of 16 rows and 3 inner steps."""
    raw = tomllib.loads(specs.path("ml1m").read_text(encoding="utf-8"))
    port, admin = children.free_ports(2)
    raw["store"] = {"url": store_url}
    raw["serving"] = {"port": port, "admin_port": admin}
    raw["snapshot"] = {"directory": str(directory / "snapshots")}
    raw["meta"] = {**raw.get("meta", {}), "mode": "on", "support_rows": 16, "inner_steps": 3}
    path = directory / "serving.toml"
    path.write_text(tomli_w.dumps(raw), encoding="utf-8")
    return configuration.load(path), path


def prepare(config: Config, source: produce.Source, seed: int) -> tuple[dict[str, dict[str, Any]], Users, list[bytes]]:
    """Train on the first lists and fill the store: (parts of a snapshot, users, pieces of candidate lists as JSON)."""
    world, events = produce.open_log(source, seed)
    flow, seen = pipeline.Pipeline(config), Counter[str]()
    stamp = produce.Stamp(produce.Pace(rate=200), int(time.time() * 1000) - 1000 * TRAINED_LISTS // 10)
    sends = list(produce.sends(produce.limited(events, TRAINED_LISTS), world, stamp, "bench"))
    for send in sends:
        seen[send.message.user_id] += send.rows
    batch = list(pipeline.raw(sends, config.kafka.partitions))
    packed = [*flow.feed(batch), *flow.end()]
    layout, trainer = layout_of(config), Trainer(config)
    lists = episodes.merge([episodes.decode(value, layout) for value in packed], layout)
    for minibatch in episodes.minibatches(lists, config.learner.rows_per_step):
        trainer.step(minibatch.batch, minibatch.now_ms)
    model = {name: np.array(array) for name, array in trainer.arrays().items()}
    serving = {name: model.pop(name) for name in trainer.serving_names}
    known = [user for user, rows in seen.items() if rows >= config.meta.support_rows]
    tasks = np.array([ids.of(user) for user in known], np.uint64)
    values = dict(zip(known, flow.supports(tasks), strict=True))
    known = [user for user, value in values.items() if value is not None]
    with redis.Redis.from_url(config.store.url) as client:
        for user in known:
            client.set(config.store.prefix.encode() + b"s" + ids.of(user).to_bytes(8, "little"), values[user] or b"", px=TTL_MS)
    random = np.random.default_rng(seed)
    items = [
        msgspec.json.encode(
            [
                {"item_id": world.items.ids[code], "features": world.items.describe(code)}
                for code in random.integers(0, len(world.items.ids), CANDIDATES).tolist()
            ]
        )
        for _ in range(32)
    ]
    users = Users(known, [f"nobody-{i}" for i in range(len(known))])
    return {snapshots.SERVING: serving, snapshots.TRAINING: model}, users, items


def publish(config: Config, parts: dict[str, dict[str, Any]], step: int) -> None:
    """One snapshot, as the learner writes it."""
    manifest = snapshots.Manifest(
        version="", directory="", files={}, step=step, created_ms=int(time.time() * 1000), offsets=(), trained_rows=step,
        spec=spec.fingerprint(config.features, config.action_kinds), model=config.model.name,
    )  # fmt: skip
    disk_snapshots.write(config.snapshot.directory, manifest, parts, config.snapshot.keep)


def load(config: Config, users: Users, items: list[bytes], requests: int) -> Load:
    """Send requests at their times; those of the warm-up count only when they fail."""
    local, scenario = threading.local(), config.scenarios.known[0]
    out: dict[bool, list[float]] = {True: [], False: []}
    errors: list[str] = []
    degraded: list[str] = []
    begin_s = time.perf_counter() + 0.2

    def one(i: int) -> None:
        due_s = begin_s + i / REQUESTS_PER_S
        time.sleep(max(due_s - time.perf_counter(), 0))
        known = i % 2 == 0
        user = (users.known if known else users.unknown)[(i // 2) % len(users.known)]
        body = b'{"user_id":"%s","scenario":"%s","candidates":%s}' % (user.encode(), scenario.encode(), items[i % len(items)])
        try:
            if not hasattr(local, "connection"):
                local.connection = http.client.HTTPConnection(config.serving.host, config.serving.port, timeout=5)
            local.connection.request("POST", "/v1/score", body, {"content-type": "application/json"})
            reply = local.connection.getresponse()
            found = msgspec.json.decode(reply.read())
        except OSError as error:
            errors.append(repr(error))
            del local.connection
            return
        if reply.status != http.client.OK:
            errors.append(str(found)[:200])
        elif i >= WARM_UP and bool(found["adapted"]) != known:
            degraded.append(str(found["degraded"]))
        elif i >= WARM_UP:
            out[known].append((time.perf_counter() - max(due_s, begin_s)) * 1000)

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(one, range(requests + WARM_UP)))
    return Load(out[True], out[False], len(errors), len(degraded))


def run(
    requests: int = 1500, source: produce.Source = "ml1m", seed: int = 0, say: Callable[[str], None] = print
) -> list[report.Row]:
    """Measure; returns the rows of the report."""
    with tempfile.TemporaryDirectory(prefix="thousandfold-bench-") as folder:
        directory = pathlib.Path(folder)
        with stores.chosen(None, directory) as store:
            config, path = settings(directory, store.url)
            parts, users, items = prepare(config, source, seed)
            publish(config, parts, 1)
            ready = directory / "serving.ready"
            argv = [sys.executable, "-m", "serving", "--config", str(path), "--ready-file", str(ready)]
            with supervisor.Supervisor(
                [supervisor.Process("serving", argv, ready=ready)], lambda _n, _l: None, directory
            ) as running:
                running.start()
                _wait_for_model(config)
                done, swaps = threading.Event(), [1]

                def publishing() -> None:
                    while not done.wait(PUBLISH_S):
                        swaps[0] += 1
                        publish(config, parts, swaps[0])

                publisher = threading.Thread(target=publishing, daemon=True)
                publisher.start()
                found = load(config, users, items, requests)
                done.set()
                publisher.join()
                running.poll()
                peak_mb = running.peak_rss_mb.get("serving", 0.0)
    p50, p99 = (float(np.percentile(found.adapted, q)) for q in (50, 99))
    plain_p50, answers = float(np.percentile(found.plain, 50)), len(found.adapted) + len(found.plain)
    say(
        f"adapted p50 {p50:.2f} ms, p99 {p99:.2f} ms; plain p50 {plain_p50:.2f} ms; "
        f"{answers:,} answers, {found.errors} errors, {found.degraded} degraded, "
        f"{swaps[0]} snapshots, {peak_mb:.0f} MB"
    )
    return [
        report.row("serving/p99", p99, "ms", better="lower", target=TARGET_P99_MS),
        report.row("serving/p50", p50, "ms", better="lower"),
        report.row("serving/p50_plain", plain_p50, "ms", better="lower"),
        report.row("serving/adaptation", p50 / plain_p50, "ratio of p50, adapted to plain", better="lower", target=TARGET_RATIO),
        report.row("serving/errors", found.errors, "requests", better="lower", target=0.0),
        report.row("serving/degraded", found.degraded, "requests", better="lower"),
        report.row("serving/peak_rss", peak_mb, "MB", better="lower"),
    ]


def _wait_for_model(config: Config, patience_s: float = 30.0) -> None:
    end_s = time.monotonic() + patience_s
    while time.monotonic() < end_s:
        connection = http.client.HTTPConnection(config.serving.host, config.serving.port, timeout=2)
        connection.request("GET", "/readyz")
        if connection.getresponse().status == http.client.OK:
            return
        time.sleep(0.2)
    raise TimeoutError(f"serving had no model after {patience_s:g} s")


app = typer.Typer()


@app.command()
def serving(
    requests: Annotated[int, typer.Option(help="requests to time")] = 1500,
    data: Annotated[produce.Source, typer.Option(help="ml1m (MovieLens-1M) or simulate")] = "ml1m",
    seed: Annotated[int, typer.Option()] = 0,
    report_file: Annotated[pathlib.Path | None, typer.Option("--report", help="write the rows to this JSON file")] = None,
) -> None:
    """Latency of scoring 200 candidates with adaptation while snapshots are swapped in."""
    console = Console()
    rows = run(requests, data, seed, console.print)
    console.print(report.table(rows, "serving"))
    if report_file:
        report.write(report_file, rows)
