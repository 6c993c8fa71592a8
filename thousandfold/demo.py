"""The whole system on one machine: broker, store, streams, learner and serving, a real stream through them, and a live table."""

import contextlib
import json
import pathlib
import queue
import random
import re
import sys
import tempfile
import threading
import time
import tomllib
from typing import Annotated, Any, NamedTuple

import numpy as np
import tomli_w
import typer
from rich.console import Console
from rich.live import Live

from state import config as configuration
from state import kafka_topics
from state.config import Config
from thousandfold import audit, brokers, children, live, produce, specs, stores, supervisor, traffic
from thousandfold.data import blocks, ml1m

# The stream runs about ten thousand times faster than its users did, so a second of delay would be hours of theirs: counters and
# support sets would say nothing. A click comes within a few of its user's lists, as a rating came with its page.
DELAY = blocks.Delay(median_s=0.05, p90_s=0.15)
TOPICS = ("impressions", "clicks", "enriched", "samples", "episodes", "plan", "snapshots", "deltas", "control", "dead_letters")
CHAOS_EVERY_S = 20.0
CHAOS_QUIET_S = 15.0
DRAIN_LIMIT_S = 90.0
EXCUSED_S = 20.0
REFRESH_S = 1.0
TICK_S = 0.1


class Options(NamedTuple):
    """What the command line asked for; `rate` is rows (items shown) a second, `requests` a second go to serving."""

    source: produce.Source
    rate: float
    requests: float
    seconds: float | None
    chaos: bool
    seed: int
    bootstrap: str | None
    store: str | None
    base: pathlib.Path


class Part(NamedTuple):
    """A process of the demo that chaos may kill."""

    name: str
    kill: Any


def settings(options: Options, directory: pathlib.Path, bootstrap: str, store_url: str) -> tuple[Config, pathlib.Path]:
    """The configuration of this demo: `options.base` with addresses, ports and folders of its own."""
    raw = tomllib.loads(options.base.read_text(encoding="utf-8"))
    streams, learner, port, admin = children.free_ports(4)
    ours: dict[str, dict[str, Any]] = {
        "kafka": {"bootstrap": bootstrap},
        "store": {"url": store_url},
        "streams": {"metrics_port": streams},
        "learner": {"metrics_port": learner},
        "serving": {"port": port, "admin_port": admin},
        "snapshot": {"directory": str(directory / "snapshots")},
    }
    if options.bootstrap:
        # A shared broker may hold topics of an earlier demo: this one must not read them.
        run = f"demo-{int(time.time())}"
        ours["topics"] = {name: f"{run}-{name.replace('_', '-')}" for name in TOPICS}
        ours["kafka"]["group"] = run
        ours["store"]["prefix"] = f"{run}:"
    for section, values in ours.items():
        raw[section] = {**raw.get(section, {}), **values}
    path = directory / "thousandfold.toml"
    path.write_text(tomli_w.dumps(raw), encoding="utf-8")
    return configuration.load(path), path


def processes(path: pathlib.Path, directory: pathlib.Path) -> list[supervisor.Process]:
    """Streams, learner and serving, as a deployment runs them."""
    return [
        supervisor.Process(
            name,
            [sys.executable, "-m", name, "--config", str(path), "--ready-file", str(directory / f"{name}.ready"), *extra],
            ready=directory / f"{name}.ready",
        )
        for name, extra in (("streams", ["--instance", "demo-0"]), ("learner", []), ("serving", []))
    ]


class Producing(threading.Thread):
    """Sends the stream and hands every shown list to the score client; remembers when each click was produced."""

    def __init__(self, config: Config, options: Options, client: traffic.Client) -> None:
        super().__init__(name="producer", daemon=True)
        self._config, self._options, self._client = config, options, client
        self._ended = threading.Event()
        self.clicks: list[tuple[str, int]] = []
        self.summary = produce.Summary()
        self.error = ""

    def run(self) -> None:
        """Until `stop`, or the log's end."""
        try:
            self.summary = produce.produce(
                self._config,
                self._options.source,
                produce.Pace(rate=self._options.rate),
                stop=self._ended,
                seed=self._options.seed,
                delay=DELAY,
                delivered=self._note,
                shown=self._client.offer,
                progress=self._progress,
                say=self._say,
            )
        except Exception as error:
            self.error = repr(error)
            raise

    def stop(self) -> None:
        """Deliver what is in flight and end."""
        self._ended.set()
        self.join()

    def _note(self, delivered: produce.Delivered) -> None:
        if delivered.rows == 0:
            self.clicks.append((delivered.request_id, delivered.sent_ms))

    def _progress(self, summary: produce.Summary, _behind_s: float) -> None:
        self.summary = summary

    def _say(self, line: str) -> None:
        self.error = line


class Demo:
    """One run, from the start of the processes to the report."""

    def __init__(
        self, options: Options, directory: pathlib.Path, broker: brokers.Broker, store: stores.RunningStore, begun_s: float
    ) -> None:
        self.options, self.broker, self.store = options, broker, store
        self.directory = directory
        self.config, path = settings(options, directory, broker.bootstrap, store.url)
        self.notes: list[str] = []
        self.killed: list[str] = []
        self.first_metric_s: float | None = None
        self.reading: live.Reading | None = None
        self._begun_s, self._killed_at_s = begun_s, -EXCUSED_S
        self._random = random.Random(options.seed)
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.supervisor = supervisor.Supervisor(processes(path, directory), self._log, directory)
        serving = self.config.serving
        self.client = traffic.Client(f"http://{serving.host}:{serving.port}", options.requests, self._excused)
        self.producing = Producing(self.config, options, self.client)
        self.endpoints = {
            "streams": f"http://127.0.0.1:{self.config.streams.metrics_port}/metrics",
            "learner": f"http://127.0.0.1:{self.config.learner.metrics_port}/metrics",
            "serving": f"http://{serving.host}:{serving.port}/metrics",
        }

    def run(self, console: Console) -> dict[str, Any]:
        """Start everything, show the table until the time is up or Ctrl-C, let the pipeline drain, and return the report."""
        kafka_topics.create(self.config, keep_for_ever=self.broker.keep_for_ever)
        with self.supervisor:
            self.supervisor.watch(self.broker.name, lambda: self.broker.pid)
            self.supervisor.watch(self.store.name, lambda: self.store.pid)
            console.print(f"broker: {self.broker.label} at {self.broker.bootstrap}; store: {self.store.name} at {self.store.url}")
            self.supervisor.start()
            console.print(f"all processes ready after {time.monotonic() - self._begun_s:.1f} s; logs in {self.directory}")
            self.producing.start()
            self.client.start()
            with contextlib.suppress(KeyboardInterrupt):
                self._watch(console)
            console.print("stopping the stream, then waiting until everything produced is trained")
            self.producing.stop()
            found = audit.Audit(self.config)
            try:
                outcome = self._drain(found)
                seen = self.client.stop()
                freshness = found.freshness_s(self.producing.clicks, self.client.first_scored_ms)
            finally:
                found.close()
            self._look()
        return self._report(outcome, seen, freshness)

    def _watch(self, console: Console) -> None:
        """The live table, with a process killed now and then when asked for."""
        begun_s = looked_s = chaos_s = time.monotonic()
        end_s = begun_s + self.options.seconds if self.options.seconds else float("inf")
        with Live(console=console, auto_refresh=False, transient=False) as screen:
            while (now_s := time.monotonic()) < end_s and self.producing.is_alive():
                self._keep_up()
                if now_s - looked_s >= REFRESH_S:
                    looked_s = now_s
                    self._look()
                    if self.broker.full():
                        gigabytes = brokers.EMBEDDED_CAP_BYTES / 1e9
                        console.print(f"the embedded broker is full at {gigabytes:g} GB; set KAFKA_HOME for longer runs")
                        end_s = now_s
                    if self.reading:
                        screen.update(live.render(self.reading, self._title(end_s - now_s), self.notes[-4:]), refresh=True)
                if self.options.chaos and now_s - chaos_s >= CHAOS_EVERY_S and end_s - now_s > CHAOS_QUIET_S:
                    chaos_s = now_s
                    self._kill_one()
                time.sleep(TICK_S)

    def _keep_up(self) -> None:
        """Restart what died, and pass on what the processes complain about."""
        for event in self.supervisor.poll():
            self.notes.append(f"{self._clock()} {event.name} {event.what}" + (f" (code {event.code})" if event.code else ""))
            if event.what == "gave up":
                raise supervisor.StartFailed(f"{event.name} ended with code {event.code}; its log says why")
        for part in (self.broker, self.store):
            if part.name not in (brokers.EXTERNAL, stores.EXTERNAL) and part.pid is None:
                part.start()
                self.notes.append(f"{self._clock()} {part.name} restarted")
        with contextlib.suppress(queue.Empty):
            while True:
                self.notes.append(self._lines.get_nowait())

    def _kill_one(self) -> None:
        victims = [Part(name, lambda name=name: self.supervisor.kill(name)) for name in self.supervisor.running()]
        victims += [Part(part.name, part.kill) for part in (self.broker, self.store) if part.pid is not None]
        if self.broker.name == brokers.EMBEDDED:
            # It loses acknowledged writes on kill -9, so no promise can be checked across it (docs/operations.md).
            victims = [victim for victim in victims if victim.name != self.broker.name]
        victim = self._random.choice(victims)
        self._killed_at_s = time.monotonic()
        victim.kill()
        self.killed.append(victim.name)
        self.notes.append(f"{self._clock()} chaos: kill -9 {victim.name}")

    def _excused(self) -> bool:
        return time.monotonic() - self._killed_at_s < EXCUSED_S

    def _look(self) -> None:
        samples, silent = live.scrape(self.endpoints)
        objective = self.config.objectives[0].name
        self.reading = live.read(
            samples, silent, time.monotonic(), time.time(), objective, self.config.scenarios.known, self.reading
        )
        if self.first_metric_s is None and any(not np.isnan(s.auc) for s in self.reading.scenarios):
            self.first_metric_s = time.monotonic() - self._begun_s

    def _drain(self, found: audit.Audit) -> audit.Outcome:
        """Read the topics until nothing produced is missing, or nothing has moved for the time that a join may take."""
        patience_s = max(DRAIN_LIMIT_S, 3 * (self.config.join.window_s + self.config.join.idle_timeout_s))
        end_s = time.monotonic() + patience_s
        while True:
            self._keep_up()
            found.advance()
            outcome = found.outcome()
            complete = outcome.produced_lists > 0 and outcome.lost == 0
            if complete or time.monotonic() > end_s:
                return outcome
            time.sleep(REFRESH_S)

    def _title(self, left_s: float) -> str:
        left = f", {left_s:.0f} s left" if left_s != float("inf") else ", Ctrl-C ends it"
        summary = self.producing.summary
        return f"Thousandfold: {self.options.source}, {summary.lists:,} lists and {summary.actions:,} actions produced{left}"

    def _clock(self) -> str:
        return f"[{time.monotonic() - self._begun_s:5.1f} s]"

    def _log(self, name: str, line: str) -> None:
        if " ERROR " in line or " CRITICAL " in line or line.startswith("Traceback"):
            self._lines.put(f"{self._clock()} {name}: {line[:160]}")

    def _report(self, outcome: audit.Outcome, seen: traffic.Summary, freshness: list[float]) -> dict[str, Any]:
        reading = self.reading
        fresh = np.array(freshness) if freshness else np.full(1, np.nan)
        return {
            "counts": {
                "produced": outcome.produced,
                "joined": outcome.joined,
                "positive": outcome.positive,
                "orphan": outcome.orphan,
                "late": outcome.late,
                "dead_lettered": outcome.dead_lettered,
                "trained": outcome.trained,
                "served": seen.requests - seen.errors,
                "not_delivered": self.producing.summary.failed,
            },
            "producer_error": self.producing.error,
            "lost": outcome.lost,
            "duplicated": outcome.duplicated,
            "scenarios": {
                s.name: {
                    "rows": int(s.rows),
                    "auc": _json(s.auc),
                    "gauc": _json(s.gauc),
                    "logloss": _json(s.logloss),
                    "calibration": _json(s.calibration),
                    "auc_unadapted": _json(s.auc_unadapted),
                    "auc_river": _json(s.auc_river),
                }
                for s in (reading.scenarios if reading else ())
            },
            "snapshots": outcome.snapshots,
            "swaps": int(reading.swaps) if reading else 0,
            "serving": {
                "requests": seen.requests,
                "errors": seen.errors,
                "adapted": seen.adapted,
                "degraded": seen.degraded,
                "p50_ms": _json(seen.p50_ms),
                "p99_ms": _json(seen.p99_ms),
                "last_error": self.client.last_error,
            },
            "first_metric_s": self.first_metric_s,
            "freshness_p50_s": _json(float(np.percentile(fresh, 50))),
            "freshness_p95_s": _json(float(np.percentile(fresh, 95))),
            "peak_rss_mb": {name: round(mb, 1) for name, mb in sorted(self.supervisor.peak_rss_mb.items())},
            "broker": self.broker.name,
            "store": self.store.name,
            "killed": self.killed,
            "restarts": self.supervisor.restarts,
            "plan": {
                "records": outcome.plan_records,
                "superseded": outcome.superseded,
                "gaps": outcome.gaps,
                "overlaps": outcome.overlaps,
            },
        }


def seconds(text: str) -> float:
    """A duration such as 90, 90s, 10m or 1h, in seconds.

    Raises:
        typer.BadParameter: it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if not found:
        raise typer.BadParameter(f"{text!r} is no duration; write 90s, 10m or 1h")
    return float(found.group(1)) * {"": 1, "s": 1, "m": 60, "h": 3600}[found.group(2)]


def _json(value: float) -> float | None:
    return None if np.isnan(value) else round(value, 6)


app = typer.Typer()


@app.command()
def demo(
    source: Annotated[produce.Source, typer.Option("--data", help="ml1m (MovieLens-1M) or simulate")] = "ml1m",
    rate: Annotated[float, typer.Option(help="rows (items shown) per second")] = 400.0,
    requests: Annotated[float, typer.Option(help="scoring requests per second")] = 20.0,
    duration: Annotated[str, typer.Option("--for", help="how long, such as 90s or 10m; until Ctrl-C if left out")] = "",
    report: Annotated[pathlib.Path | None, typer.Option(help="write the figures of the run to this JSON file")] = None,
    chaos: Annotated[bool, typer.Option("--chaos", help="kill -9 one random process every 20 s")] = False,
    seed: Annotated[int, typer.Option(help="of the data and of chaos")] = 0,
    bootstrap: Annotated[str | None, typer.Option(help="brokers to use instead of starting one")] = None,
    store_url: Annotated[str | None, typer.Option("--store", help="Redis or Valkey to use instead of starting one")] = None,
    config: Annotated[
        pathlib.Path | None, typer.Option(help="base configuration; its addresses and folders are replaced")
    ] = None,
    keep: Annotated[pathlib.Path | None, typer.Option(help="folder for logs, data and snapshots, kept afterwards")] = None,
) -> None:
    """Run everything on this machine on real input and show live quality per scenario."""
    begun_s = time.monotonic()
    options = Options(
        source,
        rate,
        requests,
        seconds(duration) if duration else None,
        chaos,
        seed,
        bootstrap,
        store_url,
        config or specs.path("ml1m"),
    )
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 140)
    with contextlib.ExitStack() as stack:
        directory = keep or pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="thousandfold-demo-")))
        directory.mkdir(parents=True, exist_ok=True)
        if source == "ml1m":
            ml1m.load(say=console.print)
        broker = stack.enter_context(brokers.chosen(bootstrap, directory))
        store = stack.enter_context(stores.chosen(store_url, directory))
        figures = Demo(options, directory, broker, store, begun_s).run(console)
    text = json.dumps(figures, indent=2)
    if report:
        report.write_text(text + "\n", encoding="utf-8")
    console.print_json(text)
    if figures["lost"] or figures["duplicated"]:
        console.print(f"[red]lost {figures['lost']} rows, duplicated {figures['duplicated']}[/red]")
        raise typer.Exit(1)
