"""Scores by the compiled tower (`models.towers`) from meta inputs, whatever made them: a trunk of any kind, or a store."""

import numpy as np
import numpy.typing as npt

from models import base, modes, towers
from models.matrices import Workspace, part, product, workspace
from state import config, meta_supports
from state.kernels import Plain, kernel, plain

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]


@kernel
def enter(hidden: F32, weight: F32, bias: F32, shift: F32, z: F32) -> None:
    """Fill the pre-activations z (V, H2) = hidden W + b + shift, which is (V, H2) or (V, 1)."""
    for v in range(len(z)):
        for j in range(z.shape[1]):
            z[v, j] = bias[j] + shift[v, j if shift.shape[1] > 1 else 0]
    product(hidden, weight, z, True)


@kernel
def _put(given: Plain, weight: F32, bias: F32, held: Plain, at: int) -> None:
    """`NativeTower.enter` from virtual row `at` on; a gate of one number is that of all."""
    out = towers.Meta(*held)
    hidden, gate, offset, shift = given
    rows, width = len(hidden), len(bias)
    for v in range(rows):
        for j in range(hidden.shape[1]):
            out.hidden[at + v, j] = hidden[v, j]
        for j in range(width):
            out.gate[at + v, j] = gate[v, j if gate.shape[1] > 1 else 0]
        out.offset[at + v, 0] = offset[v, 0]
    enter(hidden, weight, bias, shift, part(out.z, at * width, rows, width))


class NativeTower:
    """The tower of a published model, plain and adapted to support rows; threads may share it."""

    def __init__(self, settings: config.MetaLearning, fast: base.Parameters) -> None:
        """`fast` are the parameters that `base.tower` names, of a configuration in which `engines.obstacle` finds nothing."""
        weights = (plain(fast[name].detach().numpy()) for name in base.FAST)
        self._weight, self._bias, *output = weights
        self._tower = towers.Tower(*output)
        self._settings = towers.Settings(settings.inner_rate, settings.inner_steps, settings.weight, settings.prior_rows)
        self._nothing = self._slopes()
        self._spare: list[Workspace] = []
        self._held: list[towers.Meta] = []

    def hold(self, rows: int) -> towers.Meta:
        """Memory for the meta inputs of so many rows or more, unset, which `run` takes back."""
        (entry, width), virtual = self._weight.shape, rows * len(self._tower.bias)
        try:
            held = self._held.pop()
        except IndexError:
            held = None
        if held is not None and len(held.z) >= virtual:
            return held
        most = virtual + virtual // 4
        return towers.Meta(*(np.empty((most, columns), np.float32) for columns in (entry, width, width, 1)))

    def enter(self, meta: meta_supports.Parts, held: towers.Meta, at: int) -> None:
        """Put meta inputs of n rows into rows `at` to `at` + n, with the hidden layer entered."""
        virtual, objectives = meta.offset.size, len(self._tower.bias)
        parts = tuple(plain(part.reshape(virtual, -1)) for part in meta)
        _put(parts, self._weight, self._bias, tuple(held), at * objectives)

    def run(self, held: towers.Meta, label: F32, n_items: I64, place: I32, taken: I64) -> tuple[F32, F32]:
        """Probabilities (R, O) of the plain and of the adapted tower for R query rows, `n_items` of each task.

        `held` has them and, behind them, U support rows with labels (U, O), of which place[t, : taken[t]] are those of task t.
        """
        objectives, own, rows = len(self._tower.bias), len(label), int(n_items.sum())
        found = towers.Meta(*(part[: (rows + own) * objectives] for part in held))
        unknown, at = np.zeros((rows, objectives), np.float32), np.arange(rows, rows + own)
        codes = np.full(len(n_items), modes.FINE_TUNE_ONLY)
        lists = towers.Lists(unknown, unknown, n_items, codes, taken, place, label, at)
        unadapted, fitted = np.empty_like(unknown), np.empty_like(unknown)
        entry, width = self._weight.shape
        space = self._space(towers.room_needed(rows, int(n_items.max(initial=0)), own, objectives, entry, width))
        towers.learn(found, self._tower, lists, self._settings, unadapted, fitted, self._nothing, False, space)
        self._spare.append(space)
        self._held.append(held)
        return unadapted, fitted

    def _space(self, needed: int) -> Workspace:
        """Memory for so many numbers: what an earlier call left, if it is enough."""
        try:
            space = self._spare.pop()
        except IndexError:
            return workspace(needed)
        space.used[0] = 0
        return space if len(space.numbers) >= needed else workspace(needed + needed // 4)

    def _slopes(self) -> towers.Slopes:
        """Gradients of no rows, which scoring does not fill."""
        entry, width = self._weight.shape
        hidden, z, gate, offset, output = (np.zeros((0, columns), np.float32) for columns in (entry, width, width, 1, width))
        return towers.Slopes(hidden, z, gate, offset, output, np.zeros(0, np.float32))
