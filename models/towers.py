"""The tower and its adaptation in native code: plain and adapted scores, the joint loss and its gradients.

The same mathematics as `models.adaptation` without padding or autograd. A row counts once per objective: all matrices here hold
virtual rows, row i's objective o at i x O + o. Query rows come first, then the distinct support rows.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from models.matrices import Workspace, product, room, turned
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


class Known(NamedTuple):
    """What every distinct support row says before any inner step: its error (V, 1), and what its hidden layer makes of it."""

    slope: F32
    active: F32
    """(V, H2)"""
    back: F32
    """(V, H2) derivative of the logit by the pre-activation."""


class Change(NamedTuple):
    """What one task does to the tower: W + A'S, A the hidden inputs of the m virtual rows from `first`, and the output layer.

    Rows between those of the task belong to others; their errors are zero, so that they have no say.
    """

    first: int
    error: F32
    """S (m, H2)"""
    tower: Tower


@kernel
def _probability(logit: float, label: float) -> tuple[float, float]:
    """Sigmoid and cross-entropy of a logit."""
    e = math.exp(-abs(logit))
    p = 1.0 / (1.0 + e) if logit >= 0 else e / (1.0 + e)
    return p, max(logit, 0.0) - logit * label + math.log1p(e)


@kernel
def _activate(z: F32, gate: F32, start: int, out: F32) -> None:
    """`out` (n, H2) from n virtual rows from `start`."""
    for v in range(out.shape[0]):
        for j in range(out.shape[1]):
            value = z[v, j]
            out[v, j] = (np.float32(0) if value < 0 else value) * gate[start + v, j]


@kernel
def _logits(active: F32, tower: Tower, offset: F32, start: int, out: F32) -> None:
    """`out` (n, 1) from n virtual rows from `start`, whose first is of objective 0."""
    objectives = len(tower.bias)
    for v in range(len(out)):
        out[v, 0] = tower.bias[v % objectives] + offset[start + v, 0]
    for o in range(objectives):
        product(active[o::objectives], tower.output[o : o + 1].T, out[o::objectives], True)


@kernel
def _back(by: F32, z: F32, gate: F32, start: int, output: F32, dz: F32) -> None:
    """Gradient (n, H2) of the pre-activation `z` (n, H2) from the logits' (n, 1)."""
    objectives = len(output)
    for v in range(dz.shape[0]):
        o, up = v % objectives, by[v, 0]
        for j in range(dz.shape[1]):
            dz[v, j] = up * output[o, j] * gate[start + v, j] if z[v, j] > 0 else np.float32(0)


@kernel
def _gate_back(by: F32, z: F32, start: int, output: F32, dgate: F32) -> None:
    """Add the gradient of the gates of n virtual rows from `start`."""
    objectives = len(output)
    for v in range(z.shape[0]):
        o, up = v % objectives, by[v, 0]
        for j in range(z.shape[1]):
            value = z[v, j]
            dgate[start + v, j] += up * output[o, j] * (np.float32(0) if value < 0 else value)


@kernel
def _output_back(by: F32, active: F32, slopes: Slopes) -> None:
    """Add the gradient of the output layer."""
    objectives = len(slopes.bias)
    for v in range(len(by)):
        slopes.bias[v % objectives] += by[v, 0]
    for o in range(objectives):
        product(by[o::objectives].T, active[o::objectives], slopes.output[o : o + 1], True)


@kernel
def _known(meta: Meta, tower: Tower, first: int, label: F32, space: Workspace) -> Known:
    """The support rows, from virtual row `first`, under the tower as it is."""
    objectives, width = tower.output.shape
    count = label.size
    slope, active, back, ones = room(space, count, 1), room(space, count, width), room(space, count, width), room(space, count, 1)
    ones[:] = 1
    z = meta.z[first : first + count]
    _activate(z, meta.gate, first, active)
    _logits(active, tower, meta.offset, first, slope)
    for v in range(count):
        y = label[v // objectives, v % objectives]
        slope[v, 0] = np.float32(_probability(slope[v, 0], y)[0]) - y
    _back(ones, z, meta.gate, first, tower.output, back)
    return Known(slope, active, back)


@kernel
def _adapt(
    meta: Meta,
    across: F32,
    tower: Tower,
    known: Known,
    support: int,
    place: I32,
    label: F32,
    settings: Settings,
    space: Workspace,
) -> Change:
    """The inner steps on one task's support rows, `place` among those that start at virtual row `support`.

    `across` (H1, V) holds the hidden inputs of all support rows as columns.
    """
    objectives, width = tower.output.shape
    low, high = place.min() * objectives, (place.max() + 1) * objectives
    error, output, bias = room(space, high - low, width), room(space, objectives, width), room(space, 1, objectives)[0]
    scale = np.float32(-settings.rate / (len(place) + settings.prior))
    error[:] = 0
    output[:] = tower.output
    bias[:] = tower.bias
    for k in range(len(place)):
        for o in range(objectives):
            v = place[k] * objectives + o
            by = known.slope[v, 0] * scale
            bias[o] += by
            for j in range(width):
                error[v - low, j] = by * known.back[v, j]
            for j in range(width):
                output[o, j] += by * known.active[v, j]
    change = Change(support + low, error, Tower(output, bias))
    if settings.steps > 1:
        products = room(space, high - low, high - low)
        products[:] = 1
        product(meta.hidden[support + low : support + high], across[:, low:high], products, True)
        for _ in range(settings.steps - 1):
            _next_step(meta, products, change, support, place, label, scale, space)
    return change


@kernel
def _next_step(
    meta: Meta, products: F32, change: Change, support: int, place: I32, label: F32, scale: np.float32, space: Workspace
) -> None:
    """An inner step after the first: a row sees what the others did before through the products of their hidden inputs."""
    objectives, width = change.tower.output.shape
    first, count, mark = change.first, len(change.error), space.used[0]
    z, active, by, back = room(space, count, width), room(space, count, width), room(space, count, 1), room(space, count, width)
    z[:] = meta.z[first : first + count]
    product(products, change.error, z, True)
    _activate(z, meta.gate, first, active)
    _logits(active, change.tower, meta.offset, first, by)
    for k in range(len(place)):
        for o in range(objectives):
            v, y = support + place[k] * objectives + o - first, label[place[k], o]
            by[v, 0] = (np.float32(_probability(by[v, 0], y)[0]) - y) * scale
    _back(by, z, meta.gate, first, change.tower.output, back)
    for k in range(len(place)):
        for o in range(objectives):
            v = support + place[k] * objectives + o - first
            change.tower.bias[o] += by[v, 0]
            for j in range(width):
                change.error[v, j] += back[v, j]
            for j in range(width):
                change.tower.output[o, j] += by[v, 0] * active[v, j]
    space.used[0] = mark


@kernel
def _plain(
    meta: Meta, tower: Tower, lists: Lists, settings: Settings, unadapted: F32, fitted: F32, slopes: Slopes, train: bool,
    space: Workspace,
) -> float:  # fmt: skip
    """Score all rows under the tower as it is; returns the original loss, with the meta loss of lists without support."""
    objectives, width = tower.output.shape
    count, end, loss = lists.label.size, 0, 0.0
    active, by, z = room(space, count, width), room(space, count, 1), meta.z[:count]
    _activate(z, meta.gate, 0, active)
    _logits(active, tower, meta.offset, 0, by)
    for t in range(len(lists.n_items)):
        start, end = end, end + lists.n_items[t]
        factor = 1.0 + (settings.weight if lists.codes[t] == ON and lists.taken[t] == 0 else 0.0)
        for v in range(start * objectives, end * objectives):
            i, o = v // objectives, v % objectives
            p, entropy = _probability(by[v, 0], lists.label[i, o])
            share = lists.weight[i, o] * factor / len(lists.label)
            unadapted[i, o] = fitted[i, o] = p
            loss += share * entropy
            by[v, 0] = share * (p - lists.label[i, o])
    if not train:
        return loss
    slopes.offset[:] = by
    slopes.hidden[:] = 0
    slopes.gate[:] = 0
    slopes.output[:] = 0
    slopes.bias[:] = 0
    _back(by, z, meta.gate, 0, tower.output, slopes.z)
    _gate_back(by, z, 0, tower.output, slopes.gate)
    _output_back(by, active, slopes)
    return loss


@kernel
def _adapted(
    meta: Meta, across: F32, change: Change, lists: Lists, begin: int, end: int, share: float, fitted: F32, slopes: Slopes,
    train: bool, space: Workspace,
) -> float:  # fmt: skip
    """Score rows [begin, end) under a changed tower; `share` of their loss is returned, when training its gradients are added.

    A query's pre-activation is z + (q A' + 1) S, so its hidden input also gets (dz S') A.
    """
    objectives, width = change.tower.output.shape
    start, stop, low, n, loss = begin * objectives, end * objectives, change.first - lists.label.size, len(change.error), 0.0
    count = stop - start
    products, z, active, by = room(space, count, n), room(space, count, width), room(space, count, width), room(space, count, 1)
    products[:] = 1
    product(meta.hidden[start:stop], across[:, low : low + n], products, True)
    z[:] = meta.z[start:stop]
    product(products, change.error, z, True)
    _activate(z, meta.gate, start, active)
    _logits(active, change.tower, meta.offset, start, by)
    for v in range(count):
        i, o = begin + v // objectives, v % objectives
        p, entropy = _probability(by[v, 0], lists.label[i, o])
        own = lists.weight[i, o] * share
        fitted[i, o] = p
        loss += own * entropy
        by[v, 0] = own * (p - lists.label[i, o])
    if train and share > 0:
        back = room(space, count, width)
        _back(by, z, meta.gate, start, change.tower.output, back)
        _gate_back(by, z, start, change.tower.output, slopes.gate)
        _output_back(by, active, slopes)
        product(back, turned(change.error, space), products, False)
        product(products, meta.hidden[change.first : change.first + n], slopes.hidden[start:stop], True)
        for v in range(count):
            slopes.offset[start + v, 0] += by[v, 0]
            for j in range(width):
                slopes.z[start + v, j] += back[v, j]
    return loss


@kernel
def learn(
    meta: Meta, tower: Tower, lists: Lists, settings: Settings, unadapted: F32, fitted: F32, slopes: Slopes, train: bool,
    space: Workspace,
) -> float:  # fmt: skip
    """Score R rows under both towers, (R, O) each, and return the joint loss; when training, `slopes` receives its gradients."""
    loss = _plain(meta, tower, lists, settings, unadapted, fitted, slopes, train, space)
    support, end = lists.label.size, 0
    known = _known(meta, tower, support, lists.s_label, space)
    across = turned(meta.hidden[support:], space)
    for t in range(len(lists.n_items)):
        begin, end = end, end + lists.n_items[t]
        if lists.taken[t] == 0:
            continue
        mark = space.used[0]
        share = settings.weight / len(lists.label) if lists.codes[t] == ON else 0.0
        place = lists.place[t, : lists.taken[t]]
        change = _adapt(meta, across, tower, known, support, place, lists.s_label, settings, space)
        loss += _adapted(meta, across, change, lists, begin, end, share, fitted, slopes, train, space)
        space.used[0] = mark
    return loss


def room_needed(rows: int, most_items: int, support: int, objectives: int, entry: int, width: int) -> int:
    """Numbers that `learn` takes from the workspace, at most."""
    v, q, gaps = support * objectives, most_items * objectives, 32 * 16
    known = v * (2 * width + 2 + entry)
    change = v * (5 * width + 1 + v) + objectives * (width + 1)
    return rows * objectives * (width + 1) + known + change + q * (v + 3 * width + 1) + gaps
