"""Drift: ADWIN (Bifet and Gavaldà 2007, river's) on the logloss of each scenario, one value per shown list."""

import math
from collections.abc import Iterable

from river import drift


class Drift:
    """One detector per scenario. A detector's window is not part of a snapshot: after a restart it fills anew."""

    def __init__(self, delta: float = 0.002) -> None:
        """`delta` is the bound on the probability of a false alarm."""
        self._delta = delta
        self._detectors: dict[str, drift.ADWIN] = {}

    def update(self, scenarios: Iterable[str], losses: Iterable[float]) -> dict[str, int]:
        """Take in one mean logloss per list, NaN where there is none; returns how many drifts each scenario showed."""
        found: dict[str, int] = {}
        for scenario, loss in zip(scenarios, losses, strict=True):
            if math.isnan(loss):
                continue
            detector = self._detectors.get(scenario)
            if detector is None:
                detector = self._detectors[scenario] = drift.ADWIN(delta=self._delta)
            detector.update(loss)
            if detector.drift_detected:
                found[scenario] = found.get(scenario, 0) + 1
        return found
