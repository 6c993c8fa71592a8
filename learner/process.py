"""From a configuration to a running learner: connect, resume, run until asked to stop."""

import importlib.metadata
import logging
import os
import pathlib
import time
from collections.abc import Callable

from learner import kafka_input, kafka_output, loop, products, prometheus_metrics, publishing, redis_supports, rehearsal
from models import base
from state import disk_snapshots, snapshots
from state.config import Config, ConfigError

log = logging.getLogger("learner")


def run(settings: Config, ready_file: pathlib.Path | None, stopping: Callable[[], bool]) -> int:
    """Run until asked to stop; returns the exit code.

    Raises:
        ConfigError: the snapshots were made with another configuration.
    """
    try:
        return _run(settings, ready_file, stopping)
    except kafka_output.Fenced as error:
        log.error("%s; this one stops without a snapshot", error)  # noqa: TRY400 - the message says it all
        return 3
    except kafka_output.Interrupted as error:
        log.warning("%s", error)
        return 0


def _run(settings: Config, ready_file: pathlib.Path | None, stopping: Callable[[], bool]) -> int:
    rehearsal.warm_up(settings)
    log.info(
        "torch's products by %s (learner.products = %s)",
        products.apply(settings, base.geometry(settings).dense),
        settings.learner.products,
    )
    output = kafka_output.KafkaOutput(settings, stopping)
    output.open()
    source = kafka_input.KafkaInput(settings)
    writer = disk_snapshots.Writer(settings.snapshot.directory, settings.snapshot.keep)
    publisher = publishing.Publisher(writer, output.announce, settings.snapshot)
    started_ms = time.time_ns() // 1_000_000
    supports = redis_supports.RedisSupports(settings) if settings.support.mode == "meta_inputs" else None
    origin = loop.Origin(_code(), started_ms)
    learner = loop.Loop(settings, source, output, publisher, origin=origin, support_store=supports)
    log.info("engine of the steps: %s", learner.trainer.choice)
    refused = _resume(settings, learner)
    writer.prepare(learner.parts())
    learner.offsets = source.assign(learner.offsets)
    host = os.environ.get("THOUSANDFOLD_METRICS_HOST", "127.0.0.1")
    share = settings.learner.baseline_share if learner.measures.baseline is not None else 0.0
    collector = prometheus_metrics.ReportCollector(lambda: learner.report, share, source.lost, refused)
    close_metrics = prometheus_metrics.serve(collector, settings.learner.metrics_port, host)
    log.info("ready at step %d, %d partitions of %s", learner.step, settings.kafka.partitions, settings.topics.episodes)
    if ready_file is not None:
        ready_file.touch()
    try:
        while not stopping():
            learner.once()
        learner.stop()
        log.info("stopped at step %d, %d rows trained", learner.step, learner.trained_rows)
    finally:
        close_metrics()
        source.close()
        if supports is not None:
            supports.close()
    return 0


def _resume(settings: Config, learner: loop.Loop) -> int:
    """Load the newest intact snapshot, if there is one; returns how many damaged ones were passed over."""
    refused: list[str] = []

    def refuse(version: str, reason: str) -> None:
        refused.append(version)
        log.error("snapshot %s refused: %s; using the one before it", version, reason)

    directory = settings.snapshot.directory
    manifest = disk_snapshots.newest_intact(directory, refused=refuse)
    if manifest is None:
        log.info("no snapshot in %s: a fresh learner, from the earliest episodes", directory)
        return len(refused)
    parts = (snapshots.SERVING, snapshots.TRAINING)
    arrays = {name: array for part in parts for name, array in disk_snapshots.read(directory, manifest, part).items()}
    try:
        learner.load(manifest, arrays)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"snapshot.directory: {directory}, snapshot {manifest.version}: {error}") from error
    log.info("resumed from snapshot %s, step %d", manifest.version, manifest.step)
    return len(refused)


def _code() -> str:
    """What code runs: the installed version, or the commit that an image was built from."""
    try:
        version = importlib.metadata.version("thousandfold")
    except importlib.metadata.PackageNotFoundError:
        version = "source"
    commit = os.environ.get("THOUSANDFOLD_COMMIT", "")
    return f"{version}+{commit}" if commit else version
