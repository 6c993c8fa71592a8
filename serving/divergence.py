"""Whether serving sees the numbers that the model was trained on.

Training reads shown lists, filtered, joined and perhaps sampled; serving reads candidates. Where the two do not agree about a
number, its standardised value and all that was learned of it are wrong, and nothing else would say so. Of one request in
`divergence.every` the numbers are merged into running moments by scenario, and these are held against those that the snapshot
carries (`models.moments.observe`, corrected for negative down-sampling): difference of means in standard deviations, logarithm
of the ratio of deviations, difference of the shares of values that are absent or 0, as which the feature engine writes what
was not sent.
"""

import math
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from models import base, moments
from serving.live import Scores
from state import config as configuration
from state import ids, spec

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
OTHERS, ALL = "(other)", "(all)"
"""Requests of scenarios to which the model has given no slot, and all where it does not read the scenario."""
CALM = 0.8
"""An alarm ends below this share of the threshold, so that one on the edge does not flicker."""
ROUNDING = 1e-6
"""Deviations are told apart down to this share of the mean, about what a float32 holds."""


class Side(NamedTuple):
    """Moments of a number: weight of its rows (0: never seen), share that is absent or 0; mean and deviation of those present."""

    rows: float
    missing: float
    mean: float | None
    deviation: float | None


class Row(NamedTuple):
    """A number in a scenario. Measures are None where a side lacks rows or values; `worst` is in units of the thresholds."""

    number: str
    scenario: str
    trained: Side
    served: Side
    mean: float | None
    deviation: float | None
    missing: float | None
    worst: float
    state: Literal["few", "calm", "alarm"]


class _Seen:
    """What serving saw of a scenario."""

    def __init__(self, name: str, numbers: int) -> None:
        self.name, self.requests, self.fresh = name, 0, False
        self.moments = np.zeros((1, moments.KEPT, numbers))
        self.alarms = [False] * numbers


class Watch:
    """The running moments of what this process scores. Its methods run on one thread."""

    def __init__(self, config: configuration.Config) -> None:
        self._limits = config.divergence
        self._numbers = spec.number_names(config.features)
        self._keep = 0.5 ** (1 / config.divergence.half_life_requests)
        self._scenarios: dict[int, _Seen] = {}
        self._unnamed = ALL if base.geometry(config).scenario < 0 else OTHERS
        self._turn = 0

    def observe(self, scorer: Scores, scenario: str | int, x: F32, scores: F32) -> None:
        """Look at a request, if it is its turn: raw numbers x (R, D) of its candidates, best first by scores (R,)."""
        if not self._limits.every or not self._numbers or not len(x):
            return
        self._turn += 1
        if (self._turn - 1) % self._limits.every:
            return
        if 0 < self._limits.top < len(x):
            x = x[np.argpartition(-scores, self._limits.top - 1)[: self._limits.top]]
        known = ids.of(scenario)
        own = bool(scorer.observed(known)[0])
        key = known if own else 0
        if key not in self._scenarios:
            self._scenarios[key] = _Seen(str(scenario) if own else self._unnamed, len(self._numbers))
        seen = self._scenarios[key]
        seen.moments[:, (moments.ROWS, moments.PRESENT, moments.SQUARES, moments.FILLED)] *= self._keep
        moments.observe(seen.moments, np.array(x), np.zeros(len(x), np.int64), np.ones(len(x)), np.inf)
        seen.requests += 1
        seen.fresh = True

    def compare(self, scorer: Scores) -> tuple[list[Row], list[Row]]:
        """Every number in the scenarios looked at since the last comparison, and those of them whose alarm began now.

        A scenario that the model no longer knows (after a rollback) is forgotten, its rows say `few` for the last time.
        """
        rows, began = [], []
        for key, seen in list(self._scenarios.items()):
            if key and not scorer.observed(key)[0]:
                del self._scenarios[key]
                seen.requests = 0
                rows += self._rows(scorer, key, seen)
            elif seen.fresh:
                seen.fresh = False
                before = list(seen.alarms)
                now = self._rows(scorer, key, seen)
                seen.alarms = [row.state == "alarm" for row in now]
                rows += now
                began += [row for row, was in zip(now, before, strict=True) if row.state == "alarm" and not was]
        return rows, began

    def table(self, scorer: Scores) -> list[Row]:
        """Every number in every scenario looked at, the worst first."""
        found = [row for key, seen in self._scenarios.items() for row in self._rows(scorer, key, seen)]
        return sorted(found, key=lambda row: (-row.worst, row.scenario, row.number))

    def _rows(self, scorer: Scores, key: int, seen: _Seen) -> list[Row]:
        _, trained = scorer.observed(key)
        enough = seen.requests >= self._limits.min_requests
        return [
            self._row(name, seen.name, side(trained[:, j]), side(seen.moments[0, :, j]), enough, seen.alarms[j])
            for j, name in enumerate(self._numbers)
        ]

    def _row(self, number: str, scenario: str, trained: Side, served: Side, enough: bool, alarmed: bool) -> Row:
        limits = self._limits
        if not enough or trained.rows < limits.min_rows:
            return Row(number, scenario, trained, served, None, None, None, 0.0, "few")
        mean, deviation = apart(trained, served)
        missing = served.missing - trained.missing
        measured = ((mean, limits.mean), (deviation, limits.deviation), (missing, limits.missing))
        worst = max(abs(value) / limit for value, limit in measured if value is not None)
        alarm = worst >= (CALM if alarmed else 1.0)
        return Row(number, scenario, trained, served, mean, deviation, missing, worst, "alarm" if alarm else "calm")


def side(state: F64) -> Side:
    """What the moments (KEPT,) of a number say."""
    rows, present = float(state[moments.ROWS]), float(state[moments.PRESENT])
    missing = 1.0 - float(state[moments.FILLED]) / rows if rows > 0 else 0.0
    if present <= 0:
        return Side(rows, missing, None, None)
    return Side(rows, missing, float(state[moments.MEAN]), math.sqrt(max(float(state[moments.SQUARES]) / present, 0.0)))


def apart(trained: Side, served: Side) -> tuple[float | None, float | None]:
    """Difference of the means, served less trained, in standard deviations (of both sides, pooled), and log ratio of these."""
    if trained.mean is None or served.mean is None or trained.deviation is None or served.deviation is None:
        return None, None
    least = ROUNDING * max(abs(trained.mean), abs(served.mean), 1e-30)
    one, other = max(trained.deviation, least), max(served.deviation, least)
    return (served.mean - trained.mean) / math.hypot(one, other) * math.sqrt(2), math.log(other / one)
