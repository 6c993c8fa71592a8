"""Adaptation of the tower in native code: the tasks of a minibatch, in blocks of lists that share support rows.

The same mathematics as `models.adaptation` without padding or autograd: a task's change is W + A' (share x S), so nothing of the
tower's size is ever made for a task.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from models.matrices import Workspace, product, room, turned
from models.tower_rows import (
    ON,
    Lists,
    Meta,
    Settings,
    Slopes,
    Tower,
    activate,
    error_of,
    logits,
    output_back,
    probability,
    row_back,
)  # fmt: skip
from models.vectors import address, write
from state.kernels import kernel

F32 = npt.NDArray[np.float32]

SPARED = 256
"""Pairs of a row and a support row that cost as much as the calls of one more block."""
LARGEST = 1 << 14
"""Pairs in a block of several lists."""


class Known(NamedTuple):
    """What every distinct support row says under the tower as it is, before any inner step."""

    slope: F32
    """(V, 1) error of its logit."""
    error: F32
    """(V, H2) the same at its pre-activation."""
    output: F32
    """(V, H2) its gradient of the output layer."""
    across: F32
    """(H1, V) hidden inputs as columns."""
    back: F32
    """(H2, V) errors as columns."""


class Block(NamedTuple):
    """Lists [first, last) of query rows [begin, end), which are adapted together; theirs are among support rows [low, high)."""

    first: int
    last: int
    begin: int
    end: int
    low: int
    high: int


class Change(NamedTuple):
    """What the T tasks of a block do to the tower: W + A' (share x S), A the hidden inputs of its m virtual support rows."""

    share: F32
    """(T, m) by how much a row's error counts; zero where it belongs to others only."""
    error: F32
    """S (m, H2)"""
    back: F32
    """S' (H2, m)"""
    output: F32
    """(T, O x H2)"""
    bias: F32
    """(T, O)"""


@kernel
def _copy(to: F32, i: int, source: F32, j: int) -> None:
    """Row i = row j. An assignment of slices costs more than these few numbers."""
    write(address(to) + i * to.strides[0], address(source) + j * source.strides[0], np.float32(1), to.shape[1])


@kernel
def support_of(meta: Meta, lists: Lists, objectives: int, space: Workspace) -> Meta:
    """Meta inputs of the distinct support rows, one after the other."""
    count, entry, width = len(lists.at) * objectives, meta.hidden.shape[1], meta.z.shape[1]
    found = Meta(room(space, count, entry), room(space, count, width), room(space, count, width), room(space, count, 1))
    for v in range(count):
        source = lists.at[v // objectives] * objectives + v % objectives
        _copy(found.hidden, v, meta.hidden, source)
        _copy(found.z, v, meta.z, source)
        _copy(found.gate, v, meta.gate, source)
        found.offset[v, 0] = meta.offset[source, 0]
    return found


@kernel
def known_of(support: Meta, tower: Tower, label: F32, space: Workspace) -> Known:
    """What the support rows say."""
    objectives, width = tower.output.shape
    count = label.size
    slope, error, output = room(space, count, 1), room(space, count, width), room(space, count, width)
    activate(support.z, support.gate, 0, output)
    logits(output, tower, support.offset, 0, slope)
    for v in range(count):
        o = v % objectives
        up = error_of(slope[v, 0], label[v // objectives, o])
        slope[v, 0] = up
        for j in range(width):
            output[v, j] *= up
            error[v, j] = up * tower.output[o, j] * support.gate[v, j] if support.z[v, j] > 0 else np.float32(0)
    return Known(slope, error, output, turned(support.hidden, space), turned(error, space))


@kernel
def block_of(lists: Lists, first: int, begin: int, steps: int) -> Block:
    """List `first` and those after it that are worth adapting in the same products, though they do not share all rows.

    Neighbours are often lists of one user. From the second inner step on, each list has errors of its own.
    """
    last, end = first + 1, begin + lists.n_items[first]
    own = lists.place[first, : lists.taken[first]]
    low, high = own.min(), own.max() + 1
    while steps == 1 and last < len(lists.n_items) and lists.taken[last] > 0:
        own = lists.place[last, : lists.taken[last]]
        near, far, items = own.min(), own.max() + 1, lists.n_items[last]
        lower, higher = min(low, near), max(high, far)
        together = (end + items - begin + last + 1 - first) * (higher - lower)
        apart = (end - begin + last - first) * (high - low) + (items + 1) * (far - near)
        if together > apart + SPARED or together > LARGEST:
            break
        last, end, low, high = last + 1, end + items, lower, higher
    return Block(first, last, begin, end, low, high)


@kernel
def change_of(
    support: Meta, tower: Tower, known: Known, lists: Lists, settings: Settings, block: Block, space: Workspace
) -> Change:  # fmt: skip
    """The inner steps of a block's tasks."""
    objectives, width = tower.output.shape
    low, high, tasks = block.low * objectives, block.high * objectives, block.last - block.first
    share, output, bias = room(space, tasks, high - low), room(space, tasks, objectives * width), room(space, tasks, objectives)
    share[:] = 0
    for t in range(tasks):
        taken = lists.taken[block.first + t]
        by = np.float32(-settings.rate / (taken + settings.prior))
        for k in range(taken):
            at = (lists.place[block.first + t, k] - block.low) * objectives
            for o in range(objectives):
                share[t, at + o] += by
        for o in range(objectives):
            bias[t, o] = tower.bias[o]
            for j in range(width):
                output[t, o * width + j] = tower.output[o, j]
    for o in range(objectives):
        own = share[:, o::objectives]
        product(own, known.output[low + o : high : objectives], output[:, o * width : (o + 1) * width], True)
        product(own, known.slope[low + o : high : objectives], bias[:, o : o + 1], True)
    if settings.steps == 1:
        return Change(share, known.error[low:high], known.back[:, low:high], output, bias)
    error, products = room(space, high - low, width), room(space, high - low, high - low)
    for v in range(high - low):
        for j in range(width):
            error[v, j] = known.error[low + v, j] * share[0, v]
    products[:] = 1
    product(support.hidden[low:high], known.across[:, low:high], products, True)
    for _ in range(settings.steps - 1):
        _next_step(support, products, share[0], error, output, bias[0], lists.s_label, low, space)
    share[:] = 1
    return Change(share, error, turned(error, space)[:, : high - low], output, bias)


@kernel
def _next_step(
    support: Meta, products: F32, share: F32, error: F32, output: F32, bias: F32, label: F32, low: int, space: Workspace
) -> None:  # fmt: skip
    """An inner step of one task after the first: a row sees what the others did before through the products of their inputs."""
    (count, width), objectives, mark = error.shape, len(bias), space.used[0]
    z, active, by, ignored = room(space, count, width), room(space, count, width), room(space, count, 1), room(space, 1, width)
    tower = Tower(output.reshape(objectives, width), bias)
    z[:] = support.z[low : low + count]
    product(products, error, z, True)
    activate(z, support.gate, low, active)
    logits(active, tower, support.offset, low, by)
    for v in range(count):
        by[v, 0] = error_of(by[v, 0], label[(low + v) // objectives, v % objectives]) * share[v]
        row_back(v, by, z, support.gate, low + v, tower.output, error, ignored, 0)
    for v in range(count):
        bias[v % objectives] += by[v, 0]
        for j in range(width):
            tower.output[v % objectives, j] += by[v, 0] * active[v, j]
    space.used[0] = mark


@kernel
def _weigh(products: F32, change: Change, lists: Lists, block: Block, objectives: int, more: float) -> None:
    """Products (rows, m) of a block's rows plus `more`, by their list's shares."""
    plus, end = np.float32(more), 0
    for t in range(len(change.share)):
        start, end = end, end + lists.n_items[block.first + t] * objectives
        own = change.share[t]
        for v in range(start, end):
            for k in range(len(own)):
                products[v, k] = (products[v, k] + plus) * own[k]


@kernel
def adapted(
    meta: Meta, support: Meta, known: Known, change: Change, lists: Lists, settings: Settings, block: Block, fitted: F32,
    slopes: Slopes, train: bool, space: Workspace,
) -> float:  # fmt: skip
    """Score the rows of a block under changed towers; returns their part of the loss, when training its gradients are added.

    A query's pre-activation is z + ((q A' + 1) x share) S, so its hidden input also gets ((dz S') x share) A.
    """
    objectives, width = change.bias.shape[1], change.error.shape[1]
    start, count, low = block.begin * objectives, (block.end - block.begin) * objectives, block.low * objectives
    n, stop = len(change.error), start + count
    products, z, active, by = room(space, count, n), room(space, count, width), room(space, count, width), room(space, count, 1)
    product(meta.hidden[start:stop], known.across[:, low : low + n], products, False)
    _weigh(products, change, lists, block, objectives, 1.0)
    z[:] = meta.z[start:stop]
    product(products, change.error, z, True)
    activate(z, meta.gate, start, active)
    loss, learns = _losses(meta, change, lists, settings, block, active, by, fitted, space)
    if not (train and learns):
        return loss
    dz = room(space, count, width)
    dz[:] = 0
    end = 0
    for t in range(len(change.bias)):
        begin, end = end, end + lists.n_items[block.first + t] * objectives
        output = change.output[t].reshape(objectives, width)
        for v in range(begin, end):
            row_back(v, by, z, meta.gate, start + v, output, dz, slopes.gate, start + v)
    output_back(by, active, slopes)
    product(dz, change.back, products, False)
    _weigh(products, change, lists, block, objectives, 0.0)
    product(products, support.hidden[low : low + n], slopes.hidden[start:stop], True)
    for v in range(count):
        slopes.offset[start + v, 0] += by[v, 0]
        for j in range(width):
            slopes.z[start + v, j] += dz[v, j]
    return loss


@kernel
def _losses(
    meta: Meta, change: Change, lists: Lists, settings: Settings, block: Block, active: F32, by: F32, fitted: F32,
    space: Workspace,
) -> tuple[float, bool]:  # fmt: skip
    """Loss of a block's rows, and whether any of it is learned from; fills `by` (n, 1) with its derivative by each logit."""
    (rows, width), objectives = active.shape, change.bias.shape[1]
    scaled, ones = room(space, rows, width), room(space, width, 1)
    ones[:] = 1
    end, loss, learns, first = 0, 0.0, False, block.begin * objectives
    for t in range(len(change.bias)):
        start, end = end, end + lists.n_items[block.first + t] * objectives
        for v in range(start, end):
            o = v % objectives
            by[v, 0] = change.bias[t, o] + meta.offset[first + v, 0]
            for j in range(width):
                scaled[v, j] = active[v, j] * change.output[t, o * width + j]
    product(scaled, ones, by, True)
    end = 0
    for t in range(len(change.bias)):
        start, end = end, end + lists.n_items[block.first + t] * objectives
        share = settings.weight / len(lists.label) if lists.codes[block.first + t] == ON else 0.0
        learns |= share > 0
        for v in range(start, end):
            i, o = (first + v) // objectives, v % objectives
            p, entropy = probability(by[v, 0], lists.label[i, o])
            own = lists.weight[i, o] * share
            fitted[i, o] = p
            loss += own * entropy
            by[v, 0] = own * (p - lists.label[i, o])
    return loss, learns
