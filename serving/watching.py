"""Which snapshot should answer: the newest intact one, or the one that an operator pinned. Files come in as a `Shelf`."""

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from serving.live import Live, Model

log = logging.getLogger("serving")


class Entry(NamedTuple):
    """A snapshot that can be had."""

    version: str
    step: int
    created_ms: int


class Refused(RuntimeError):
    """A snapshot must not answer: it is damaged, of another feature spec, or of a model that this build does not know."""


class Shelf(Protocol):
    """Where snapshots lie."""

    def entries(self) -> Sequence[Entry]:
        """What is there, newest first; cheap."""
        ...

    def load(self, entry: Entry) -> Model:
        """Read, check and build one.

        Raises:
            Refused: it is there and must not be used.
            FileNotFoundError: it has been removed in the meantime.
        """
        ...


class Watcher:
    """Follows a shelf. Its methods may run in another thread, one at a time; only `Live.swap` touches what requests read."""

    def __init__(
        self, shelf: Shelf, live: Live, clock_ms: Callable[[], int], on_refused: Callable[[], object] = lambda: None
    ) -> None:
        self._shelf = shelf
        self._live = live
        self._clock_ms = clock_ms
        self._on_refused = on_refused
        self.refused: dict[str, str] = {}
        self.pinned: str | None = None

    def look(self) -> Model | None:
        """Swap in the newest intact snapshot newer than the current one, unless one is pinned; None when nothing changed."""
        if self.pinned is not None:
            return None
        entries = self._shelf.entries()
        self.refused = {e.version: self.refused[e.version] for e in entries if e.version in self.refused}
        for entry in entries:
            current = self._live.current
            if current is not None and (entry.version == current.version or entry.created_ms < current.created_ms):
                return None
            if entry.version not in self.refused and (model := self._load(entry)) is not None:
                self._live.swap(model, self._clock_ms())
                return model
        return None

    def rollback(self, version: str | None) -> Model | None:
        """Pin `version`, or the newest intact one older than the current; None if there is none, and then nothing changes."""
        current = self._live.current
        for entry in self._shelf.entries():
            older = current is None or (entry.created_ms, entry.step) < (current.created_ms, current.step)
            if entry.version != version if version is not None else not older:
                continue
            if current is not None and entry.version == current.version:
                self.pinned = current.version
                return current
            if (model := self._load(entry)) is not None:
                self._live.swap(model, self._clock_ms())
                self.pinned = model.version
                return model
        return None

    def follow(self) -> None:
        """Unpin: the next look takes the newest snapshot again."""
        self.pinned = None

    def entries(self) -> Sequence[Entry]:
        """What lies on the shelf."""
        return self._shelf.entries()

    def _load(self, entry: Entry) -> Model | None:
        try:
            return self._shelf.load(entry)
        except Refused as error:
            self.refused[entry.version] = str(error)
            self._on_refused()
            log.warning("snapshot %s is refused: %s; the previous one goes on", entry.version, error)
        except FileNotFoundError:
            log.info("snapshot %s was removed while it was being read", entry.version)
        return None
