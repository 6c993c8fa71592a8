"""Prequential figures as if every row that exploration could have shown had been shown, each as often as any other (A4).

An item that is put forward with probability p is shown p times as often as it could be, so what is shown says most of what the
ranking likes. Rows of a known propensity p weigh w = min(1 / p, clip) here. Both figures divide by the sum of the weights that
were seen, not by the number of rows (self-normalised, Swaminathan and Joachims 2015), which lowers the variance and keeps the
mean label within the labels. The clip bounds the variance further and biases towards what is shown often (truncated importance
sampling, Ionides 2008). `mean_label` thus is the value of a policy that shows each item that could be shown at a place equally
often, and `auc` asks how well the model ranks all of these.

Only scenarios in which a propensity below 1 was met have figures, from that call on; rows of unknown propensity do not count.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from learner import counting
from learner.counting import BINARY, BUCKETS, COUNT, KINDS, POSITIVE, REGRESSION, SUMS, WEIGHT
from learner.prequential import ALL, VARIANTS
from models import losses

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
SQUARED, SHOWN, SHOWN_WEIGHT = range(3)
"""Further sums: squared weights; labels and weights without propensities."""
FURTHER = 3
HAS_MEAN = np.array([BINARY, REGRESSION])


class Explored(NamedTuple):
    """Figures of one scenario, objective, variant and window; NaN where there is none. All but `auc` do not ask the variant."""

    scenario: str
    objective: str
    variant: str
    window: str
    rows: int
    effective: float
    """Rows of equal weight that would tell as much: (sum of w)^2 / sum of w^2 (Kish 1965)."""
    auc: float
    mean_label: float
    shown: float
    """The mean label with every row counted once, as it was shown."""


class _Rows(NamedTuple):
    """Rows with a weight: their scenarios' places, scores (n, V, outputs), labels, own weights (n, O) and w (n,)."""

    slot: npt.NDArray[np.int32]
    score: F32
    label: F32
    weight: F32
    by: F32


class Figures:
    """Cumulative figures, and those of the last `window_rows` rows of known propensity. Deterministic.

    >>> figures = Figures(("click",), window_rows=10, clip=4.0)
    >>> scores = np.array([.9, .4, .2], np.float32).reshape(1, 3, 1).repeat(3, 0)
    >>> label, propensity = np.array([[1], [0], [1]], np.float32), np.array([.5, .1, 1], np.float32)
    >>> figures.update(["home"], np.array([3]), scores, label, np.ones_like(label), propensity)
    >>> found = figures.report()[0]
    >>> round(found.auc, 4), round(found.mean_label, 4), round(found.shown, 4), round(found.effective, 4)
    (0.6667, 0.4286, 0.6667, 2.3333)
    """

    def __init__(
        self, objectives: Sequence[str], window_rows: int, clip: float, parts: Sequence[losses.Part] = ()
    ) -> None:  # fmt: skip
        """`clip` is the greatest weight; `parts` say what kinds the objectives are of; without, all are binary."""
        shape = [(KINDS.index(p.kind), p.at, p.width) for p in parts] or [(BINARY, o, 1) for o in range(len(objectives))]
        self.objectives, self._shape, self._clip = tuple(objectives), np.array(shape, np.int64), np.float32(clip)
        self._places: dict[str, int] = {}
        self._hist, self._sums, self._further = self._nothing(0)
        self._window_rows, self._held = window_rows, 0
        self._newest: list[_Rows] = []

    def _nothing(self, scenarios: int) -> tuple[F64, F64, F64]:
        shape = (scenarios, len(self.objectives), len(VARIANTS))
        return np.zeros((*shape, 2, BUCKETS)), np.zeros((*shape, SUMS)), np.zeros((*shape[:2], FURTHER))

    def update(
        self, scenarios: Sequence[str], n_items: npt.NDArray[Any], scores: F32, label: F32, weight: F32, propensity: F32
    ) -> None:  # fmt: skip
        """Take in lists of scenarios as they are shown: scores (V, R, outputs), labels and weights (R, O), propensities (R,).

        A propensity of NaN is not known.
        """
        below, of = propensity < 1, np.repeat(np.arange(len(scenarios)), n_items)
        for i in np.unique(of[below]).tolist():
            self._places.setdefault(scenarios[i], len(self._places))
        if not self._places:
            return
        place = np.array([self._places.get(name, -1) for name in scenarios], np.int32)[of]
        counted = ~np.isnan(propensity) & (place >= 0)
        if not counted.any():
            return
        more = len(self._places) - len(self._hist)
        if more:
            grown = zip((self._hist, self._sums, self._further), self._nothing(more), strict=True)
            self._hist, self._sums, self._further = (np.concatenate(parts) for parts in grown)
        found = _Rows(
            place[counted], np.ascontiguousarray(scores[:, counted].transpose(1, 0, 2)), label[counted], weight[counted],
            np.minimum(np.float32(1) / propensity[counted], self._clip),
        )  # fmt: skip
        self._count(found, self._hist, self._sums, self._further)
        self._newest.append(found)
        self._held += len(found.by)
        while self._held - len(self._newest[0].by) >= self._window_rows:
            self._held -= len(self._newest.pop(0).by)

    def _recent(self) -> _Rows:
        """The last `window_rows` rows."""
        return _Rows(*(np.concatenate(parts)[-self._window_rows :] for parts in zip(*self._newest, strict=True)))

    def _count(self, rows: _Rows, hist: F64, sums: F64, further: F64) -> None:
        by = rows.by[:, None]
        counting.window(self._shape, rows.slot, rows.score, rows.label, rows.weight * by, hist, sums)
        label = np.where(rows.weight > 0, rows.label, 0)
        for k, values in ((SQUARED, (rows.weight * by) ** 2), (SHOWN, rows.weight * label), (SHOWN_WEIGHT, rows.weight)):
            np.add.at(further[..., k], rows.slot, values)

    def report(self) -> list[Explored]:
        """The figures of every scenario that explores and of all of these together (ALL, last), of both windows."""
        if not self._places:
            return []
        recent = self._nothing(len(self._places))
        self._count(self._recent(), *recent)
        whole = (self._hist, self._sums, self._further)
        return [*self._explored("cumulative", *whole), *self._explored("recent", *recent)]

    def _explored(self, window: str, *counts: F64) -> list[Explored]:
        hist, sums, further = (np.concatenate([part, part.sum(0, keepdims=True)]) for part in counts)
        areas, has_mean = counting.auc(hist), np.isin(self._shape[:, 0], HAS_MEAN)
        with np.errstate(invalid="ignore", divide="ignore"):
            scored = sums[..., VARIANTS.index("adapted"), :]
            mean = np.where(has_mean, scored[..., POSITIVE] / scored[..., WEIGHT], np.nan)
            shown = np.where(has_mean, further[..., SHOWN] / further[..., SHOWN_WEIGHT], np.nan)
            effective = scored[..., WEIGHT] ** 2 / further[..., SQUARED]
        return [
            Explored(
                name, objective, variant, window, int(sums[s, o, v, COUNT]), float(effective[s, o]), float(areas[s, o, v]),
                float(mean[s, o]), float(shown[s, o]),
            )
            for s, name in enumerate((*self._places, ALL))
            for o, objective in enumerate(self.objectives)
            for v, variant in enumerate(VARIANTS)
        ]  # fmt: skip

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The state; nothing where no scenario explores."""
        if not self._places:
            return {}
        names = np.frombuffer(msgspec.msgpack.encode(list(self._places)), np.uint8)
        counts = {"hist": self._hist, "sums": self._sums, "further": self._further}
        return {"names": names, **counts, **{f"row_{name}": array for name, array in self._recent()._asdict().items()}}

    def load(self, arrays: dict[str, npt.NDArray[Any]]) -> None:
        """Take over a state that `arrays` returned, saved with the same objectives."""
        names = msgspec.msgpack.decode(arrays["names"].tobytes(), type=list[str])
        self._places = {name: place for place, name in enumerate(names)}
        self._hist, self._sums, self._further = (arrays[name].copy() for name in ("hist", "sums", "further"))
        self._newest = [_Rows(*(arrays[f"row_{name}"].copy() for name in _Rows._fields))]
        self._held = len(self._newest[0].by)
