"""The tower in one native call: plain and adapted scores, the joint loss and every gradient.

The same mathematics as `models.adaptation` without padding or autograd. Matrices are (rows, O x width): one row per sample,
its objectives side by side. Sums run in a fixed order, so a row's score is the same bytes in any company.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from state.kernels import kernel

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
F32 = npt.NDArray[np.float32]


class Settings(NamedTuple):
    """Of the adaptation: inner rate, inner steps, weight of the meta loss."""

    rate: float
    steps: int
    weight: float


class Tower(NamedTuple):
    """Output weights (O, H2) and biases (O,) of the tower; its hidden layer is applied before."""

    output: F32
    bias: F32


class Meta(NamedTuple):
    """Meta inputs of N rows: hidden (N, O x H1), pre-activation (N, O x H2), gates (N, *) from column `at`, offset (N, O)."""

    hidden: F32
    z: F32
    gates: F32
    at: int
    offset: F32


class Lists(NamedTuple):
    """Lists over the first R rows; support of list t: rows R + place[t, :taken[t]]; label of distinct support rows (U, O)."""

    n_items: I64
    codes: I64
    taken: I64
    place: I32
    label: F32


class Slopes(NamedTuple):
    """Gradients for the R query rows and of the output layer, laid out as `Meta` and `Tower`."""

    hidden: F32
    z: F32
    gates: F32
    offset: F32
    output: F32
    bias: F32


class Change(NamedTuple):
    """What one task's V virtual rows do: A (V, H1) and transposed, S (V, H2) and transposed, changes of the output."""

    rows: F32
    hidden: F32
    error: F32
    across: F32
    output: F32
    bias: F32


@kernel
def _dot(a: F32, b: F32) -> np.float32:
    """Four running sums: independent, yet in an order that never varies."""
    s0, s1, s2, s3 = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    whole = len(a) - len(a) % 4
    for j in range(0, whole, 4):
        s0 += a[j] * b[j]
        s1 += a[j + 1] * b[j + 1]
        s2 += a[j + 2] * b[j + 2]
        s3 += a[j + 3] * b[j + 3]
    for j in range(whole, len(a)):
        s0 += a[j] * b[j]
    return (s0 + s1) + (s2 + s3)


@kernel
def _sigmoid(logit: float) -> float:
    return 1.0 / (1.0 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1.0 + math.exp(logit))


@kernel
def _cross_entropy(logit: float, label: float) -> float:
    return max(logit, 0.0) - logit * label + math.log1p(math.exp(-abs(logit)))


@kernel
def _activate(z: F32, gate: F32, out: F32) -> None:
    for j in range(len(out)):
        out[j] = max(z[j], np.float32(0)) * gate[j]


@kernel
def _adapt(meta: Meta, tower: Tower, first: int, place: I32, label: F32, rate: float, steps: int) -> Change:
    """The inner steps on one task's support rows, `first + place`; virtual rows are (support row, objective)."""
    objectives, width = tower.output.shape
    entry, n = meta.hidden.shape[1] // objectives, len(place) * objectives
    rows, hidden = np.empty((n, entry), np.float32), np.empty((entry, n), np.float32)
    error, across = np.zeros((n, width), np.float32), np.empty((width, n), np.float32)
    output, bias = np.zeros((objectives, width), np.float32), np.zeros(objectives, np.float32)
    for k in range(len(place)):
        row = meta.hidden[first + place[k]]
        for o in range(objectives):
            for j in range(entry):
                hidden[j, k * objectives + o] = rows[k * objectives + o, j] = row[o * entry + j]
    products = np.empty((n if steps > 1 else 0, n), np.float32)
    if steps > 1:
        products[:] = 1
        for j in range(entry):
            for v in range(n):
                by = hidden[j, v]
                for u in range(n):
                    products[v, u] += by * hidden[j, u]
    scale = np.float32(-rate / max(len(place), 1))
    z, active, weights = np.empty(width, np.float32), np.empty(width, np.float32), np.empty((objectives, width), np.float32)
    bias_now = np.empty(objectives, np.float32)
    before = np.empty_like(error)
    for step in range(steps):
        weights[:] = tower.output + output
        bias_now[:] = tower.bias + bias
        before[:] = error
        for v in range(n):
            k, o = v // objectives, v % objectives
            row, at = first + place[k], meta.at + o * width
            z[:] = meta.z[row, o * width : (o + 1) * width]
            if step > 0:
                for u in range(n):
                    by = products[v, u]
                    for j in range(width):
                        z[j] += by * before[u, j]
            gate = meta.gates[row, at : at + width]
            _activate(z, gate, active)
            logit = _dot(active, weights[o]) + bias_now[o] + meta.offset[row, o]
            slope = np.float32(_sigmoid(logit) - label[place[k], o]) * scale
            for j in range(width):
                error[v, j] += slope * weights[o, j] * gate[j] if z[j] > 0 else np.float32(0)
                output[o, j] += slope * active[j]
            bias[o] += slope
    for v in range(n):
        for j in range(width):
            across[j, v] = error[v, j]
    return Change(rows, hidden, error, across, output, bias)


@kernel
def _shifted(hidden: F32, z: F32, change: Change, product: F32, out: F32) -> None:
    """Pre-activation of one query under a task's change: z + (q A' + 1) S."""
    product[:] = 1
    for j in range(len(hidden)):
        by = hidden[j]
        for v in range(len(product)):
            product[v] += by * change.hidden[j, v]
    out[:] = z
    for v in range(len(product)):
        by = product[v]
        for j in range(len(out)):
            out[j] += by * change.error[v, j]


@kernel
def _pull_back(slope: F32, change: Change, product: F32, out: F32) -> None:
    """Add to a query's hidden gradient what flows through the change of rank V: (dz S') A."""
    product[:] = 0
    for j in range(len(slope)):
        by = slope[j]
        for v in range(len(product)):
            product[v] += by * change.across[j, v]
    for v in range(len(product)):
        by = product[v]
        for j in range(len(out)):
            out[j] += by * change.rows[v, j]


@kernel
def plain(meta: Meta, tower: Tower, rows: int, out: F32) -> None:
    """Probabilities (rows, O) of the tower as it is."""
    objectives, width = tower.output.shape
    active = np.empty(width, np.float32)
    for i in range(rows):
        for o in range(objectives):
            at = meta.at + o * width
            _activate(meta.z[i, o * width : (o + 1) * width], meta.gates[i, at : at + width], active)
            out[i, o] = _sigmoid(_dot(active, tower.output[o]) + tower.bias[o] + meta.offset[i, o])


@kernel
def change(meta: Meta, tower: Tower, rows: int, label: F32, settings: Settings) -> Change:
    """What the rows after the first `rows`, whose labels (K, O) are given, do to the tower as one task's support."""
    return _adapt(meta, tower, rows, np.arange(len(label)).astype(np.int32), label, settings.rate, settings.steps)


@kernel
def _descend(z: F32, gate: F32, active: F32, weights: F32, by: np.float32, dz: F32, dgate: F32, dweights: F32) -> None:
    """Add the gradient of one logit, `by`, to those of pre-activation, gate and output weights; dz is overwritten."""
    for j in range(len(z)):
        up = by * weights[j]
        dgate[j] += up * max(z[j], np.float32(0))
        dz[j] = up * gate[j] if z[j] > 0 else np.float32(0)
        dweights[j] += by * active[j]


@kernel
def learn(
    meta: Meta,
    tower: Tower,
    lists: Lists,
    label: F32,
    weight: F32,
    settings: Settings,
    unadapted: F32,
    fitted: F32,
    slopes: Slopes,
) -> float:
    """Score R rows under both towers and return the joint loss; `slopes` receives its gradients (gates from column `at`).

    A list whose code is 1 ("on") adds to the meta loss, adapted or not. Zeroed slopes are not expected: all are written.
    """
    objectives, width = tower.output.shape
    entry, rows = meta.hidden.shape[1] // objectives, len(label)
    slopes.output[:] = 0
    slopes.bias[:] = 0
    slopes.hidden[:] = 0
    z, active, dz = np.empty(width, np.float32), np.empty(width, np.float32), np.empty(width, np.float32)
    loss, end = 0.0, 0
    for t in range(len(lists.n_items)):
        start, end = end, end + lists.n_items[t]
        taken, on = lists.taken[t], lists.codes[t] == 1
        change = _adapt(
            meta, tower, rows, lists.place[t, :taken], lists.label, settings.rate, settings.steps if taken else 0
        )  # fmt: skip
        weights, bias = tower.output + change.output, tower.bias + change.bias
        product = np.empty(change.error.shape[0], np.float32)
        for i in range(start, end):
            for o in range(objectives):
                low, at = o * width, meta.at + o * width
                gate, dgate = meta.gates[i, at : at + width], slopes.gates[i, at : at + width]
                dzs, dhidden = slopes.z[i, low : low + width], slopes.hidden[i, o * entry : (o + 1) * entry]
                own = weight[i, o] / rows
                _activate(meta.z[i, low : low + width], gate, active)
                logit = np.float64(_dot(active, tower.output[o]) + tower.bias[o] + meta.offset[i, o])
                p = _sigmoid(logit)
                unadapted[i, o] = fitted[i, o] = p
                share = own * (1.0 + settings.weight) if on and taken == 0 else own
                loss += share * _cross_entropy(logit, label[i, o])
                by = np.float32(share * (p - label[i, o]))
                dgate[:] = 0
                _descend(meta.z[i, low : low + width], gate, active, tower.output[o], by, dzs, dgate, slopes.output[o])
                slopes.offset[i, o] = by
                slopes.bias[o] += by
                if taken == 0:
                    continue
                _shifted(meta.hidden[i, o * entry : (o + 1) * entry], meta.z[i, low : low + width], change, product, z)
                _activate(z, gate, active)
                logit = np.float64(_dot(active, weights[o]) + bias[o] + meta.offset[i, o])
                p = _sigmoid(logit)
                fitted[i, o] = p
                if not on:
                    continue
                share = own * settings.weight
                loss += share * _cross_entropy(logit, label[i, o])
                by = np.float32(share * (p - label[i, o]))
                _descend(z, gate, active, weights[o], by, dz, dgate, slopes.output[o])
                slopes.offset[i, o] += by
                slopes.bias[o] += by
                for j in range(width):
                    dzs[j] += dz[j]
                _pull_back(dz, change, product, dhidden)
    return loss
