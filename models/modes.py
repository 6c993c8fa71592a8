"""Where the towers are adapted: a mode for everything and modes of single scenarios, switchable while running."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from state import config, ids

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Mode = Literal["off", "on", "fine_tune_only", "auto"]
NAMES: tuple[Mode, ...] = get_args(Mode)
OFF, ON, FINE_TUNE_ONLY, AUTO = range(4)


class Modes:
    """Codes (indices of NAMES) by scenario hash; part of the snapshot, as they shape what is learned.

    A scenario that is `auto` is on where it was granted (`learner.policy` decides), and otherwise off and on trial: the learner
    scores it adapted all the same, or nobody would know what adaptation is worth, and a small share of its lists meta-learns
    (`learning`); serving does not adapt.

    A snapshot's modes hold as long as the configuration says what it said when they were switched; a changed configuration wins.
    """

    def __init__(self, settings: config.MetaLearning) -> None:
        self.default = NAMES.index(settings.mode)
        self.own = {ids.of(name): NAMES.index(mode) for name, mode in settings.scenarios.items()}
        self.granted: set[int] = set()
        self._configured = ids.of(repr((settings.mode, sorted(settings.scenarios.items()))))

    def set(self, scenario: str | int | None, mode: Mode) -> None:
        """Switch one scenario (name or hash), or with None the default, which leaves scenarios with a mode of their own.

        Raises:
            ValueError: there is no such mode.
        """
        if mode not in NAMES:
            raise ValueError(f'meta mode "{mode}" is unknown; allowed: {", ".join(NAMES)}')
        if scenario is None:
            self.default = NAMES.index(mode)
        else:
            self.own[ids.of(scenario) if isinstance(scenario, str) else int(scenario)] = NAMES.index(mode)
        self.granted = {found for found in self.granted if self.asked(found) == AUTO}

    def grant(self, scenario: int, on: bool) -> None:
        """Let a scenario that is `auto` be adapted from now on, or no more; nothing happens where another mode was asked for."""
        self.granted.discard(scenario)
        if on and self.asked(scenario) == AUTO:
            self.granted.add(scenario)

    def asked(self, scenario: int) -> int:
        """The code that was asked for, AUTO included."""
        return self.own.get(scenario, self.default)

    def code(self, scenario: int) -> int:
        """What serving does with a scenario: OFF, ON or FINE_TUNE_ONLY."""
        found = self.asked(scenario)
        return found if found != AUTO else ON if scenario in self.granted else OFF

    def codes(self, scenarios: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """What the learner does with scenario hashes (L,), each OFF, ON or FINE_TUNE_ONLY."""
        if not self.own and self.default != AUTO:
            out = np.empty(len(scenarios), np.int64)
            out.fill(self.default)
            return out
        return np.array([self._trained(s) for s in scenarios.tolist()], np.int64)

    @property
    def some_automatic(self) -> bool:
        """Whether any scenario may be `auto`."""
        return self.default == AUTO or AUTO in self.own.values()

    def automatic(self, scenarios: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """Which of the scenario hashes (L,) are `auto`."""
        if not self.some_automatic:
            return np.zeros(len(scenarios), np.bool_)
        return np.array([self.asked(s) == AUTO for s in scenarios.tolist()], np.bool_)

    def on_trial(self, scenarios: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """Which of the scenario hashes (L,) are `auto` and not granted: serving does not adapt them."""
        found = self.automatic(scenarios)
        return found & ~np.isin(scenarios, np.array(sorted(self.granted), np.uint64)) if found.any() else found

    def _trained(self, scenario: int) -> int:
        found = self.asked(scenario)
        return found if found != AUTO else ON if scenario in self.granted else FINE_TUNE_ONLY

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The state, for a snapshot."""
        return {
            "meta.configured": np.array([self._configured], np.uint64),
            "meta.default": np.array([self.default], np.int64),
            "meta.scenarios": np.array(list(self.own), np.uint64),
            "meta.modes": np.array(list(self.own.values()), np.int64),
            "meta.granted": np.array(sorted(self.granted), np.uint64),
        }

    def load(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take over a state that `arrays` returned, unless the configured modes have changed since.

        A snapshot from before there was `auto` has granted nothing.
        """
        if int(arrays["meta.configured"][0]) != self._configured:
            return
        self.default = int(arrays["meta.default"][0])
        self.own = dict(zip(arrays["meta.scenarios"].tolist(), arrays["meta.modes"].tolist(), strict=True))
        self.granted = set(arrays["meta.granted"].tolist()) if "meta.granted" in arrays else set()


def learning(settings: config.MetaLearning, codes: I64, taken: I64, first: U64, on_trial: npt.NDArray[np.bool_]) -> I64:
    """The codes (L,) of lists as far as they meta-learn: those of `Modes.codes`, with lists left out that the settings leave out.

    `taken` (L,) support rows that a list is adapted on, `first` (L, F) ids of its first row, by which tasks are sampled: the same
    list is always or never sampled. What is left out adds to the original loss only, and is adapted for scoring all the same.

    Of the lists `on_trial` (L,) (`Modes.on_trial`) that can be adapted, `settings.auto_trial_share` meta-learn.
    """
    name = np.bitwise_xor.reduce(first, axis=1)
    out = codes
    if settings.auto_trial_share > 0:
        out = np.where(on_trial & (taken > 0) & _drawn(name, 1, settings.auto_trial_share), ON, out)
    if settings.unadapted == "original":
        out = np.where((out == ON) & (taken == 0), FINE_TUNE_ONLY, out)
    if settings.task_share < 1:
        out = np.where((out == ON) & ~_drawn(name, 0, settings.task_share), FINE_TUNE_ONLY, out)
    return out


def _drawn(name: U64, purpose: int, share: float) -> npt.NDArray[np.bool_]:
    """A share of what has these hashes, another one for another purpose."""
    return ids.mix(name, purpose) < np.uint64(int(share * 2**64)) if share < 1 else np.ones(len(name), np.bool_)
