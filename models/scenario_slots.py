"""Which scenario owns which parameters, decided while data arrives.

A model with parameters per scenario has room for `scenarios.slots` of them from the start, so that neither its shapes nor its
snapshots change when a scenario appears. Slot 0 belongs to nobody: it is every scenario that has no slot yet, and a model
serves it from what scenarios share. A scenario gets a slot with its first training row, and its own parameters count as far as
its rows have earned it, n / (n + `scenarios.prior_rows`), so that a small one is not starved by weights that it cannot train.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from state import config
from state.kernels import kernel

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
SERVING = ("slots.keys", "slots.rows", "slots.used")
OWN = "own"
"""A part of the dotted name of a parameter that scenarios own: its numbers lie slot by slot, as many for each."""


class Room(NamedTuple):
    """Slots there are, slots in use, and rows trained on since the model began whose scenario found none."""

    slots: int = 0
    used: int = 0
    rows_without: int = 0


class Span(NamedTuple):
    """A parameter that scenarios own: where it starts in the flat vector, and its numbers for each slot."""

    start: int
    each: int


def owned(shapes: Mapping[str, tuple[int, ...]], slots: int) -> list[Span]:
    """The parameters of these shapes that scenarios own, in the order of the flat vector."""
    found, at = [], 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        if OWN in name.split(".") and size:
            found.append(Span(at, size // (slots + 1)))
        at += size
    return found


def as_trained(settings: config.Config, arrays: Mapping[str, npt.NDArray[Any]]) -> config.Config:
    """The configuration with as many slots as the snapshot of `arrays` has."""
    slots = len(arrays["slots.keys"])
    return msgspec.structs.replace(settings, scenarios=msgspec.structs.replace(settings.scenarios, slots=slots))


class Slots:
    """Scenario hash to slot 1 to N, in order of appearance, and the rows that each has been trained on."""

    def __init__(self, settings: config.Scenarios) -> None:
        self.prior = settings.prior_rows
        self.keys = np.zeros(settings.slots, np.uint64)
        self.rows = np.zeros(settings.slots + 1, np.int64)
        self.used = np.zeros(1, np.int64)
        self._sort()

    def _sort(self) -> None:
        self.order = np.argsort(self.keys[: self.used[0]]) + 1
        self.sorted = self.keys[self.order - 1]

    def find(self, scenarios: U64) -> I64:
        """Slots (n,) of scenario hashes (n,), 0 where it has none."""
        return find(scenarios, self.sorted, self.order)

    def admit(self, scenarios: U64) -> I64:
        """Like `find` for rows that are trained on: a new scenario takes a free slot while there is one."""
        (found, strangers), used = _sought(scenarios, self.sorted, self.order), int(self.used[0])
        if used == len(self.keys) or not strangers:
            return found
        new = np.unique(scenarios[found == 0])[: len(self.keys) - used]
        self.keys[used : used + len(new)] = new
        self.used[0] += len(new)
        self._sort()
        return self.find(scenarios)

    @property
    def room(self) -> Room:
        """What is left of it."""
        return Room(len(self.keys), int(self.used[0]), int(self.rows[0]))

    def observe(self, slots: I64) -> None:
        """Count rows (n,) that were trained on; those of slot 0 are scenarios that found no room."""
        count(slots, self.rows)

    def earned(self, slots: I64) -> F32:
        """How far each row's own parameters count (n,): 0 for slot 0, towards 1 with its scenario's rows."""
        return earned(slots, self.rows, self.prior)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The state as views, for a snapshot."""
        return {"slots.keys": self.keys, "slots.rows": self.rows, "slots.used": self.used}

    def load(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take over a state that `arrays` returned (copied)."""
        for name, own in self.arrays().items():
            own[:] = arrays[name]
        self._sort()


@kernel
def find(scenarios: U64, keys: U64, slots: I64) -> I64:
    """Slots of scenarios by their sorted keys; neighbouring rows are often of one."""
    out, last, place = np.zeros(len(scenarios), np.int64), np.uint64(0), -1
    for i in range(len(scenarios)):
        if place < 0 or scenarios[i] != last:
            last, place = scenarios[i], np.searchsorted(keys, scenarios[i])
        if place < len(keys) and keys[place] == last:
            out[i] = slots[place]
    return out


@kernel
def _sought(scenarios: U64, keys: U64, slots: I64) -> tuple[I64, bool]:
    """`find`, and whether any of them has none."""
    found, strangers = find(scenarios, keys, slots), False
    for slot in found:
        strangers |= slot == 0
    return found, strangers


@kernel
def count(slots: I64, rows: I64) -> None:
    """`Slots.observe` inside kernels."""
    for slot in slots:
        rows[slot] += 1


@kernel
def earned(slots: I64, rows: I64, prior: float) -> F32:
    """`Slots.earned` inside kernels."""
    out = np.zeros(len(slots), np.float32)
    for i in range(len(slots)):
        if slots[i] > 0:
            n = np.float64(rows[slots[i]])
            out[i] = n / (n + prior)
    return out
