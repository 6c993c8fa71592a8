"""The model that answers, and those before it. One reference is swapped; a request keeps the one it began with."""

import collections
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from models import engines, modes
from models.base import Known, Support
from models.scorer import Task
from state import meta_supports

REMEMBERED = 32


class Scored(Protocol):
    """Predictions (R, outputs) without and with adaptation, and how many support rows were adapted on."""

    @property
    def plain(self) -> npt.NDArray[np.float32]:
        """Without adaptation."""
        ...

    @property
    def adapted(self) -> npt.NDArray[np.float32]:
        """With adaptation; without support the same as `plain`."""
        ...

    @property
    def adapted_on(self) -> int:
        """Support rows used."""
        ...

    @property
    def diverged(self) -> bool:
        """Whether the adaptation had to be held or taken back."""
        ...


class Scores(Protocol):
    """What a snapshot becomes once loaded (`models.scorer.Scorer`): pure, and independent of what was scored before."""

    modes: modes.Modes
    trunk: meta_supports.Trunk | None
    shape: meta_supports.Shape
    choice: engines.Choice

    def score(
        self, ids: npt.NDArray[np.uint64], x: npt.NDArray[np.float32], scenario: int, support: Support | Known | None
    ) -> Scored:
        """Score candidates: ids (R, F), raw numbers (R, D) of one user in one scenario, adapted to `support` if given."""
        ...

    def merged(self, tasks: Sequence[Task]) -> Sequence[Scored]:
        """Score several tasks in one pass, each as `score` would alone."""
        ...

    def observed(self, scenario: int) -> tuple[int, npt.NDArray[np.float64]]:
        """A scenario's slot, 0 for none, and the moments (KEPT, D) that its numbers had in training (`models.moments`)."""
        ...


class Model(NamedTuple):
    """A loaded snapshot; immutable, so that a request that holds it sees one model to its end."""

    version: str
    step: int
    created_ms: int
    scorer: Scores


class Seen(NamedTuple):
    """One version's life in this process."""

    version: str
    step: int
    created_ms: int
    swapped_ms: int
    first_scored_ms: int | None


class Live:
    """The current model, and the last versions with the time of their first score."""

    def __init__(self) -> None:
        self.current: Model | None = None
        self.swaps = 0
        self._seen: collections.OrderedDict[str, Seen] = collections.OrderedDict()

    def swap(self, model: Model, now_ms: int) -> None:
        """Let `model` answer every request that begins from now on."""
        before = self._seen.pop(model.version, None)
        first = before.first_scored_ms if before else None
        self._seen[model.version] = Seen(model.version, model.step, model.created_ms, now_ms, first)
        while len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
        self.current = model
        self.swaps += 1

    def scored(self, version: str, now_ms: int) -> bool:
        """Note that `version` answered a request; True when it was its first."""
        seen = self._seen.get(version)
        if seen is None or seen.first_scored_ms is not None:
            return False
        self._seen[version] = seen._replace(first_scored_ms=now_ms)
        return True

    def seen(self) -> list[Seen]:
        """The remembered versions, the latest swapped first."""
        return list(reversed(self._seen.values()))
