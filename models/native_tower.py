"""Scores by the compiled tower (`models.towers`) from meta inputs, whatever made them: a trunk of any kind, or a store."""

import numpy as np
import numpy.typing as npt

from models import base, modes, towers
from models.matrices import Workspace, product, workspace
from state import config
from state.kernels import kernel, plain

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

    def entered(self, meta: base.MetaInput) -> towers.Meta:
        """Meta inputs (n, O, .) as virtual rows whose hidden layer is entered."""
        rows, objectives, inputs = meta.hidden.shape
        virtual, width = rows * objectives, self._weight.shape[1]
        parts = (
            meta.hidden.reshape(virtual, inputs), meta.gate.expand(-1, -1, width).reshape(virtual, width),
            meta.offset.reshape(virtual, 1), meta.shift.reshape(virtual, -1),
        )  # fmt: skip
        hidden, gate, offset, shift = (plain(part.numpy()) for part in parts)
        z = np.empty((virtual, width), np.float32)
        enter(hidden, self._weight, self._bias, shift, z)
        return towers.Meta(hidden, z, gate, offset)

    def run(self, found: towers.Meta, label: F32, n_items: I64, place: I32, taken: I64) -> tuple[F32, F32]:
        """Probabilities (R, O) of the plain and of the adapted tower for R query rows, `n_items` of each task.

        `found` holds them and, behind them, U support rows with labels (U, O), of which place[t, : taken[t]] are those of task t.
        """
        objectives, own = len(self._tower.bias), len(label)
        rows = len(found.z) // objectives - own
        unknown, at = np.zeros((rows, objectives), np.float32), np.arange(rows, rows + own)
        codes = np.full(len(n_items), modes.FINE_TUNE_ONLY)
        lists = towers.Lists(unknown, unknown, n_items, codes, taken, place, label, at)
        unadapted, fitted = np.empty_like(unknown), np.empty_like(unknown)
        entry, width = self._weight.shape
        space = self._space(towers.room_needed(rows, int(n_items.max(initial=0)), own, objectives, entry, width))
        towers.learn(found, self._tower, lists, self._settings, unadapted, fitted, self._nothing, False, space)
        self._spare.append(space)
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
