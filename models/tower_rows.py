"""The tower over virtual rows in native code: what its kernels read and fill, and the mathematics that they share.

A row counts once per objective: all matrices hold virtual rows, row i's objective o at i x O + o. Query rows come first, then the
support rows that are none of them.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from models.matrices import product
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
def probability(logit: float, label: float) -> tuple[float, float]:
    """Sigmoid and cross-entropy of a logit."""
    e = math.exp(-abs(logit))
    p = 1.0 / (1.0 + e) if logit >= 0 else e / (1.0 + e)
    return p, max(logit, 0.0) - logit * label + math.log1p(e)


@kernel
def error_of(logit: float, label: float) -> np.float32:
    """Derivative of the cross-entropy."""
    e = math.exp(-abs(logit))
    return np.float32((1.0 if logit >= 0 else e) / (1.0 + e)) - np.float32(label)


@kernel
def activate(z: F32, gate: F32, start: int, out: F32) -> None:
    """`out` (n, H2) from n virtual rows from `start`."""
    for v in range(out.shape[0]):
        for j in range(out.shape[1]):
            value = z[v, j]
            out[v, j] = (np.float32(0) if value < 0 else value) * gate[start + v, j]


@kernel
def logits(active: F32, tower: Tower, offset: F32, start: int, out: F32) -> None:
    """`out` (n, 1) from n virtual rows from `start`, whose first is of objective 0."""
    objectives = len(tower.bias)
    for v in range(len(out)):
        out[v, 0] = tower.bias[v % objectives] + offset[start + v, 0]
    for o in range(objectives):
        product(active[o::objectives], tower.output[o : o + 1].T, out[o::objectives], True)


@kernel
def row_back(v: int, by: F32, z: F32, gate: F32, g: int, output: F32, dz: F32, dgate: F32, d: int) -> None:
    """Add the gradients of pre-activation v and of gates g, to row d, from that of the row's logit, `by` (n, 1).

    By numbers of rows: a slice of an array counts its users, which costs more than these few sums.
    """
    zero, o, up = np.float32(0), v % len(output), by[v, 0]
    for j in range(z.shape[1]):
        slope, value = up * output[o, j], z[v, j]
        dgate[d, j] += slope * (zero if value < 0 else value)
        dz[v, j] += slope * gate[g, j] if value > 0 else zero


@kernel
def output_back(by: F32, active: F32, slopes: Slopes) -> None:
    """Add the gradient of the output layer."""
    objectives = len(slopes.bias)
    for v in range(len(by)):
        slopes.bias[v % objectives] += by[v, 0]
    for o in range(objectives):
        product(by[o::objectives].T, active[o::objectives], slopes.output[o : o + 1], True)
