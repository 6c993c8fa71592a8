"""Where the towers are adapted: a mode for everything and modes of single scenarios, switchable while running."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from state import config, ids

Mode = Literal["off", "on", "fine_tune_only"]
NAMES: tuple[Mode, ...] = get_args(Mode)
OFF, ON, FINE_TUNE_ONLY = range(3)


class Modes:
    """Codes (indices of NAMES) by scenario hash; part of the snapshot, as they shape what is learned.

    A snapshot's modes hold as long as the configuration says what it said when they were switched; a changed configuration wins.
    """

    def __init__(self, settings: config.MetaLearning) -> None:
        self.default = NAMES.index(settings.mode)
        self.own = {ids.of(name): NAMES.index(mode) for name, mode in settings.scenarios.items()}
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

    def code(self, scenario: int) -> int:
        """The code for a scenario hash."""
        return self.own.get(scenario, self.default)

    def codes(self, scenarios: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """The codes (L,) for scenario hashes (L,)."""
        if not self.own:
            return np.full(len(scenarios), self.default, np.int64)
        return np.array([self.own.get(s, self.default) for s in scenarios.tolist()], np.int64)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The state, for a snapshot."""
        return {
            "meta.configured": np.array([self._configured], np.uint64),
            "meta.default": np.array([self.default], np.int64),
            "meta.scenarios": np.array(list(self.own), np.uint64),
            "meta.modes": np.array(list(self.own.values()), np.int64),
        }

    def load(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take over a state that `arrays` returned, unless the configured modes have changed since."""
        if int(arrays["meta.configured"][0]) != self._configured:
            return
        self.default = int(arrays["meta.default"][0])
        self.own = dict(zip(arrays["meta.scenarios"].tolist(), arrays["meta.modes"].tolist(), strict=True))
