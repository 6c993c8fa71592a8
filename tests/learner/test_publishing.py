"""Snapshots come in time, one at a time, and are announced when they are whole."""

import logging

import msgspec
import pytest

from learner.publishing import Publisher
from state import config
from state.disk_snapshots import Parts
from state.snapshots import Manifest


def manifest(step: int, sequence: int) -> Manifest:
    return Manifest(
        version=str(step), step=step, created_ms=step, directory="", files={}, spec="", model="", offsets=(), trained_rows=0,
        sequence=sequence,
    )  # fmt: skip


class SlowWriter:
    """Finishes when told to."""

    def __init__(self) -> None:
        self.pending: Manifest | None = None
        self.done = False
        self.error: OSError | None = None

    @property
    def busy(self) -> bool:
        return self.pending is not None

    def submit(self, manifest: Manifest, parts: Parts) -> None:  # noqa: ARG002
        assert self.pending is None
        self.pending, self.done = manifest, False

    def collect(self, timeout_s: float = 0.0) -> Manifest | None:  # noqa: ARG002
        if not self.done:
            return None
        written, self.pending, self.done = self.pending, None, False
        if self.error is not None:
            raise self.error
        return written


def made(**settings: float) -> tuple[Publisher, SlowWriter, list[Manifest]]:
    announced: list[Manifest] = []
    writer = SlowWriter()
    return Publisher(writer, announced.append, msgspec.convert({"every_s": 10.0} | settings, config.Snapshot)), writer, announced


def test_the_first_snapshot_is_due_with_the_first_record() -> None:
    publisher, _, _ = made()
    assert not publisher.due(0.0, 0, 0)
    assert publisher.due(0.0, 1, 1)


def test_the_next_is_due_when_time_is_up_and_something_was_consumed() -> None:
    publisher, writer, _ = made()
    publisher.publish(manifest(5, 2), {}, 100.0)
    assert not publisher.due(120.0, 9, 3), "one is in flight"
    writer.done = True
    publisher.collect()
    assert not publisher.due(109.9, 9, 3)
    assert publisher.due(110.0, 9, 3)
    assert not publisher.due(200.0, 5, 2), "nothing was consumed"
    assert publisher.due(200.0, 5, 3), "duplicates move the offsets too"


def test_steps_count_as_well_when_they_are_configured() -> None:
    publisher, writer, _ = made(every_steps=100)
    publisher.publish(manifest(50, 2), {}, 0.0)
    writer.done = True
    publisher.collect()
    assert not publisher.due(1.0, 149, 3)
    assert publisher.due(1.0, 150, 3)


def test_it_is_announced_only_once_it_is_whole() -> None:
    publisher, writer, announced = made()
    publisher.publish(manifest(5, 2), {}, 0.0)
    assert publisher.collect() is None
    assert announced == []
    writer.done = True
    assert publisher.collect() == manifest(5, 2)
    assert announced == [manifest(5, 2)]
    assert publisher.collect() is None
    assert len(announced) == 1


def test_a_failed_write_is_counted_and_not_announced(caplog: pytest.LogCaptureFixture) -> None:
    publisher, writer, announced = made()
    publisher.publish(manifest(5, 2), {}, 0.0)
    writer.done, writer.error = True, OSError(28, "No space left on device")
    with caplog.at_level(logging.CRITICAL):
        assert publisher.collect() is None
    assert (publisher.failures, announced, publisher.newest) == (1, [], None)
    assert publisher.due(10.0, 6, 3)


def test_a_resumed_publisher_waits_for_something_new() -> None:
    publisher, _, _ = made()
    publisher.resume(manifest(5, 2), 100.0)
    assert publisher.newest == manifest(5, 2)
    assert not publisher.due(500.0, 5, 2)
    assert not publisher.due(101.0, 6, 3)
    assert publisher.due(110.0, 6, 3)
