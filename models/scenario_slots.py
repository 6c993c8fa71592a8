"""Which scenario owns which parameters, decided while data arrives.

A model with parameters per scenario has room for `scenarios.slots` of them from the start, so that neither its shapes nor its
snapshots change when a scenario appears. Slot 0 belongs to nobody: it is every scenario that has no slot yet, and a model
serves it from what scenarios share. A scenario gets a slot with its first training row, and its own parameters count as far as
its rows have earned it, n / (n + `scenarios.prior_rows`), so that a small one is not starved by weights that it cannot train.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from state import config

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
SERVING = ("slots.keys", "slots.rows", "slots.used")


class Slots:
    """Scenario hash to slot 1 to N, in order of appearance, and the rows that each has been trained on."""

    def __init__(self, settings: config.Scenarios) -> None:
        self.prior = settings.prior_rows
        self.keys = np.zeros(settings.slots, np.uint64)
        self.rows = np.zeros(settings.slots + 1, np.int64)
        self.used = np.zeros(1, np.int64)
        self._places: dict[int, int] = {}

    def find(self, scenarios: U64) -> I64:
        """Slots (n,) of scenario hashes (n,), 0 where it has none."""
        return np.array([self._places.get(s, 0) for s in scenarios.tolist()], np.int64)

    def admit(self, scenarios: U64) -> I64:
        """Like `find` for rows that are trained on: a new scenario takes a free slot while there is one."""
        for scenario in sorted(set(scenarios.tolist()) - self._places.keys()):
            if self.used[0] < len(self.keys):
                self.keys[self.used[0]] = scenario
                self.used[0] += 1
                self._places[scenario] = int(self.used[0])
        return self.find(scenarios)

    def observe(self, slots: I64) -> None:
        """Count rows (n,) that were trained on; those of slot 0 are scenarios that found no room."""
        self.rows += np.bincount(slots, minlength=len(self.rows))

    def earned(self, slots: I64) -> F32:
        """How far each row's own parameters count (n,): 0 for slot 0, towards 1 with its scenario's rows."""
        share = self.rows / (self.rows + self.prior)
        share[0] = 0.0
        return np.asarray(share.astype(np.float32)[slots])

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The state as views, for a snapshot."""
        return {"slots.keys": self.keys, "slots.rows": self.rows, "slots.used": self.used}

    def load(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take over a state that `arrays` returned (copied)."""
        for name, own in self.arrays().items():
            own[:] = arrays[name]
        self._places = {int(key): i + 1 for i, key in enumerate(self.keys[: self.used[0]].tolist())}
