"""One stream worker: its connections, the Faust app around its stages, and how it starts and stops."""

import asyncio
import contextlib
import logging
import pathlib
import signal
import ssl
import tempfile
from collections.abc import AsyncIterator
from typing import Any

import aiokafka
import faust
from aiokafka.helpers import create_ssl_context

from state import credentials, kafka_settings, layout, redis_store
from state.config import Config
from streams import agents, faust_fetch, faust_stage, prometheus_metrics, warming

SETTLE_S, STOP_S = 2.0, 1.5
STORE_PATIENCE_S = 30.0
FETCH_BYTES = 4 * 1024 * 1024
BATCH_BYTES = 1024 * 1024
# A full stream buffer makes Faust wait in tasks for every message; it pauses a partition in time if polls are small beside it.
BUFFERED_MESSAGES, POLLED_MESSAGES = 8192, 500
log = logging.getLogger("thousandfold.streams")


async def run(config: Config, names: tuple[agents.Name, ...], instance: str, ready_file: pathlib.Path | None) -> int:
    """Run a worker until SIGTERM or SIGINT; return the exit code.

    Raises:
        StoreUnavailable, StoreRefused: the store cannot be used.
        WrongFaust: see `faust_fetch`.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    metrics = prometheus_metrics.Metrics()
    prometheus_metrics.serve(metrics, config.streams.metrics_port)
    faust_fetch.install(config.kafka.fetch_wait_ms)
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="thousandfold-streams-"))
        store = await redis_store.connect(
            config.store.url,
            config.store.prefix,
            layout.compiled(config).schema,
            access=credentials.store(config),
            patience_s=STORE_PATIENCE_S,
        )
        stack.push_async_callback(store.close)
        log.info("compiling kernels; the first time on a machine this takes a while")
        await warming.warm(config)
        producer = await stack.enter_async_context(_producer(config))
        app = build(config, names, instance, folder)
        shell = faust_stage.Shell(config, app, producer, store, metrics)
        stages = agents.connect(app, shell, names)
        await _start(app, shell, stages)
        log.info("ready: stages %s as %s of group %s", ",".join(names), instance, app.conf.id)
        _touch(ready_file)
        await _until_stopped(app, stop)
        await _stop(app, stages)
    return 0


def _touch(ready_file: pathlib.Path | None) -> None:
    if ready_file is not None:
        ready_file.touch()


def group_id(config: Config, names: tuple[agents.Name, ...]) -> str:
    """The consumer group of the workers that run these stages."""
    return "-".join([config.kafka.group, *names])


def build(config: Config, names: tuple[agents.Name, ...], instance: str, folder: str) -> faust.App:
    """The Faust app of a worker, without agents. FINDINGS.md says what each setting is for."""
    session_s = config.kafka.session_timeout_s
    return faust.App(
        group_id(config, names),
        broker=[f"kafka://{server.strip()}" for server in config.kafka.bootstrap.split(",")],
        broker_credentials=_credentials(config),
        broker_session_timeout=session_s,
        broker_heartbeat_interval=session_s / 3,
        broker_rebalance_timeout=session_s + 2,
        broker_commit_interval=0.5,
        broker_max_poll_records=POLLED_MESSAGES,
        stream_buffer_maxsize=BUFFERED_MESSAGES,
        consumer_group_instance_id=instance,
        consumer_auto_offset_reset="earliest",
        consumer_max_fetch_size=max(FETCH_BYTES, kafka_settings.largest_message_bytes(config)),
        store="memory://",
        datadir=folder,
        web_enabled=False,
        topic_disable_leader=True,
        topic_allow_declare=False,
        stream_wait_empty=False,
        loop=asyncio.get_running_loop(),
    )


def _tls(config: Config) -> ssl.SSLContext | None:
    known = credentials.kafka(config)
    if not known.tls:
        return None
    context: ssl.SSLContext = create_ssl_context(
        cafile=known.ca_file or None, certfile=known.certificate_file or None, keyfile=known.key_file or None
    )
    return context


def _credentials(config: Config) -> Any:
    known, context = credentials.kafka(config), _tls(config)
    if known.sasl:
        return faust.SASLCredentials(
            username=known.username, password=known.password, ssl_context=context, mechanism=known.mechanism
        )
    return faust.SSLCredentials(context=context) if context else None


@contextlib.asynccontextmanager
async def _producer(config: Config) -> AsyncIterator[aiokafka.AIOKafkaProducer]:
    """A producer that loses and reorders nothing: idempotent, acknowledged by all."""
    known = credentials.kafka(config)
    producer = aiokafka.AIOKafkaProducer(
        bootstrap_servers=config.kafka.bootstrap,
        security_protocol=known.protocol,
        sasl_mechanism=known.mechanism,
        sasl_plain_username=known.username or None,
        sasl_plain_password=known.password or None,
        ssl_context=_tls(config),
        enable_idempotence=True,
        acks="all",
        linger_ms=2,
        max_batch_size=BATCH_BYTES,
        max_request_size=kafka_settings.largest_message_bytes(config),
    )
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


async def _start(app: faust.App, shell: faust_stage.Shell, stages: list[faust_stage.Stage]) -> None:
    """Start the app and wait for its first assignment."""

    async def revoked(*_: Any, **__: Any) -> None:
        """Finish what is under way, so that the next owner repeats little, and drop the rest: it is read again."""
        await shell.guard(_settle(app, stages))
        shell.forget()

    async def assigned(*given: Any, **_: Any) -> None:
        log.info("assigned: %s", ", ".join(sorted(f"{at.topic}[{at.partition}]" for at in given[1])) or "nothing")

    app.on_partitions_revoked.connect(revoked)
    app.on_partitions_assigned.connect(assigned)
    for stage in stages:
        shell.run(stage.finish_in_order(), f"{stage.name}: finish")
        shell.run(stage.tick(), f"{stage.name}: tick")
    shell.run(_watch_lag(shell), "lag")
    await app.start()


async def _settle(app: faust.App, stages: list[faust_stage.Stage]) -> None:
    async with asyncio.timeout(SETTLE_S):
        for stage in stages:
            await stage.settle()
    await app.consumer.commit()


async def _watch_lag(shell: faust_stage.Shell) -> None:
    while True:
        await asyncio.sleep(1.0)
        shell.show_lag()


async def _until_stopped(app: faust.App, stop: asyncio.Event) -> None:
    """Wait for a signal; a crash of Faust itself ends the process."""
    while not stop.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), 0.5)
        if app.crashed or app.should_stop:
            faust_stage.Shell.die(faust_stage.EXIT_DEFECT, f"Faust stopped by itself: {app.crash_reason!r}")


async def _stop(app: faust.App, stages: list[faust_stage.Stage]) -> None:
    """Stop within a few seconds. What cannot be finished in time is read again: nothing depends on an orderly end."""
    log.info("stopping")
    app.consumer.stop_flow()
    try:
        await _settle(app, stages)
    except TimeoutError:
        log.warning("gave up waiting for what is under way; it will be read again")
    try:
        async with asyncio.timeout(STOP_S):
            await app.stop()
    except TimeoutError:
        log.warning("Faust did not stop in time")
    log.info("stopped")
