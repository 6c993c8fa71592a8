"""A learner without a broker: made-up episodes, a source and a log in memory. For the warm-up at start, and for tests."""

from collections.abc import Iterable, Sequence

import msgspec
import numpy as np

from learner import publishing
from learner.episodes import Message
from learner.loop import DeadLetter, Loop, Note, layout_of
from state import columns, config, ids, plan
from state.disk_snapshots import Parts
from state.snapshots import Manifest

SCENARIOS = ("even", "odd")


class MemorySource:
    """Gives out what it was filled with, `limit` messages at a time."""

    def __init__(self, messages: Iterable[Message] = ()) -> None:
        self.messages = list(messages)

    def fetch(self, limit: int, deadline_s: float) -> list[Message]:  # noqa: ARG002 - nothing to wait for
        """The next messages."""
        found, self.messages = self.messages[:limit], self.messages[limit:]
        return found

    def lag(self) -> dict[tuple[str, int], int]:
        """What is left, by (topic, partition)."""
        out: dict[tuple[str, int], int] = {}
        for m in self.messages:
            out[m.topic, m.partition] = out.get((m.topic, m.partition), 0) + 1
        return out


class MemoryLog:
    """Keeps records and dead letters."""

    def __init__(self) -> None:
        self.records: list[plan.Record] = []
        self.letters: list[DeadLetter] = []
        self.notes: list[Note] = []

    def write(self, record: bytes, letters: Sequence[DeadLetter], notes: Sequence[Note] = ()) -> None:
        """Keep them."""
        self.records.append(plan.decode(record))
        self.letters += letters
        self.notes += notes


class MemoryWriter:
    """Keeps copies of what it was given, whole at once."""

    def __init__(self) -> None:
        self.snapshots: list[tuple[Manifest, Parts]] = []
        self._written: Manifest | None = None

    @property
    def busy(self) -> bool:
        """Whether a snapshot was not collected yet."""
        return self._written is not None

    def submit(self, manifest: Manifest, parts: Parts) -> None:
        """Keep a copy."""
        copies = {part: {name: array.copy() for name, array in arrays.items()} for part, arrays in parts.items()}
        self.snapshots.append((manifest, copies))
        self._written = manifest

    def collect(self, timeout_s: float = 0.0) -> Manifest | None:  # noqa: ARG002 - nothing to wait for
        """The manifest, once."""
        written, self._written = self._written, None
        return written


def message(settings: config.Config, offset: int, seed: int, lists: int = 8, partition: int = 0) -> Message:
    """A message of made-up episodes: up to 5 items a list, up to 4 support rows, 20 users, 2 scenarios."""
    rng = np.random.default_rng(seed)
    layout = layout_of(settings)
    n_items, n_support = rng.integers(1, 6, lists).astype("<i4"), rng.integers(0, 5, lists).astype("<i4")
    rows, support = int(n_items.sum()), int(n_support.sum())
    user = rng.integers(1, 21, lists).astype("<u8")
    hashes = np.array([ids.of(name) for name in SCENARIOS], "<u8")
    ts = 1_000_000 + 1_000 * offset + np.arange(lists, dtype="<i8")
    label = (rng.random((rows, layout.objectives)) < 0.4).astype("<f4")
    packed = {
        "request": rng.integers(1, 2**63, lists).astype("<u8"), "user": user, "scenario": hashes[user % 2], "task": user,
        "ts": ts, "version": np.zeros(lists, "<i4"), "n_items": n_items, "n_support": n_support,
        "item": rng.integers(1, 100, rows).astype("<u8"), "ids": rng.integers(1, 100, (rows, layout.ids)).astype("<u8"),
        "x": rng.standard_normal((rows, layout.numbers)).astype("<f4"), "label": label, "weight": np.ones_like(label),
        "s_ids": rng.integers(1, 100, (support, layout.ids)).astype("<u8"),
        "s_x": rng.standard_normal((support, layout.numbers)).astype("<f4"),
        "s_label": (rng.random((support, layout.objectives)) < 0.4).astype("<f4"), "s_ts": np.zeros(support, "<i8"),
    }  # fmt: skip
    value = columns.pack(packed, spec=layout.spec, scenarios=dict(zip(map(str, hashes.tolist()), SCENARIOS, strict=True)))
    return Message(settings.topics.episodes, partition, offset, None, value)


def warm_up(settings: config.Config) -> None:
    """Run a small learner of the same configuration once, so that every kernel is compiled and every pool started."""
    embedding = msgspec.structs.replace(settings.embedding, capacity=1024)
    learner = msgspec.structs.replace(settings.learner, dedup_rows=1024, window_rows=100)
    small = msgspec.structs.replace(settings, embedding=embedding, learner=learner)
    source = MemorySource(message(small, offset, seed=offset, lists=32) for offset in range(4))
    publisher = publishing.Publisher(MemoryWriter(), lambda _: None, small.snapshot)
    loop = Loop(small, source, MemoryLog(), publisher)
    while loop.once():
        pass
