"""The tower over virtual rows in native code: what its kernels read and fill, and the mathematics that they share.

A row counts once per objective: all matrices hold virtual rows, row i's objective o at i x O + o. Query rows come first, then the
support rows that are none of them.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from models.matrices import flat, product, sigmoid
from models.vectors import address, dot
from state.kernels import kernel

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
F32 = npt.NDArray[np.float32]

ON = 1


class Settings(NamedTuple):
    """Of the adaptation: inner rate, inner steps, weight of the meta loss, rows that a task's own are weighed against."""

    rate: float
    steps: int
    weight: float
    prior: float


class Lists(NamedTuple):
    """L lists over R query rows, their labels and weights (R, O); list t adapts on support rows place[t, :taken[t]]."""

    label: F32
    weight: F32
    n_items: I64
    codes: I64
    """(L,) `models.modes`: only "on" lists add to the meta loss, adapted or not."""
    taken: I64
    place: I32
    s_label: F32
    """(U, O) of the distinct support rows."""
    at: I64
    """(U,) which of the computed rows each of them is: a query row, or one behind those."""


class Tower(NamedTuple):
    """Output weights (O, H2) and biases (O,); the hidden layer is applied before."""

    output: F32
    bias: F32


class Meta(NamedTuple):
    """Meta inputs of virtual rows: hidden (V, H1), pre-activation (V, H2), gates (V, H2), offsets of the logits (V, 1)."""

    hidden: F32
    z: F32
    gate: F32
    offset: F32


class Slopes(NamedTuple):
    """Gradients of the query rows' meta inputs and of the output layer, laid out as `Meta` and `Tower`."""

    hidden: F32
    z: F32
    gate: F32
    offset: F32
    output: F32
    bias: F32


@kernel
def errors(logit: F32, label: F32) -> None:
    """Replace logits (n, 1) by the derivatives of their cross-entropies, given labels (n,)."""
    sigmoid(logit, 1.0)
    for v in range(len(logit)):
        logit[v, 0] -= label[v]


@kernel
def activate(z: F32, gate: F32, out: F32) -> None:
    """`out` = what pre-activations let through their gates, all of them (n, H2)."""
    before, by, after = flat(z), flat(gate), flat(out)
    for i in range(len(before)):
        value = before[i]
        after[i] = (np.float32(0) if value < 0 else value) * by[i]


@kernel
def logits(active: F32, tower: Tower, offset: F32, out: F32) -> None:
    """`out` (n, 1) of n virtual rows, whose first is of objective 0."""
    objectives, width = tower.output.shape
    row, weight = address(active), address(tower.output)
    for v in range(0, len(out), objectives):
        for o in range(objectives):
            own = dot(row + 4 * width * (v + o), weight + 4 * width * o, width)
            out[v + o, 0] = tower.bias[o] + offset[v + o, 0] + own


@kernel
def spread(up: F32, output: F32, out: F32) -> None:
    """`out` (n, H2) = gradients of active rows from those of their logits (n, 1), under output weights (O, H2)."""
    objectives = len(output)
    for o in range(objectives):
        product(up[o::objectives], output[o : o + 1], out[o::objectives], False)


@kernel
def gated_back(slope: F32, z: F32, gate: F32) -> None:
    """Replace the gradients of active rows by those of their pre-activations, where the gates have none."""
    values, before, by = flat(slope), flat(z), flat(gate)
    for i in range(len(values)):
        values[i] = values[i] * by[i] if before[i] > 0 else np.float32(0)


@kernel
def both_back(dactive: F32, z: F32, gate: F32, dz: F32, dgate: F32) -> None:
    """Fill the gradients of pre-activations and gates."""
    up, before, by = flat(dactive), flat(z), flat(gate)
    out, gates = flat(dz), flat(dgate)
    for i in range(len(out)):
        value = before[i]
        gates[i] = up[i] * (np.float32(0) if value < 0 else value)
        out[i] = up[i] * by[i] if value > 0 else np.float32(0)


@kernel
def add_to(total: F32, more: F32) -> None:
    """Add matrices of one shape."""
    to, values = flat(total), flat(more)
    for i in range(len(to)):
        to[i] += values[i]


@kernel
def output_back(by: F32, active: F32, slopes: Slopes) -> None:
    """Add the gradient of the output layer."""
    objectives = len(slopes.bias)
    for o in range(objectives):
        for v in range(o, len(by), objectives):
            slopes.bias[o] += by[v, 0]
        product(by[o::objectives].T, active[o::objectives], slopes.output[o : o + 1], True)
