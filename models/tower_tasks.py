"""Adaptation of the tower in native code: the tasks of a minibatch, in blocks of lists that share support rows.

The same mathematics as `models.adaptation` without padding or autograd: a task's change is W + A' (share x S), so nothing of the
tower's size is ever made for a task.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from models.matrices import Workspace, flat, part, product, room, turned
from models.tower_rows import (
    ON,
    Lists,
    Meta,
    Settings,
    Slopes,
    Tower,
    activate,
    add_to,
    errors,
    gated_back,
    logits,
    output_back,
    probability,
    spread,
)  # fmt: skip
from models.vectors import address, dot, write
from state.kernels import inlined, kernel

F32 = npt.NDArray[np.float32]

SPARED = 64
"""Pairs of a row and a support row that cost as much as the calls of one more block."""
LARGEST = 1 << 14
"""Pairs in a block of several lists."""


class Known(NamedTuple):
    """What every distinct support row says under the tower as it is, before any inner step."""

    slope: F32
    """(V, 1) error of its logit."""
    active: F32
    """(V, H2) its hidden layer behind the gates."""
    error: F32
    """(V, H2) the error at its pre-activation."""


class Block(NamedTuple):
    """Lists [first, last) of query rows [begin, end), which are adapted together; theirs are among support rows [low, high)."""

    first: int
    last: int
    begin: int
    end: int
    low: int
    high: int


class Change(NamedTuple):
    """What the T tasks of a block do to the tower: W + A' (share x S), A the hidden inputs of its m virtual support rows.

    Of a single task the shares are in S.
    """

    share: F32
    """(T, m) by how much a row's error counts; zero where it belongs to others only."""
    across: F32
    """A' (H1, m)"""
    error: F32
    """S (m, H2)"""
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
    rows, width, together = len(lists.at), meta.z.shape[1], 0
    while together < rows and lists.at[together] == lists.at[0] + together:
        together += 1
    if rows and together == rows:
        start = lists.at[0] * objectives
        end = start + rows * objectives
        return Meta(meta.hidden[start:end], meta.z[start:end], meta.gate[start:end], meta.offset[start:end])
    count = rows * objectives
    found = Meta(
        room(space, count, meta.hidden.shape[1]), room(space, count, width), room(space, count, width), room(space, count, 1)
    )
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
    count, width = support.z.shape
    slope, active, error = room(space, count, 1), room(space, count, width), room(space, count, width)
    activate(support.z, support.gate, active)
    logits(active, tower, support.offset, slope)
    errors(slope, flat(label))
    spread(slope, tower.output, error)
    gated_back(error, support.z, support.gate)
    return Known(slope, active, error)


@inlined
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


@inlined
def change_of(
    support: Meta, tower: Tower, known: Known, lists: Lists, settings: Settings, block: Block, space: Workspace
) -> Change:  # fmt: skip
    """The inner steps of a block's tasks."""
    objectives, width = tower.output.shape
    low, high, tasks = block.low * objectives, block.high * objectives, block.last - block.first
    m = high - low
    share, output, bias = room(space, tasks, m), room(space, tasks, objectives * width), room(space, tasks, objectives)
    _shares(lists, settings, block, objectives, share)
    by = room(space, tasks, m)
    for t in range(tasks):
        write(address(output[t]), address(tower.output), np.float32(1), objectives * width)
        for k in range(m):
            by[t, k] = share[t, k] * known.slope[low + k, 0]
        for o in range(objectives):
            bias[t, o] = tower.bias[o]
            for k in range(o, m, objectives):
                bias[t, o] += by[t, k]
    for o in range(objectives):
        product(by[:, o::objectives], known.active[low + o : high : objectives], output[:, o * width : (o + 1) * width], True)
    across = turned(support.hidden[low:high], space)
    if tasks > 1:
        return Change(share, across, known.error[low:high], output, bias)
    error = room(space, m, width)
    for k in range(m):
        write(address(error) + 4 * k * width, address(known.error) + 4 * (low + k) * width, share[0, k], width)
    if settings.steps > 1:
        products = room(space, m, m)
        _fill(products, 1.0)
        product(support.hidden[low:high], across, products, True)
        label = flat(lists.s_label)[low:high]
        own = Meta(support.hidden[low:high], support.z[low:high], support.gate[low:high], support.offset[low:high])
        for _ in range(settings.steps - 1):
            _next_step(own, label, products, share[0], Tower(part(output, 0, objectives, width), bias[0]), error, space)
    return Change(share, across, error, output, bias)


@inlined
def _shares(lists: Lists, settings: Settings, block: Block, objectives: int, share: F32) -> None:
    """Minus the inner rate times every row's weight, by task."""
    _fill(share, 0.0)
    for t in range(len(share)):
        taken = lists.taken[block.first + t]
        by = np.float32(-settings.rate / (taken + settings.prior))
        for k in range(taken):
            at = (lists.place[block.first + t, k] - block.low) * objectives
            for o in range(objectives):
                share[t, at + o] += by


@kernel
def _fill(values: F32, by: float) -> None:
    numbers, value = flat(values), np.float32(by)
    for i in range(len(numbers)):
        numbers[i] = value


@kernel
def _next_step(support: Meta, label: F32, products: F32, share: F32, tower: Tower, error: F32, space: Workspace) -> None:
    """An inner step of one task after the first: a row sees what the others did before through the products of their inputs.

    `tower` is the task's own, which moves on, as does `error`.
    """
    (m, width), objectives, mark = error.shape, len(tower.bias), space.used[0]
    z, active, by = room(space, m, width), room(space, m, width), room(space, m, 1)
    write(address(z), address(support.z), np.float32(1), z.size)
    product(products, error, z, True)
    activate(z, support.gate, active)
    logits(active, tower, support.offset, by)
    errors(by, label)
    up = room(space, m, width)
    for k in range(m):
        by[k, 0] *= share[k]
    spread(by, tower.output, up)
    gated_back(up, z, support.gate)
    add_to(error, up)
    for o in range(objectives):
        for k in range(o, m, objectives):
            tower.bias[o] += by[k, 0]
        product(by[o::objectives].T, active[o::objectives], tower.output[o : o + 1], True)
    space.used[0] = mark


@inlined
def _weigh(products: F32, change: Change, lists: Lists, block: Block, objectives: int) -> None:
    """Products (rows, m) of a block's rows, by their list's shares; those of a single task are weighed already."""
    if len(change.share) == 1:
        return
    end = 0
    for t in range(len(change.share)):
        start, end = end, end + lists.n_items[block.first + t] * objectives
        own = change.share[t]
        for v in range(start, end):
            for k in range(len(own)):
                products[v, k] *= own[k]


@inlined
def adapted(
    meta: Meta, support: Meta, change: Change, lists: Lists, settings: Settings, block: Block, fitted: F32, slopes: Slopes,
    train: bool, space: Workspace,
) -> float:  # fmt: skip
    """Score the rows of a block under changed towers; returns their part of the loss, when training its gradients are added.

    A query's pre-activation is z + ((q A' + 1) x share) S, so its hidden input also gets ((dz S') x share) A.
    """
    objectives, (n, width) = change.bias.shape[1], change.error.shape
    low, start, stop = block.low * objectives, block.begin * objectives, block.end * objectives
    count = stop - start
    products, z, active, by = room(space, count, n), room(space, count, width), room(space, count, width), room(space, count, 1)
    gate = meta.gate[start:stop]
    _fill(products, 1.0)
    product(meta.hidden[start:stop], change.across, products, True)
    _weigh(products, change, lists, block, objectives)
    write(address(z), address(meta.z) + 4 * start * width, np.float32(1), z.size)
    product(products, change.error, z, True)
    activate(z, gate, active)
    loss, learns = _losses(meta, change, lists, settings, block, active, by, fitted)
    if not (train and learns):
        return loss
    up, dz, end = room(space, count, width), room(space, count, width), 0
    for t in range(len(change.bias)):
        begin, end = end, end + lists.n_items[block.first + t] * objectives
        spread(by[begin:end], part(change.output, t * objectives * width, objectives, width), up[begin:end])
    _back(up, z, gate, dz, slopes.z[start:stop], slopes.gate[start:stop])
    output_back(by, active, slopes)
    product(dz, turned(change.error, space), products, False)
    _weigh(products, change, lists, block, objectives)
    product(products, support.hidden[low : low + n], slopes.hidden[start:stop], True)
    add_to(slopes.offset[start:stop], by)
    return loss


@inlined
def _back(up: F32, z: F32, gate: F32, dz: F32, total: F32, dgate: F32) -> None:
    """Fill the gradient of adapted pre-activations and add it to the rows' own; add that of gates."""
    given, before, by, out = flat(up), flat(z), flat(gate), flat(dz)
    sums, gates = flat(total), flat(dgate)
    for i in range(len(out)):
        value = before[i]
        gates[i] += given[i] * (np.float32(0) if value < 0 else value)
        slope = given[i] * by[i] if value > 0 else np.float32(0)
        out[i] = slope
        sums[i] += slope


@inlined
def _losses(
    meta: Meta, change: Change, lists: Lists, settings: Settings, block: Block, active: F32, by: F32, fitted: F32
) -> tuple[float, bool]:
    """Loss of a block's rows, and whether any of it is learned from; fills `by` (n, 1) with its derivative by each logit."""
    width, objectives = active.shape[1], change.bias.shape[1]
    end, v, loss, learns = block.begin, 0, 0.0, False
    row, weight = address(active), address(change.output)
    for t in range(len(change.bias)):
        share = settings.weight / len(lists.label) if lists.codes[block.first + t] == ON else 0.0
        learns |= share > 0
        begin, end = end, end + lists.n_items[block.first + t]
        for i in range(begin, end):
            for o in range(objectives):
                logit = dot(row + 4 * width * v, weight + 4 * width * (t * objectives + o), width)
                logit += change.bias[t, o] + meta.offset[i * objectives + o, 0]
                p, entropy = probability(logit, lists.label[i, o])
                own = lists.weight[i, o] * share
                fitted[i, o] = p
                loss += own * entropy
                by[v, 0] = own * (p - lists.label[i, o])
                v += 1
    return loss, learns
