"""What the learner leaves for serving where `support.mode` is `meta_inputs`: its trunk's view of every row that was trained on.

After the steps of a fetch the published trunk runs once more over the fetch's rows, and what it makes of them goes into the
support sets of their tasks, which are read from the store when a task is met and written back at once. Rows that are there
already keep what the trunk of their time made of them; they go when they are too old, when K newer ones came, or, at serving,
when the trunk has moved too far (`state.meta_supports`).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from learner import episodes
from learner.step import Trainer
from models import base
from state import config, meta_supports, supports
from state.supports import U64

PROBE_ROWS = 256
"""Rows by which the drift of the trunk is measured: the newest ones at a snapshot, until the next."""
SERVING = ("trunk.lineage", "trunk.moved", "trunk.step")
Arrays = dict[str, npt.NDArray[Any]]


class Store(Protocol):
    """Support sets by task. It never fails: what cannot be read is absent, what cannot be written is counted in `failures`."""

    failures: int

    def read(self, tasks: U64) -> list[bytes | None]:
        """The packed set of each task."""

    def write(self, tasks: U64, values: Sequence[bytes], ttl_ms: int) -> None:
        """Replace sets, which expire after `ttl_ms`."""


class MemoryStore:
    """A store of this process, for tests and benchmarks."""

    def __init__(self) -> None:
        self.sets: dict[int, bytes] = {}
        self.failures = 0

    def read(self, tasks: U64) -> list[bytes | None]:
        """See `Store`."""
        return [self.sets.get(task) for task in tasks.tolist()]

    def write(self, tasks: U64, values: Sequence[bytes], ttl_ms: int) -> None:  # noqa: ARG002 - nothing expires here
        """See `Store`."""
        self.sets.update(zip(tasks.tolist(), values, strict=True))


class Keeper:
    """The sets of the tasks met lately, and how far the trunk has moved."""

    def __init__(self, settings: config.Config, trainer: Trainer, store: Store, lineage: int) -> None:
        """`lineage` names this learner's parameters, from their start on; a snapshot that is loaded brings its own."""
        self._trainer, self._store = trainer, store
        self.shape = shape_of(trainer)
        self._sets = supports.Sets(settings, shape=meta_supports.layout(settings, self.shape))
        self.trunk = meta_supports.Trunk(lineage, 0.0, 0)
        geometry = base.geometry(settings)
        self._probe = (
            np.zeros((0, len(trainer.table.columns.field_of)), np.uint64),
            np.zeros((0, len(geometry.numbers)), np.float32),
        )
        self._newest = self._probe
        self._before: meta_supports.Parts | None = None
        self.rows = 0

    @property
    def failures(self) -> int:
        """Reads and writes that the store did not answer."""
        return self._store.failures

    @property
    def foreign(self) -> int:
        """Sets of another feature spec, objective or model that were met; they started empty."""
        return self._sets.foreign

    def put(self, lists: episodes.Lists) -> None:
        """Leave the rows of lists that were trained on in the sets of their tasks."""
        c = lists.columns
        if not lists.rows:
            return
        tasks = self._sets.missing(c["task"])
        self._sets.fill(tasks, self._store.read(tasks))
        rows = meta_supports.rows_of(self._sets.layout, self.trunk, self._run(c["ids"], c["x"]))
        of = np.repeat(np.arange(lists.size), c["n_items"])
        for name in ("ts", "request", "scenario", "version"):
            rows[name] = c[name][of]
        # Episodes do not name items; a row's place in its list tells it from the others of the list just as well.
        rows["item"] = np.arange(len(of)) - (np.cumsum(c["n_items"]) - c["n_items"])[of]
        rows["label"] = c["label"]
        self._sets.insert(c["task"], c["n_items"].astype(np.int32), rows)
        self._store.write(*self._sets.writes(), self._sets.layout.max_age_ms)
        self.rows += lists.rows
        self._newest = c["ids"][-PROBE_ROWS:].copy(), c["x"][-PROBE_ROWS:].copy()

    def measure(self, step: int) -> None:
        """A snapshot is made of `step`: move the odometer by what the trunk has changed since the one before."""
        moved = self.trunk.moved
        if self._before is not None:
            moved += change(self._before, self._run(*self._probe))
        self.trunk = self.trunk._replace(moved=moved, step=step)
        self._probe = self._newest
        self._before = self._run(*self._probe) if len(self._probe[0]) else None

    def _run(self, ids: base.U64, x: base.F32) -> meta_supports.Parts:
        found = self._trainer.trunk(ids, x)
        return meta_supports.Parts(*(part.numpy() for part in (found.hidden, found.gate, found.offset, found.shift)))

    def arrays(self) -> Arrays:
        """What resuming needs beside `serving`."""
        return {"probe_ids": self._probe[0], "probe_x": self._probe[1]}

    def serving(self) -> Arrays:
        """What tells serving which trunk a snapshot has."""
        values = (np.uint64(self.trunk.lineage), np.float64(self.trunk.moved), np.int64(self.trunk.step))
        return {name: np.array([value]) for name, value in zip(SERVING, values, strict=True)}

    def load(self, serving: Mapping[str, npt.NDArray[Any]], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take over a snapshot whose parameters the trainer has taken over already."""
        lineage, moved, step = (serving[name][0] for name in SERVING)
        self.trunk = meta_supports.Trunk(int(lineage), float(moved), int(step))
        self._probe = self._newest = arrays["probe_ids"].copy(), arrays["probe_x"].copy()
        self._before = self._run(*self._probe) if len(self._probe[0]) else None


def shape_of(trainer: Trainer) -> meta_supports.Shape:
    """Sizes of the meta inputs of a trainer's model."""
    numbers = len(base.geometry(trainer.settings).numbers)
    width = len(trainer.table.columns.field_of)
    found = trainer.trunk(np.zeros((1, width), np.uint64), np.zeros((1, numbers), np.float32))
    return meta_supports.Shape(found.hidden.shape[1], found.hidden.shape[2], found.gate.shape[2], found.shift.shape[2])


def change(before: meta_supports.Parts, now: meta_supports.Parts) -> float:
    """How much the meta inputs of the same rows changed, as a share of what they are now; offsets count like any other."""
    difference = sum(float(np.square(a - b, dtype=np.float64).sum()) for a, b in zip(before, now, strict=True))
    size = sum(float(np.square(part, dtype=np.float64).sum()) for part in now)
    return float(np.sqrt(difference / size)) if size else float(difference > 0)
