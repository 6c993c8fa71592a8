"""Prequential quality: every row is scored before it is trained on, per scenario, objective and variant of the model.

AUC is counted in 1,000 buckets of the score (ties count half), weighted. GAUC is the mean of the users' AUCs, weighted by their
rows, over the users of a scenario that have both labels; it is exact, over the last `window_rows` rows (recent) or the last
1,000,000 rows (cumulative: exact until the stream is longer than that). A score that is not a number does not count.

That is of binary objectives. A multiclass one has accuracy and logloss, a regression the root of its mean squared error and
calibration. The scores of a ranking compare within a list only, so its GAUC is that of lists: over pairs with unlike labels,
each weighted by their difference. Rows of weight 0, those without such a label, count nowhere.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from learner import counting
from learner.counting import (
    BINARY,
    BUCKETS,
    COUNT,
    KINDS,
    LOSS,
    MULTICLASS,
    PAIR_SUMS,
    POSITIVE,
    PREDICTED,
    RANKING,
    REGRESSION,
    SUMS,
    WEIGHT,
    auc,
)  # fmt: skip
from models import losses
from state import ids

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

VARIANTS = ("adapted", "unadapted", "river")
GAUC_ROWS = 1_000_000
OTHER = "other"
ALL = "(all)"
LOGARITHMIC, ADDITIVE = np.array([BINARY, MULTICLASS]), np.array([BINARY, REGRESSION])
"""Kinds that have a logloss, and those whose predictions and labels have comparable sums."""


class Quality(NamedTuple):
    """The figures of one scenario, objective and variant; NaN where there is no figure (one label only, no positives)."""

    scenario: str
    objective: str
    variant: str
    window: str
    rows: int
    auc: float
    gauc: float
    logloss: float
    calibration: float
    accuracy: float = float("nan")
    rmse: float = float("nan")


class Gain(NamedTuple):
    """What adaptation brings on the same rows: mean logloss (of a regression squared error, of a ranking nothing) unadapted less
    adapted, its standard error, and the same for AUC.

    The error takes a list as the unit, since rows of one list share their user (ratio estimator; Cochran 1977, chapter 6).
    """

    scenario: str
    objective: str
    logloss: float
    stderr: float
    auc: float


@dataclasses.dataclass
class _Rows:
    """The newest rows, in a ring."""

    slot: I32
    user: U64
    score: F32
    label: F32
    weight: F32
    list: I64
    """Which list a row is of; empty where no objective is a ranking."""


class Prequential:
    """Cumulative and recent figures; the state is a handful of arrays. Deterministic.

    >>> figures = Prequential(("click",), known=("home",), max_shown=8, window_rows=100)
    >>> home, user = np.array([ids.of("home")], np.uint64), np.array([7], np.uint64)
    >>> scores = np.array([.9, .2, .4], np.float32).reshape(1, 3, 1).repeat(3, 0)
    >>> label, weight = np.array([[1], [0], [1]], np.float32), np.ones((3, 1), np.float32)
    >>> losses = figures.update(home, user, np.array([3]), scores, label, weight, {})
    >>> [(q.variant, q.rows, q.auc, q.gauc, round(q.logloss, 3), round(q.calibration, 2)) for q in figures.report()[:1]]
    [('adapted', 3, 1.0, 1.0, 0.415, 0.75)]
    """

    def __init__(
        self, objectives: tuple[str, ...], known: tuple[str, ...], max_shown: int, window_rows: int, gauc_rows: int = GAUC_ROWS,
        parts: Sequence[losses.Part] = (),
    ) -> None:  # fmt: skip
        """`parts` say what kinds the objectives are of; without, all are binary."""
        self.objectives, self._max_shown, self._window_rows = objectives, max_shown, window_rows
        shape = [(KINDS.index(p.kind), p.at, p.width) for p in parts] or [(BINARY, o, 1) for o in range(len(objectives))]
        self._shape, self._outputs = np.array(shape, np.int64), shape[-1][1] + shape[-1][2]
        self._ranks = RANKING in self._shape[:, 0]
        self._rows = self._ring(max(window_rows, gauc_rows))
        self._total = np.zeros(1, np.int64)
        self._slots: dict[int, int] = {}
        self._names: list[str] = []
        self._other = -1
        self._allocate(0)
        for name in known:
            self._slot(ids.of(name), {ids.of(name): name})

    def _ring(self, capacity: int) -> _Rows:
        width, variants = len(self.objectives), len(VARIANTS)
        return _Rows(
            np.zeros(capacity, np.int32),
            np.zeros(capacity, np.uint64),
            np.zeros((capacity, variants, self._outputs), np.float32),
            np.zeros((capacity, width), np.float32),
            np.zeros((capacity, width), np.float32),
            np.zeros(capacity if self._ranks else 0, np.int64),
        )

    def _allocate(self, slots: int) -> None:
        shape = (slots, len(self.objectives), len(VARIANTS))
        self._hist, self._sums = np.zeros((*shape, 2, BUCKETS)), np.zeros((*shape, SUMS))
        self._pair = np.zeros((*shape[:2], PAIR_SUMS))

    def _slot(self, scenario: int, names: dict[int, str]) -> int:
        found = self._slots.get(scenario)
        if found is not None:
            return found
        own = len(self._slots) < self._max_shown
        if own:
            self._slots[scenario] = slot = self._add(names.get(scenario, f"{scenario:016x}"))
            return slot
        if self._other < 0:
            self._other = self._add(OTHER)
        return self._other

    def _add(self, name: str) -> int:
        self._names.append(name)
        one = ((0, 1),)
        self._hist = np.pad(self._hist, one + ((0, 0),) * 4)
        self._sums = np.pad(self._sums, one + ((0, 0),) * 3)
        self._pair = np.pad(self._pair, one + ((0, 0),) * 2)
        return len(self._names) - 1

    def name_of(self, scenario: int) -> str:
        """What a scenario is shown as."""
        return self._names[self._slots[scenario]] if scenario in self._slots else OTHER

    def update(
        self, scenario: U64, user: U64, n_items: npt.NDArray[Any], scores: F32, label: F32, weight: F32, names: dict[int, str]
    ) -> F64:
        """Take in lists (L,) with their rows: scores (V, R, outputs) in the order of VARIANTS, NaN where a variant has none.

        Returns each list's mean loss (adapted, the first objective that it has labels of), NaN for a list without one.
        """
        slots = np.array([self._slot(s, names) for s in scenario.tolist()], np.int32)
        losses = np.empty(len(slots))
        r = self._rows
        counting.update(
            self._shape, slots, user, n_items, scores, label, weight, self._hist, self._sums, self._pair,
            r.slot, r.user, r.score, r.label, r.weight, r.list, self._total, losses,
        )  # fmt: skip
        return losses

    def rows_by_scenario(self) -> dict[str, int]:
        """How many rows each shown scenario has had (those with a weight and a score of the objective that has most)."""
        return dict(zip(self._names, self._sums[:, :, :2, COUNT].max((1, 2)).astype(int).tolist(), strict=True))

    @property
    def total(self) -> int:
        """Rows taken in."""
        return int(self._total[0])

    def report(self, window: str = "cumulative", *, gauc: bool = True) -> list[Quality]:
        """The figures of every scenario and of all together (ALL, last); without `gauc`, its figures are NaN."""
        if window == "cumulative":
            hist, sums = self._hist, self._sums
            rows = self._last(len(self._rows.slot))
        else:
            rows = self._last(self._window_rows)
            hist, sums = np.zeros_like(self._hist), np.zeros_like(self._sums)
            counting.window(self._shape, rows.slot, rows.score, rows.label, rows.weight, hist, sums)
        groups = self._groups(rows) if gauc else np.zeros((*self._sums.shape[:3], 2))
        return self._qualities(window, _with_all(hist), _with_all(sums), _with_all(groups))

    def _qualities(self, window: str, hist: F64, sums: F64, groups: F64) -> list[Quality]:
        areas = auc(hist)
        with np.errstate(invalid="ignore", divide="ignore"):
            grouped = groups[..., 0] / groups[..., 1]
            kind = self._shape[:, 0, None]
            loss = sums[..., LOSS] / sums[..., WEIGHT]
            logloss = np.where(np.isin(kind, LOGARITHMIC), loss, np.nan)
            summed = np.isin(kind, ADDITIVE) & (sums[..., POSITIVE] != 0)
            calibration = np.where(summed, sums[..., PREDICTED] / sums[..., POSITIVE], np.nan)
            accuracy = np.where(kind == MULTICLASS, sums[..., PREDICTED] / sums[..., WEIGHT], np.nan)
            rmse = np.where(kind == REGRESSION, np.sqrt(loss), np.nan)
        return [
            Quality(
                name, objective, variant, window, int(sums[s, o, v, COUNT]), float(areas[s, o, v]), float(grouped[s, o, v]),
                float(logloss[s, o, v]), float(calibration[s, o, v]), float(accuracy[s, o, v]), float(rmse[s, o, v]),
            )
            for s, name in enumerate((*self._names, ALL))
            for o, objective in enumerate(self.objectives)
            for v, variant in enumerate(VARIANTS)
        ]  # fmt: skip

    def gains(self) -> list[Gain]:
        """Adapted against unadapted, of every scenario and of all together (ALL, last), cumulative."""
        pair, areas = _with_all(self._pair), auc(_with_all(self._hist))
        d, n, dd, dn, nn = (pair[..., i] for i in range(PAIR_SUMS))
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = d / n
            stderr = np.sqrt(np.maximum(dd - 2 * mean * dn + mean**2 * nn, 0)) / n
        return [
            Gain(name, objective, float(mean[s, o]), float(stderr[s, o]), float(areas[s, o, 0] - areas[s, o, 1]))
            for s, name in enumerate((*self._names, ALL))
            for o, objective in enumerate(self.objectives)
        ]

    def _last(self, rows: int) -> _Rows:
        capacity = len(self._rows.slot)
        held = min(rows, self.total, capacity)
        first = self.total - held
        if held == capacity or first % capacity + held <= capacity:
            part = slice(0, capacity) if held == capacity else slice(first % capacity, first % capacity + held)
            return _Rows(*(array[part] for array in self._columns().values()))
        places = np.arange(first, self.total) % capacity
        return _Rows(*(array[places] if len(array) else array for array in self._columns().values()))

    def _groups(self, rows: _Rows) -> F64:
        out = np.zeros((*self._sums.shape[:3], 2))
        values = (rows.slot, rows.score, rows.label, rows.weight, out)
        group = ids.mix(rows.user, rows.slot.astype(np.uint64))
        counting.grouped(self._shape, BINARY, np.argsort(group, kind="stable"), group, *values)
        if self._ranks:
            group = rows.list.astype(np.uint64)
            counting.grouped(self._shape, RANKING, np.argsort(group, kind="stable"), group, *values)
        return out

    def _columns(self) -> dict[str, npt.NDArray[Any]]:
        return {f.name: getattr(self._rows, f.name) for f in dataclasses.fields(_Rows)}

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The state, as views where it is large."""
        held = min(self.total, len(self._rows.slot))
        names = msgspec.msgpack.encode((self._names, self._other, list(self._slots.items())))
        rows = {f"row_{name}": array[:held] for name, array in self._columns().items() if len(array)}
        sums = {"hist": self._hist, "sums": self._sums, "pair": self._pair}
        return {**rows, **sums, "total": self._total, "names": np.frombuffer(names, np.uint8)}

    def load(self, arrays: dict[str, npt.NDArray[Any]]) -> None:
        """Take over a state saved with the same objectives. A smaller or larger ring than it was saved with starts empty.

        Raises:
            ValueError: the state has other objectives.
        """
        if arrays["hist"].shape[1:] != (len(self.objectives), len(VARIANTS), 2, BUCKETS):
            raise ValueError(
                f"the saved figures have {arrays['hist'].shape[1]} objectives, the configuration {len(self.objectives)}"
            )
        if arrays["row_score"].shape[2] != self._outputs or ("row_list" in arrays) != self._ranks:
            raise ValueError("the saved figures are of objectives of other kinds than the configuration's")
        names, other, slots = msgspec.msgpack.decode(arrays["names"].tobytes(), type=tuple[list[str], int, list[tuple[int, int]]])
        self._names, self._other, self._slots = names, other, dict(slots)
        self._hist, self._sums, self._pair = (arrays[name].copy() for name in ("hist", "sums", "pair"))
        total, capacity = int(arrays["total"][0]), len(self._rows.slot)
        held = len(arrays["row_slot"])
        self._total[0] = total
        if held == min(total, capacity):
            for name, array in self._columns().items():
                if len(array):
                    array[:held] = arrays[f"row_{name}"]
        else:
            self._rows.weight[:] = 0


def _with_all(per_scenario: F64) -> F64:
    return np.concatenate([per_scenario, per_scenario.sum(0, keepdims=True)])
