"""What a scenario makes of the shared embeddings: a factor of its own for each of their numbers, which may be negative.

All scenarios read one row per id, so where one scenario's visitors like what the others' do not, no gate between 0 and 2 and
no wide part helps: the row's sign is wrong. Every network therefore reads row x (1 + own gain of the scenario), and the row
learns through the same factor, so that rows of a contrary scenario teach what they mean to the others. There are
C x (E + 1) gains in a slot (`models.scenario_slots`), few enough to be learned from some thousand rows.

A gain earns its place with data: it follows FTRL-Proximal (McMahan et al. 2013, algorithm 1), whose threshold here is
`EVIDENCE` standard errors of the summed gradient. Until then it is exactly 0, and the scenario reads what is shared. Numbers
and the places of behaviour sequences have no gains: where they enter, weights are the network's own.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models import base
from state import config
from state.kernels import kernel

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
SERVING = ("gains.value",)
EVIDENCE = 1.0
START = 1e-6
"""Sum of squared gradients that everything begins with."""
FLOORS = frozenset({"fm", "lr"})
"""Models that are there for comparison and stay what their papers say."""


class State(NamedTuple):
    """What `learn` changes: gains, summed and squared gradients, memory for gradients, all of one shape; E, and the rate."""

    value: F32
    total: F32
    square: F32
    slope: F32
    width: int
    rate: float


class Gains:
    """The gains of every slot and their optimiser: (slots + 1, C x E + C), for the embeddings and the first-order weights."""

    def __init__(self, settings: config.Config) -> None:
        geometry = base.geometry(settings)
        shape = (settings.scenarios.slots + 1, geometry.embedded + len(geometry.categories))
        self.width = geometry.width
        self.rate = 0.0 if settings.model.name in FLOORS else settings.optimizer.gain_rate
        self.value, self.sum = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        self.square = np.full(shape, START, np.float32)
        self.state = State(self.value, self.sum, self.square, np.zeros(shape, np.float32), self.width, self.rate)

    def apply(self, x: F32, slot: I64) -> F32:
        """See `apply`."""
        return apply(x, slot, self.value, self.width)

    def descend(self, x: F32, slot: I64, gradient: F32) -> F32:
        """Learn from the gradient (n, row) of what `apply` made of rows x (n, row); returns the gradient of x itself."""
        return learn(self.state, x, slot, gradient)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The state as views, for a snapshot."""
        return {"gains.value": self.value, "gains.sum": self.sum, "gains.square": self.square}

    def load(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take over a state that `arrays` returned (copied)."""
        for name, own in self.arrays().items():
            own[:] = arrays[name]


def apply(x: F32, slot: I64, value: F32, width: int) -> F32:
    """Gathered input rows (n, row) as their slots (n,) read them; `x` itself where no slot has gains yet."""
    out = np.empty_like(x)
    return out if forward(x, slot, value, width, out) else x


@kernel
def _any(slot: I64, value: F32) -> bool:
    """Whether a slot of these has a gain."""
    last = -1
    for s in slot:
        if s != last and value[s].any():
            return True
        last = s
    return False


@kernel
def forward(x: F32, slot: I64, value: F32, width: int, out: F32) -> bool:
    """`apply` inside kernels: fill `out`, if there are gains at all."""
    if not _any(slot, value):
        return False
    # Unsigned places: a sum that might be negative would be checked for it, and the loop not be vectorised.
    categories = np.uintp(value.shape[1] // (width + 1))
    embedded, first = categories * np.uintp(width), np.uintp(x.shape[1]) - categories
    for i in range(len(x)):
        s = slot[i]
        for j in range(embedded):
            out[i, j] = x[i, j] * (np.float32(1) + value[s, j])
        for j in range(embedded, first):
            out[i, j] = x[i, j]
        for j in range(categories):
            out[i, first + j] = x[i, first + j] * (np.float32(1) + value[s, embedded + j])
    return True


@kernel
def learn(state: State, x: F32, slot: I64, gradient: F32) -> F32:
    """`Gains.descend` inside kernels: backward and one step, if there is a slot that may have gains."""
    if state.rate == 0 or slot.max() <= 0:
        return gradient
    out, present = np.empty_like(gradient), np.zeros(len(state.value), np.bool_)
    for s in slot:
        if not present[s]:
            present[s] = True
            state.slope[s] = 0
    _backward(x, slot, state.value, state.width, gradient, out, state.slope)
    _descend(state.value, state.total, state.square, state.slope, present, state.rate, EVIDENCE)
    return out


@kernel
def _backward(x: F32, slot: I64, value: F32, width: int, gradient: F32, out: F32, slope: F32) -> None:
    """Fill `out` with the gradient of x and add that of the gains to `slope`."""
    categories = np.uintp(value.shape[1] // (width + 1))
    embedded, first = categories * np.uintp(width), np.uintp(x.shape[1]) - categories
    for i in range(len(gradient)):
        s = slot[i]
        for j in range(embedded):
            slope[s, j] += gradient[i, j] * x[i, j]
        for j in range(embedded):
            out[i, j] = gradient[i, j] * (np.float32(1) + value[s, j])
        for j in range(embedded, first):
            out[i, j] = gradient[i, j]
        for j in range(categories):
            slope[s, embedded + j] += gradient[i, first + j] * x[i, first + j]
            out[i, first + j] = gradient[i, first + j] * (np.float32(1) + value[s, embedded + j])


@kernel
def _descend(
    value: F32, total: F32, square: F32, slope: F32, present: npt.NDArray[np.bool_], rate: float, evidence: float
) -> None:
    """FTRL-Proximal with an L1 penalty that grows as the standard error of the sum; slot 0 is nobody's and stays zero."""
    by, least = np.float32(rate), np.float32(evidence)
    for s in range(1, len(value)):
        if not present[s]:
            continue
        for j in range(value.shape[1]):
            g, before = slope[s, j], np.sqrt(square[s, j])
            square[s, j] += g * g
            now = np.sqrt(square[s, j])
            total[s, j] += g - (now - before) / by * value[s, j]
            t = total[s, j] / now
            over = abs(t) - least
            value[s, j] = (-by * over if t > 0 else by * over) if over > 0 else np.float32(0)
