"""Prequential quality: every row is scored before it is trained on, per scenario, objective and variant of the model.

AUC is counted in 1,000 buckets of the score (ties count half), weighted. GAUC is the mean of the users' AUCs, weighted by their
rows, over the users of a scenario that have both labels; it is exact, over the last `window_rows` rows (recent) or the last
1,000,000 rows (cumulative: exact until the stream is longer than that). A score that is not a number does not count.
"""

import dataclasses
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from state import ids
from state.kernels import kernel

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

VARIANTS = ("adapted", "unadapted", "river")
BUCKETS = 1000
GAUC_ROWS = 1_000_000
OTHER = "other"
ALL = "(all)"
LOGLOSS, PREDICTED, POSITIVE, WEIGHT, COUNT = range(5)
_SUMS = 5
_PAIR_SUMS = 5


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


class Gain(NamedTuple):
    """What adaptation brings on the same rows: mean logloss unadapted less adapted, its standard error, and the same for AUC.

    The error takes a list as the unit, since rows of one list share their user (ratio estimator; Cochran 1977, chapter 6).
    """

    scenario: str
    objective: str
    logloss: float
    stderr: float
    auc: float


@kernel
def _count(hist: F64, sums: F64, s: int, o: int, v: int, p: float, y: float, w: float) -> float:
    """Count one score and return its logloss, or NaN if it does not count (no number in [0, 1], or no weight)."""
    if not (p >= 0.0 and p <= 1.0) or w <= 0.0:
        return np.nan
    bucket = min(int(p * BUCKETS), BUCKETS - 1)
    clipped = min(max(p, 1e-7), 1.0 - 1e-7)
    loss = -(y * np.log(clipped) + (1.0 - y) * np.log(1.0 - clipped))
    hist[s, o, v, 1, bucket] += w * y
    hist[s, o, v, 0, bucket] += w * (1.0 - y)
    sums[s, o, v, LOGLOSS] += w * loss
    sums[s, o, v, PREDICTED] += w * p
    sums[s, o, v, POSITIVE] += w * y
    sums[s, o, v, WEIGHT] += w
    sums[s, o, v, COUNT] += 1.0
    return float(loss)


@kernel
def _update(
    slots: I32, users: U64, n_items: npt.NDArray[Any], scores: F32, label: F32, weight: F32, hist: F64, sums: F64, pair: F64,
    ring_slot: I32, ring_user: U64, ring_score: F32, ring_label: F32, ring_weight: F32, total: I64, losses: F64,
) -> None:  # fmt: skip
    """One pass over the rows: cumulative sums, the ring of rows, and each list's mean adapted logloss of its first objective."""
    variants, objectives = scores.shape[0], scores.shape[2]
    row = 0
    difference, held = np.zeros(objectives), np.zeros(objectives)
    loss = np.zeros(variants)
    for i in range(len(slots)):
        s = slots[i]
        difference[:], held[:] = 0.0, 0.0
        losses[i], first = 0.0, 0.0
        for r in range(row, row + n_items[i]):
            at = total[0] % len(ring_slot)
            ring_slot[at], ring_user[at] = s, users[i]
            total[0] += 1
            for o in range(objectives):
                y, w = label[r, o], weight[r, o]
                ring_label[at, o], ring_weight[at, o] = y, w
                for v in range(variants):
                    ring_score[at, v, o] = scores[v, r, o]
                    loss[v] = _count(hist, sums, s, o, v, np.float64(scores[v, r, o]), y, w)
                if loss[0] == loss[0] and loss[1] == loss[1]:
                    difference[o] += w * (loss[1] - loss[0])
                    held[o] += w
                if o == 0 and loss[0] == loss[0]:
                    losses[i] += w * loss[0]
                    first += w
        row += n_items[i]
        losses[i] = losses[i] / first if first > 0.0 else np.nan
        for o in range(objectives):
            d, n = difference[o], held[o]
            pair[s, o, 0] += d
            pair[s, o, 1] += n
            pair[s, o, 2] += d * d
            pair[s, o, 3] += d * n
            pair[s, o, 4] += n * n


@kernel
def _window(slots: I32, scores: F32, label: F32, weight: F32, hist: F64, sums: F64) -> None:
    """The cumulative sums of `_update` over the rows of a window."""
    for r in range(len(slots)):
        s = slots[r]
        for o in range(label.shape[1]):
            y, w = label[r, o], weight[r, o]
            for v in range(scores.shape[1]):
                _count(hist, sums, s, o, v, np.float64(scores[r, v, o]), y, w)


@kernel
def _grouped(order: I64, group: U64, slots: I32, scores: F32, label: F32, weight: F32, out: F64) -> None:
    """Add to `out` (S, O, V, 2) the weighted sum of the groups' AUCs and its weight; `order` sorts the rows by group."""
    rows = len(order)
    start = 0
    while start < rows:
        stop = start + 1
        while stop < rows and group[order[stop]] == group[order[start]]:
            stop += 1
        members = order[start:stop]
        s = slots[members[0]]
        for o in range(label.shape[1]):
            for v in range(scores.shape[1]):
                value, mass = _group_auc(members, scores[:, v, o], label[:, o], weight[:, o])
                if mass > 0.0:
                    out[s, o, v, 0] += value * mass
                    out[s, o, v, 1] += mass
        start = stop


@kernel
def _group_auc(members: I64, scores: F32, label: F32, weight: F32) -> tuple[float, float]:
    """(AUC, weight of the rows) of one group, (0, 0) if it lacks one of the labels."""
    n = 0
    p, plus, minus = np.empty(len(members)), np.empty(len(members)), np.empty(len(members))
    pluses = minuses = 0.0
    for r in members:
        if scores[r] == scores[r] and weight[r] > 0.0:
            p[n], plus[n], minus[n] = scores[r], weight[r] * label[r], weight[r] * (1.0 - label[r])
            pluses += plus[n]
            minuses += minus[n]
            n += 1
    if pluses <= 0.0 or minuses <= 0.0:
        return 0.0, 0.0
    order = np.argsort(p[:n])
    below = won = 0.0
    i = 0
    while i < n:
        j = i
        tied_plus = tied_minus = 0.0
        while j < n and p[order[j]] == p[order[i]]:
            tied_plus += plus[order[j]]
            tied_minus += minus[order[j]]
            j += 1
        won += tied_plus * (below + tied_minus / 2.0)
        below += tied_minus
        i = j
    return won / (pluses * minuses), pluses + minuses


def auc(hist: F64) -> F64:
    """AUC of histograms (..., 2, buckets), label first; ties count half. NaN where a label is missing.

    >>> auc(np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]])).round(4).item()
    0.9444
    """
    minus, plus = hist[..., 0, :], hist[..., 1, :]
    below = np.cumsum(minus, -1) - minus
    with np.errstate(invalid="ignore", divide="ignore"):
        out: F64 = np.asarray((plus * (below + minus / 2)).sum(-1) / (plus.sum(-1) * minus.sum(-1)))
    return out


@dataclasses.dataclass
class _Rows:
    """The newest rows, in a ring."""

    slot: I32
    user: U64
    score: F32
    label: F32
    weight: F32


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
        self, objectives: tuple[str, ...], known: tuple[str, ...], max_shown: int, window_rows: int, gauc_rows: int = GAUC_ROWS
    ) -> None:
        self.objectives, self._max_shown, self._window_rows = objectives, max_shown, window_rows
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
            np.zeros((capacity, variants, width), np.float32),
            np.zeros((capacity, width), np.float32),
            np.zeros((capacity, width), np.float32),
        )

    def _allocate(self, slots: int) -> None:
        shape = (slots, len(self.objectives), len(VARIANTS))
        self._hist, self._sums = np.zeros((*shape, 2, BUCKETS)), np.zeros((*shape, _SUMS))
        self._pair = np.zeros((*shape[:2], _PAIR_SUMS))

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
        """Take in lists (L,) with their rows: scores (V, R, O) in the order of VARIANTS, NaN where a variant has none.

        Returns each list's mean logloss (adapted, first objective), NaN for a list without one.
        """
        slots = np.array([self._slot(s, names) for s in scenario.tolist()], np.int32)
        losses = np.empty(len(slots))
        r = self._rows
        _update(
            slots, user, n_items, scores, label, weight, self._hist, self._sums, self._pair,
            r.slot, r.user, r.score, r.label, r.weight, self._total, losses,
        )  # fmt: skip
        return losses

    def rows_by_scenario(self) -> dict[str, int]:
        """How many rows each shown scenario has had (those with a weight and a score of its first objective)."""
        return dict(zip(self._names, self._sums[:, 0, :2, COUNT].max(-1).astype(int).tolist(), strict=True))

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
            _window(rows.slot, rows.score, rows.label, rows.weight, hist, sums)
        groups = self._groups(rows) if gauc else np.zeros((*self._sums.shape[:3], 2))
        return self._qualities(window, _with_all(hist), _with_all(sums), _with_all(groups))

    def _qualities(self, window: str, hist: F64, sums: F64, groups: F64) -> list[Quality]:
        areas = auc(hist)
        with np.errstate(invalid="ignore", divide="ignore"):
            grouped = groups[..., 0] / groups[..., 1]
            logloss = sums[..., LOGLOSS] / sums[..., WEIGHT]
            calibration = np.where(sums[..., POSITIVE] > 0, sums[..., PREDICTED] / sums[..., POSITIVE], np.nan)
        return [
            Quality(
                name, objective, variant, window, int(sums[s, o, v, COUNT]), float(areas[s, o, v]), float(grouped[s, o, v]),
                float(logloss[s, o, v]), float(calibration[s, o, v]),
            )
            for s, name in enumerate((*self._names, ALL))
            for o, objective in enumerate(self.objectives)
            for v, variant in enumerate(VARIANTS)
        ]  # fmt: skip

    def gains(self) -> list[Gain]:
        """Adapted against unadapted, of every scenario and of all together (ALL, last), cumulative."""
        pair, areas = _with_all(self._pair), auc(_with_all(self._hist))
        d, n, dd, dn, nn = (pair[..., i] for i in range(_PAIR_SUMS))
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
            return _Rows(*(getattr(self._rows, f.name)[part] for f in dataclasses.fields(_Rows)))
        places = np.arange(first, self.total) % capacity
        return _Rows(*(getattr(self._rows, f.name)[places] for f in dataclasses.fields(_Rows)))

    def _groups(self, rows: _Rows) -> F64:
        out = np.zeros((*self._sums.shape[:3], 2))
        group = ids.mix(rows.user, rows.slot.astype(np.uint64))
        _grouped(np.argsort(group, kind="stable"), group, rows.slot, rows.score, rows.label, rows.weight, out)
        return out

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The state, as views where it is large."""
        held = min(self.total, len(self._rows.slot))
        names = msgspec.msgpack.encode((self._names, self._other, list(self._slots.items())))
        rows = {f"row_{f.name}": getattr(self._rows, f.name)[:held] for f in dataclasses.fields(_Rows)}
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
        names, other, slots = msgspec.msgpack.decode(arrays["names"].tobytes(), type=tuple[list[str], int, list[tuple[int, int]]])
        self._names, self._other, self._slots = names, other, dict(slots)
        self._hist, self._sums, self._pair = (arrays[name].copy() for name in ("hist", "sums", "pair"))
        total, capacity = int(arrays["total"][0]), len(self._rows.slot)
        held = len(arrays["row_slot"])
        self._total[0] = total
        if held == min(total, capacity):
            for field in dataclasses.fields(_Rows):
                getattr(self._rows, field.name)[:held] = arrays[f"row_{field.name}"]
        else:
            self._rows.weight[:] = 0


def _with_all(per_scenario: F64) -> F64:
    return np.concatenate([per_scenario, per_scenario.sum(0, keepdims=True)])
