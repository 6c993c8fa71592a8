"""All that a minibatch changes, in one native call: at 50 rows a call from python costs as much as much of its work."""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from learner import optimizers
from models import embedding, kernels, moments, own_gains, scenario_slots
from models.matrices import borrowed, flat
from state.kernels import Plain, kernel

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


NO_LABELS: F32 = np.zeros((0, 0), np.float32)


class Rows(NamedTuple):
    """A minibatch that was trained on: table rows (R, F), raw numbers (n, D), slots (R,), what was gathered (R, row), its
    gradient after the gains (R, row), and the rows of real traffic that each stands for (n,); if that is empty, what labels and
    their weights (R, O) say of it (`moments.row_weights`). Only the first n rows were shown; the others, items of a queue, count
    neither as rows of a scenario nor in moments.
    """

    rows: I32
    x: F32
    slot: I64
    shared: F32
    slope: F32
    weight: F64
    label: F32 = NO_LABELS
    label_weight: F32 = NO_LABELS


class Seen(NamedTuple):
    """Moments of the numbers, of all rows and by slot, the rows of each slot, and by what numbers are standardised, if it is by
    the moments of all rows; otherwise nothing.
    """

    moments: F64
    observed: F64
    slots: I64
    mean: F32
    scale: F32


class Held:
    """What a minibatch changes of a training state, to be changed together; `dense` by `gradient`."""

    def __init__(
        self, dense: F32, gradient: F32, adam: optimizers.Dense, table: embedding.Table, gains: own_gains.Gains,
        slots: scenario_slots.Slots,
    ) -> None:  # fmt: skip
        self.table = table
        self._dense = dense, gradient, tuple(adam.state), tuple(adam.rules)
        by_all = slice(None) if table.own is None else slice(0)
        seen = Seen(table.moments, table.observed, slots.rows, table.mean[by_all], table.scale[by_all])
        self._gains, self._seen = tuple(gains.state), tuple(seen)

    def descend(self, rows: Rows) -> bool:
        """Change parameters, table, gains and moments; False, and nothing is changed, if a gradient is not finite."""
        learning = tuple(self.table.learning(rows.rows))
        if not _descend(*self._dense, learning, self._gains, self._seen, tuple(rows)):
            return False
        if self.table.own is not None:
            self.table.standardise()
        return True


@kernel
def _descend(
    dense: F32, gradient: F32, adam: Plain, guard: Plain, table: Plain, own: Plain, known: Plain, trained: Plain
) -> bool:  # fmt: skip
    gains, learning = borrowed(own_gains.State(*own)), borrowed(embedding.Learning(*table))
    seen, rows, state = borrowed(Seen(*known)), borrowed(Rows(*trained)), borrowed(optimizers.State(*adam))
    dense, gradient = borrowed(dense), borrowed(gradient)
    total = kernels.squares(gradient)
    if not (np.isfinite(total) and np.isfinite(kernels.squares(flat(rows.slope)))):
        return False
    embedding.descend(learning, rows.rows, own_gains.learn(gains, rows.shared, rows.slot, rows.slope))
    optimizers.descend(dense, gradient, state, optimizers.Rules(*guard), math.sqrt(total), rows.slot)
    shown = rows.slot[: len(rows.x)]
    weight = rows.weight if len(rows.weight) else moments.counts(rows.label, rows.label_weight)[0]
    embedding.observe(seen.moments, seen.observed, rows.x, shown, weight)
    if len(seen.mean):
        mean, scale = moments.standard(seen.moments)
        seen.mean[:] = mean
        seen.scale[:] = scale
    scenario_slots.count(shown, seen.slots)
    return True
