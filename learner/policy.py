"""The mode `auto`: a scenario is adapted only while its gain on the same rows is significant.

While a scenario is off, `learner.evidence` tests "adaptation gains nothing" with every list that it scores both ways. The j-th
test since it went off may last `FIRST` x 2^(j-1) lists and must reach j (j + 1) / alpha, so that a scenario without any gain is
ever turned on with probability alpha = `meta.auto_alarm_rate` at most (the sum of 1 / (j (j + 1)) is one), and one whose gain
comes late waits no longer than twice the time.

Off, a scenario is on trial: `meta.auto_trial_share` of its lists meta-learn, so that what is tested is no unprepared tower. The
test stays what it is, for any way in which the model may have learned from the lists before.

While it is on, the same test begins again and again and must reach 1 / alpha within `meta.auto_patience` times the lists that
such a test took so far: that is the hysteresis. If it does not, or if the test of the opposite, "adaptation does no harm",
reaches 1 / alpha before, the scenario goes off. So a gain that has ended is noticed after that many lists, but for a probability
of alpha.

A pure function of the lists in order: where fetches begin does not matter, and the same stream gives the same decisions.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from learner import evidence
from state import config

F64 = npt.NDArray[np.float64]
U64 = npt.NDArray[np.uint64]
FIRST = 10_000
LEAST = 500
"""A scenario that is on is judged on so many lists at least before its patience ends."""


@dataclasses.dataclass
class Scenario:
    """Where a scenario stands."""

    name: str
    on: bool = False
    gain: evidence.Seen = dataclasses.field(default_factory=evidence.fresh)
    harm: evidence.Seen = dataclasses.field(default_factory=evidence.fresh)
    tests: int = 1
    """Of those since it went off, which one runs."""
    took: int = 0
    """Most lists that a test took to find the gain, since it went on."""
    changes: int = 0


class Judged(NamedTuple):
    """What metrics show of a scenario: the evidence is log10 of the e-value of a gain, `wanted` where it turns or stays on."""

    on: bool
    evidence: float
    wanted: float
    changes: int


class Policy:
    """Decides for every scenario that is `auto`."""

    def __init__(self, settings: config.MetaLearning) -> None:
        self._threshold, self._patience = -math.log(settings.auto_alarm_rate), settings.auto_patience
        self.scenarios: dict[int, Scenario] = {}

    def update(self, scenario: U64, gain: F64, names: Mapping[int, str]) -> None:
        """Take in lists (L,) of scenarios that are `auto` and what they gained (`evidence.gains`; NaN is passed over)."""
        for key in dict.fromkeys(scenario.tolist()):
            mine = gain[(scenario == key) & ~np.isnan(gain)]
            state = self.scenarios.setdefault(key, Scenario(names.get(key, f"{key:016x}")))
            while len(mine):
                mine = mine[(self._while_on if state.on else self._while_off)(state, mine) :]

    def _while_off(self, state: Scenario, gain: F64) -> int:
        """Tell the running test until it ends; returns how many lists it was told."""
        left = FIRST * 2 ** (state.tests - 1) - state.gain.told_of
        before, wanted = state.gain.told_of, self._wanted(state)
        state.gain, found = evidence.told(state.gain, gain[:left], wanted)
        used = state.gain.told_of - before
        if found:
            self._turn(state, on=True)
        elif used == left:
            state.gain, state.tests = evidence.fresh(), state.tests + 1
        return used

    def _while_on(self, state: Scenario, gain: F64) -> int:
        """Tell both tests until one of them, or the patience, ends; returns how many lists they were told."""
        left = math.ceil(max(self._patience * state.took, LEAST)) - state.gain.told_of
        before, held = state.gain.told_of, state.harm
        told, found = evidence.told(state.gain, gain[:left], self._threshold)
        used = told.told_of - before
        state.harm, hurts = evidence.told(held, -gain[:used], self._threshold)
        if hurts:
            used = state.harm.told_of - held.told_of
            self._turn(state, on=False)
        elif found:
            state.took = max(state.took, told.told_of)
            state.gain, state.harm = evidence.fresh(), evidence.fresh()
        elif used == left:
            self._turn(state, on=False)
        else:
            state.gain = told
        return used

    def _wanted(self, state: Scenario) -> float:
        return self._threshold + (0.0 if state.on else math.log(state.tests * (state.tests + 1)))

    def _turn(self, state: Scenario, *, on: bool) -> None:
        state.took = state.gain.told_of if on else 0
        state.on, state.tests, state.changes = on, 1, state.changes + 1
        state.gain, state.harm = evidence.fresh(), evidence.fresh()

    def differing(self, granted: set[int]) -> list[tuple[int, Scenario]]:
        """Scenarios about which the policy has another opinion than `granted`, by hash."""
        return sorted((key, state) for key, state in self.scenarios.items() if state.on != (key in granted))

    def keep(self, wanted: Callable[[int], bool]) -> None:
        """Forget the scenarios that are no longer `auto`: one that is asked for again begins with nothing."""
        self.scenarios = {key: state for key, state in self.scenarios.items() if wanted(key)}

    def judged(self) -> dict[str, Judged]:
        """Every scenario by name."""
        by = math.log(10.0)
        return {
            state.name: Judged(state.on, evidence.value(state.gain) / by, self._wanted(state) / by, state.changes)
            for state in self.scenarios.values()
        }

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The state, for a snapshot."""
        held = list(self.scenarios.items())
        heads = [(key, s.name, s.on, s.tests, s.took, s.changes, s.gain.told_of, s.harm.told_of) for key, s in held]
        wealth = np.array([(s.gain.wealth, s.harm.wealth) for _, s in held]).reshape(len(held), 2, len(evidence.BETS))
        return {"scenarios": np.frombuffer(msgspec.msgpack.encode(heads), np.uint8), "wealth": wealth}

    def load(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take over a state that `arrays` returned."""
        kind = list[tuple[int, str, bool, int, int, int, int, int]]
        heads = msgspec.msgpack.decode(arrays["scenarios"].tobytes(), type=kind)
        self.scenarios = {
            key: Scenario(name, on, evidence.Seen(g.copy(), gained), evidence.Seen(h.copy(), harmed), tests, took, changes)
            for (key, name, on, tests, took, changes, gained, harmed), (g, h) in zip(heads, arrays["wealth"], strict=True)
        }
