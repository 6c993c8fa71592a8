"""When a snapshot is due, and that it is announced only once it is whole on the disk."""

import logging
from collections.abc import Callable
from typing import Protocol

from state import config
from state.disk_snapshots import Parts
from state.snapshots import Manifest

log = logging.getLogger(__name__)


class Writer(Protocol):
    """What `state.disk_snapshots.Writer` does."""

    @property
    def busy(self) -> bool:
        """Whether a snapshot is in flight."""

    def submit(self, manifest: Manifest, parts: Parts) -> None:
        """Copy the arrays and start writing."""

    def collect(self, timeout_s: float = 0.0) -> Manifest | None:
        """The manifest of what was written since the last call; raises OSError if it failed."""


class Publisher:
    """Decides, writes, announces. A failed write is logged and counted; learning goes on and the next one is tried in time."""

    def __init__(self, writer: Writer, announce: Callable[[Manifest], None], settings: config.Snapshot) -> None:
        self._writer, self._announce, self._settings = writer, announce, settings
        self._at_s = float("-inf")
        self._step = self._sequence = 0
        self.newest: Manifest | None = None
        self.failures = 0

    def resume(self, manifest: Manifest, now_s: float) -> None:
        """Start from a published snapshot."""
        self.newest, self._at_s = manifest, now_s
        self._step, self._sequence = manifest.step, manifest.sequence

    def due(self, now_s: float, step: int, sequence: int) -> bool:
        """Whether to publish now: something was consumed since the last one, none is in flight, and time or steps are up."""
        if self._writer.busy or sequence == self._sequence:
            return False
        every = self._settings.every_steps
        return now_s - self._at_s >= self._settings.every_s or (every > 0 and step - self._step >= every)

    def publish(self, manifest: Manifest, parts: Parts, now_s: float) -> None:
        """Hand the state to the writer; the arrays may change as soon as this returns."""
        self._at_s, self._step, self._sequence = now_s, manifest.step, manifest.sequence
        self._writer.submit(manifest, parts)

    def collect(self, timeout_s: float = 0.0) -> Manifest | None:
        """Announce a snapshot that has become whole since the last call, and return its manifest."""
        try:
            written = self._writer.collect(timeout_s)
        except OSError:
            self.failures += 1
            log.exception("the snapshot could not be written; learning goes on, check space and rights of the folder")
            return None
        if written is not None:
            self.newest = written
            self._announce(written)
        return written
