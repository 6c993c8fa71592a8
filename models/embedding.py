"""The fused embedding table: one float32 row per admitted id, its embedding and one first-order weight.

The table and its map are numpy arrays outside autograd: rows are gathered into the input matrix, whose gradient comes back
for one exact row-wise AdaGrad step.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models import base, fused_rows, id_map, moments, pages
from state import config, spec
from state.kernels import kernel

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Arrays = Mapping[str, npt.NDArray[Any]]

_LAST_MARK = np.iinfo(np.int32).max
SERVING = ("table", "map.keys", "map.values", "moments", "moments.observed")


class Columns(NamedTuple):
    """Geometry of the id matrix for the kernels: start and width (C,) of each category, field (F,) of each column.

    `each` (U,): columns that are gathered one by one beside their pooled category. Categories that share have one field.
    `category` (F,): of each column; `apart` (F,): its place in `each`, or -1. `width`: numbers of an embedding; `used` (C,):
    how many of them, from the first, a category has. `summed` (F,): whether a column's gradient is more than one run of numbers.
    """

    starts: I64
    widths: I64
    field_of: I64
    each: I64
    category: I64
    apart: I64
    width: int
    used: I64
    summed: Bools

    def of(self, category: int) -> int:
        """First id column of a category, -1 for none."""
        return int(self.starts[category]) if category >= 0 else -1


def columns(settings: config.Config) -> Columns:
    """The id columns that the feature spec declares, as the model reads them."""
    features = settings.features
    declared = spec.id_columns(features)
    starts = np.array([c.start for c in declared], np.int64)
    widths = np.array([c.width for c in declared], np.int64)
    names = [c.name for c in declared]
    fields = np.array([names.index(c.share or c.name) for c in features.categories], np.int64)
    single = [np.arange(c.start, c.start + c.width) for c in declared if c.name in base.geometry(settings).sequences]
    each = np.concatenate([np.zeros(0, np.int64), *single])
    apart = np.full(int(widths.sum()), -1, np.int64)
    apart[each] = np.arange(len(each))
    category = np.repeat(np.arange(len(starts)), widths)
    width, own = settings.model.embedding_width, settings.model.embedding_widths
    used = np.array([own.get(c.share or c.name, width) for c in features.categories], np.int64)
    summed = (np.repeat(widths, widths) > 1) | (apart >= 0)
    return Columns(starts, widths, np.repeat(fields, widths), each, category, apart, width, used, summed)


def gather(table: F32, rows: I32, columns: Columns, x: F32, mean: F32, scale: F32, out: F32) -> None:
    """Input rows (n, row), see `base.Geometry`, for rows (n, F) of `table`, E + 1 weights and more, and raw numbers (n, D)."""
    fused_rows.gather(table, columns.width, rows, columns.starts, columns.widths, x, mean, scale, out)
    if len(columns.each):
        fused_rows.gather_each(table, columns.width, rows, columns.each, len(columns.starts) * columns.width + x.shape[1], out)


class Reading(NamedTuple):
    """What kernels need to gather rows of the table that is trained; see `Columns`, `standard` and `fused_rows`."""

    state: F32
    marks: I32
    starts: I64
    widths: I64
    each: I64
    mean: F32
    scale: F32
    own_mean: F32
    own_scale: F32
    by_slot: bool
    """Whether numbers are standardised by the moments of their scenarios, which stand in the two before."""
    before: I32
    stamp: int


@kernel
def read(reading: Reading, rows: I32, x: F32, slot: I64, out: F32, learn: bool) -> None:
    """`Table.gather` inside kernels."""
    r = reading
    width = r.state.shape[1] - fused_rows.BESIDE
    numbers = moments.standardise(x, slot, r.own_mean, r.own_scale) if r.by_slot else x
    if learn:
        fused_rows.gather_to_learn(r.state, r.marks, rows, r.starts, r.widths, numbers, r.mean, r.scale, out, r.before, r.stamp)
    else:
        fused_rows.gather(r.state, width, rows, r.starts, r.widths, numbers, r.mean, r.scale, out)
    if len(r.each):
        fused_rows.gather_each(r.state, width, rows, r.each, len(r.starts) * width + x.shape[1], out)


class Learning(NamedTuple):
    """What kernels need to change rows of the table, see `Columns` and `fused_rows.descend`."""

    state: F32
    starts: I64
    widths: I64
    used: I64
    category: I64
    apart: I64
    summed: Bools
    each: int
    rate: float
    before: I32
    listed: I32
    slot: I32
    sums: F32


@kernel
def descend(learning: Learning, rows: I32, gradient: F32) -> None:
    """`Table.descend` inside kernels."""
    k = learning
    at = gradient.shape[1] - len(k.starts) - k.each * (k.state.shape[1] - fused_rows.BESIDE + 1)
    fused_rows.descend(
        k.state, rows, k.starts, k.widths, k.used, k.category, k.apart, k.summed, at, gradient,
        k.rate, k.before, k.listed, k.slot, k.sums,
    )  # fmt: skip


@kernel
def observe(shared: F64, observed: F64, x: F32, slot: I64, weight: F64) -> None:
    """`Table.observe` inside kernels, all but `Table.standardise`."""
    moments.update(shared, x, moments.HALF_LIFE_ROWS)
    moments.observe(observed, x, slot, weight, moments.HALF_LIFE_ROWS)


class Own(NamedTuple):
    """Mean and 1 / standard deviation (slots + 1, D) of each scenario."""

    mean: F32
    scale: F32

    def apply(self, x: F32, slot: I64) -> F32:
        """Raw numbers (n, D), each row standardised for its slot (n,)."""
        return moments.standardise(x, slot, self.mean, self.scale)


def standard(settings: config.Config, shared: F64, observed: F64) -> tuple[F32, F32, Own | None]:
    """By what raw numbers are standardised: mean and 1 / deviation (D,) of all rows, or those of each scenario.

    With `model.moments = "scenario"` the first two change nothing, and rows go through `Own.apply` before they are gathered.
    """
    if settings.model.moments == "shared":
        return *moments.standard(shared), None
    numbers = shared.shape[1]
    own = Own(*moments.standards(shared, observed, settings.scenarios.prior_rows))
    return np.zeros(numbers, np.float32), np.ones(numbers, np.float32), own


class Table:
    """Embeddings, accumulators, id map and number moments: everything that is per id or per column, not dense.

    The first C rows are the fields' shared rows and start at zero; they learn from ids that are not admitted yet and speak for
    unknown ones.
    """

    def __init__(self, settings: config.Config) -> None:
        self._settings = settings
        self.columns = columns(settings)
        embedding = settings.embedding
        self.map = id_map.IdMap(
            self.columns.field_of, embedding.capacity, embedding.admit_after, int(embedding.max_idle_s * 1000)
        )
        rows, numbers = self.map.fields + embedding.capacity, len(spec.number_names(settings.features))
        self.width = settings.model.embedding_width
        self._narrow = np.flatnonzero(self.columns.used < self.width)
        self._state = pages.zeros(rows * (self.width + fused_rows.BESIDE)).reshape(rows, -1)
        self.table = self._state[:, : self.width + 1]
        self.accumulator = self._state[:, self.width + 1 : self.width + 3]
        self.accumulator[: self.map.fields] = settings.optimizer.embedding_accumulator
        self.moments = np.zeros((3, numbers), np.float64)
        self.observed = np.zeros((settings.scenarios.slots + 1, moments.KEPT, numbers), np.float64)
        self.mean, self.scale = np.zeros(numbers, np.float32), np.ones(numbers, np.float32)
        self.standardise()
        self._marks, self._stamp = self._state.view(np.int32), 0
        self._marked: I32 | None = None
        self._nothing = np.zeros((0, numbers), np.float32)
        self._scratch(0)
        self.fresh: I32 = np.zeros(0, np.int32)
        """Rows that the last `admit` handed out."""

    @property
    def row(self) -> int:
        """Numbers of a gathered input row."""
        return (len(self.columns.starts) + len(self.columns.each)) * (self.width + 1) + len(self.mean)

    def admit(self, ids: U64, now_ms: int) -> I32:
        """Rows (n, F) of sighted ids; ids new to the table get their first values."""
        rows, fresh = self.map.admit(ids, now_ms)
        self.fresh = fresh.rows
        s = self._settings
        if len(fresh.rows):
            fused_rows.initialise(
                self._state, fresh.rows, fresh.keys, s.learner.seed, s.embedding.init_scale, s.optimizer.embedding_accumulator
            )
            for category in self._narrow.tolist():
                start, used = int(self.columns.starts[category]), int(self.columns.used[category])
                own = rows[:, start : start + int(self.columns.widths[category])]
                self.table[own[np.isin(own, fresh.rows)], used : self.width] = 0
        return rows

    def place(self, rows: I32, values: F32) -> None:
        """Overwrite rows (n,) with embeddings and first-order weights (n, E + 1); their accumulators stay."""
        self.table[rows] = values

    def gather(self, rows: I32, x: F32, slot: I64, out: F32, learn: bool = False) -> None:
        """Input rows (n, row) for table rows (n, F) and raw numbers (n, D) of scenarios' slots (n,).

        `learn`: `descend` is going to get the same `rows`, unchanged; their duplicates are found on the way.
        """
        read(self.reading(rows if learn else None), rows, x, slot, out, learn)

    def reading(self, learned: I32 | None) -> Reading:
        """For `read`; `learned`: the rows that it is going to be called with to learn, if it is."""
        if learned is not None:
            self._next_marks(learned)
        c, own = self.columns, self.own
        by_slot = (self._nothing, self._nothing, False) if own is None else (own.mean, own.scale, True)
        return Reading(
            self._state, self._marks, c.starts, c.widths, c.each, self.mean, self.scale, *by_slot, self._before, self._stamp
        )  # fmt: skip

    def descend(self, rows: I32, gradient: F32) -> None:
        """One AdaGrad step by the gradient (n, row) of gathered inputs."""
        descend(self.learning(rows), rows, gradient)

    def learning(self, rows: I32) -> Learning:
        """For `descend`, which must be called with these rows."""
        if rows is not self._marked:
            self._next_marks(rows)
            fused_rows.mark(self._marks, rows, self._before, self._stamp)
        self._marked, c = None, self.columns
        return Learning(
            self._state, c.starts, c.widths, c.used, c.category, c.apart, c.summed, len(c.each),
            self._settings.optimizer.embedding_rate, self._before, self._listed, self._slot, self._sums,
        )  # fmt: skip

    def _next_marks(self, rows: I32) -> None:
        """Marks of these rows begin above all that were ever given, so that none need be taken away; when words end, all are."""
        self._stamp += len(self._before)
        if len(self._before) < rows.size:
            self._scratch(rows.size)
        if self._stamp > _LAST_MARK - len(self._before):
            self._marks[:, -1], self._stamp = 0, 0
        self._marked = rows

    def _scratch(self, ids: int) -> None:
        """For minibatches of so many ids, see `fused_rows`."""
        self._before, self._slot = np.zeros(ids, np.int32), np.zeros(ids, np.int32)
        self._listed, self._sums = np.zeros(ids, np.int32), pages.zeros(ids * (self.width + 1)).reshape(ids, self.width + 1)

    def observe(self, x: F32, slot: I64, weight: F64) -> None:
        """Merge raw numbers (n, D) into the moments; called after the rows were trained on.

        In those of their scenarios' slots (n,) the rows weigh `weight` (n,), see `moments.row_weights`.
        """
        observe(self.moments, self.observed, x, slot, weight)
        self.standardise()

    def standardise(self) -> None:
        """Read numbers by the moments as they are now."""
        self.mean[:], self.scale[:], self.own = standard(self._settings, self.moments, self.observed)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The complete state as views, rows never used left out."""
        used = self.map.rows
        narrow = {"table.used": self.columns.used} if len(self._narrow) else {}
        return {
            "table": self.table[:used], "accumulator": self.accumulator[:used], "moments": self.moments,
            "moments.observed": self.observed, **self.map.arrays(), **narrow,
        }  # fmt: skip

    def load(self, arrays: Arrays) -> None:
        """Take over a state that `arrays` returned (copied).

        Raises:
            ValueError: its categories use other numbers of their embeddings than here, where any use fewer than all.
        """
        had = arrays.get("table.used", np.full(len(self.columns.used), self.width))
        if len(self._narrow) and had.tolist() != self.columns.used.tolist():
            raise ValueError(
                f"model.embedding_widths: the snapshot's categories use {had.tolist()} numbers of their embeddings, this "
                f"configuration's {self.columns.used.tolist()}; go back to the old widths, or begin without a snapshot"
            )
        self.map.load(dict(arrays))
        used = len(arrays["table"])
        self.table[:used], self.accumulator[:used] = arrays["table"], arrays["accumulator"]
        self.table[used:], self.accumulator[used:] = 0, 0
        self.moments[:], self.observed[:] = arrays["moments"], arrays["moments.observed"]
        self.standardise()
