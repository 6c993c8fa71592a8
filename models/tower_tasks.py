"""Adaptation of the tower in native code: the tasks of a minibatch, in blocks of lists that share support rows.

The same mathematics as `models.adaptation` without padding or autograd: a task's change is W + A' (share x S), so nothing of the
tower's size is ever made for a task. Only products are made block by block; what is done number by number is done for all rows
in one pass, as a pass over the few rows of a task would cost less than its call.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from models.cross_entropy import cross_entropy
from models.matrices import Workspace, flat, part, product, product_on, room, turned
from models.tower_rows import ON, Lists, Meta, Settings, Slopes, Tower, activate, add_to, errors, gated_back, output_back
from models.tower_support import LARGEST, TOGETHER, Block, Known, block_of, blocks_of, fill, known_of, support_of
from models.vectors import address, dot, write
from state.kernels import inlined, kernel

F32 = npt.NDArray[np.float32]


class Change(NamedTuple):
    """What tasks do to the tower: W + A' (share x S), A the hidden inputs of the support rows of a task's block."""

    share: F32
    """(pairs,) task by task: by how much an error of its block counts, zero where it belongs to others only."""
    error: F32
    """S (V, H2) of one inner step, after which it is the same for all tasks; of several (pairs, H2), with the shares in it."""
    output: F32
    """(L, O x H2)"""
    bias: F32
    """(L, O)"""


def numbers_needed(rows: int, most_items: int, support: int, objectives: int, entry: int, width: int) -> int:
    """Numbers that `adapted` takes from the workspace, at most, for so many rows, a list having `most_items`."""
    v, q = support * objectives + TOGETHER, rows * objectives
    block = max(most_items * objectives * v, LARGEST * objectives * objectives + TOGETHER * q)
    known = v * (2 * entry + 9 * width + 6 + v)
    return known + 2 * block + q * (5 * width + 4) + 32 * TOGETHER


@inlined
def _change(
    support: Meta, tower: Tower, known: Known, lists: Lists, settings: Settings, block: Block, across: F32, change: Change,
    space: Workspace,
) -> None:  # fmt: skip
    """The inner steps of a block's tasks; `across` A' (H1, size)."""
    (objectives, width), size, low = tower.output.shape, block.size, block.low
    tasks = block.last - block.first
    share = part(change.share, block.share, tasks, size)
    fill(share, 0.0)
    by = room(space, tasks, size)
    for t in range(tasks):
        taken = lists.taken[block.first + t]
        rate = np.float32(-settings.rate / (taken + settings.prior))
        for k in range(taken):
            at = lists.place[block.first + t, k] * objectives - low
            for o in range(objectives):
                share[t, at + o] += rate
        for k in range(size):
            by[t, k] = share[t, k] * known.slope[low + k, 0]
    output = part(change.output, block.first * objectives * width, tasks, objectives * width)
    active = part(known.active, low * width, size, width)
    for o in range(objectives):
        # Rows of an objective are as many apart as there are objectives, from the first of the block on.
        own = (o - low) % objectives
        product_on(address(tower.output) + 4 * o * width, 0, by[:, own::objectives], active[own::objectives],
                   output[:, o * width : (o + 1) * width])  # fmt: skip
        for t in range(tasks):
            total = tower.bias[o]
            for k in range(own, size, objectives):
                total += by[t, k]
            change.bias[block.first + t, o] = total
    if settings.steps > 1:
        _more_steps(support, known, settings.steps, block, across, share[0], change, space)


@inlined
def _more_steps(
    support: Meta, known: Known, steps: int, block: Block, across: F32, share: F32, change: Change, space: Workspace
) -> None:  # fmt: skip
    """The inner steps of a single task after the first, which leave the shares in its errors."""
    (objectives, size), low, width = (change.bias.shape[1], block.size), block.low, known.error.shape[1]
    error = part(change.error, block.share * width, size, width)
    for k in range(size):
        write(address(error) + 4 * k * width, address(known.error) + 4 * (low + k) * width, share[k], width)
    hidden = part(support.hidden, low * support.hidden.shape[1], size, support.hidden.shape[1])
    products = room(space, size, size)
    fill(products, 1.0)
    product(hidden, across, products, True)
    own = Meta(
        hidden, part(support.z, low * width, size, width), part(support.gate, low * width, size, width),
        part(support.offset, low, size, 1),
    )  # fmt: skip
    tower = Tower(part(change.output, block.first * objectives * width, objectives, width), change.bias[block.first])
    for _ in range(steps - 1):
        _next_step(own, known.label[low : low + size], products, share, tower, error, (-low) % objectives, space)
    for k in range(size):
        share[k] = np.float32(1)


@kernel
def _next_step(
    support: Meta, label: F32, products: F32, share: F32, tower: Tower, error: F32, first: int, space: Workspace
) -> None:  # fmt: skip
    """An inner step of one task after the first: a row sees what the others did before through the products of their inputs.

    `tower` is the task's own, which moves on, as does `error`; the first row of objective 0 is `first`.
    """
    (m, width), objectives, mark = error.shape, len(tower.bias), space.used[0]
    z, active, by, up = room(space, m, width), room(space, m, width), room(space, m, 1), room(space, m, width)
    product_on(address(support.z), 4 * width, products, error, z)
    activate(z, support.gate, active)
    for k in range(m):
        o = (k - first) % objectives
        own = dot(address(active) + 4 * k * width, address(tower.output) + 4 * o * width, width)
        by[k, 0] = tower.bias[o] + support.offset[k, 0] + own
    errors(by, label)
    for k in range(m):
        o = (k - first) % objectives
        by[k, 0] *= share[k]
        write(address(up) + 4 * k * width, address(tower.output) + 4 * o * width, by[k, 0], width)
    gated_back(up, z, support.gate)
    add_to(error, up)
    for k in range(m):
        o = (k - first) % objectives
        tower.bias[o] += by[k, 0]
    for o in range(objectives):
        at = (first + o) % objectives
        product(by[at::objectives].T, active[at::objectives], tower.output[o : o + 1], True)
    space.used[0] = mark


@inlined
def _weigh(products: F32, plus: float, change: Change, lists: Lists, block: Block, objectives: int) -> None:
    """Products (rows, size) of a block's rows, each `plus` something, by their list's shares."""
    end, base, numbers, more = 0, block.share, flat(products), np.float32(plus)
    size = np.uintp(block.size)
    for t in range(block.first, block.last):
        start, end = end, end + lists.n_items[t] * objectives
        for v in range(start, end):
            at, own = np.uintp(v) * size, np.uintp(base)
            for k in range(size):
                numbers[at + k] = (numbers[at + k] + more) * change.share[own + k]
        base += block.size


@inlined
def _errors_at(steps: int, block: Block) -> int:
    """Which row of `Change.error` is a block's first."""
    return block.share if steps > 1 else block.low


@kernel
def adapted(
    meta: Meta, tower: Tower, lists: Lists, settings: Settings, fitted: F32, slopes: Slopes, train: bool, space: Workspace
) -> float:  # fmt: skip
    """Score the rows of adapted lists under their own towers; returns their part of the loss. Training adds its gradients.

    A query's pre-activation is z + ((q A' + 1) x share) S, so its hidden input also gets ((dz S') x share) A.
    """
    (objectives, width), count, entry = tower.output.shape, lists.label.size, meta.hidden.shape[1]
    support = support_of(meta, lists, objectives, space)
    known = known_of(support, tower, lists.s_label, space)
    table = blocks_of(lists, settings.steps, objectives, len(support.z))
    pairs = table[-1, 6] + (table[-1, 1] - table[-1, 0]) * table[-1, 5]
    tasks = len(lists.n_items)
    change = Change(
        np.empty(pairs, np.float32), np.empty((pairs, width), np.float32) if settings.steps > 1 else known.error,
        room(space, tasks, objectives * width), room(space, tasks, objectives),
    )  # fmt: skip
    z, mark = room(space, count, width), space.used[0]
    fill(z, 0.0)
    for b in range(len(table)):
        block, space.used[0] = block_of(table, b), mark
        across = turned(part(support.hidden, block.low * entry, block.size, entry), space)
        _change(support, tower, known, lists, settings, block, across, change, space)
        rows = block.end - block.begin
        products = room(space, rows, block.size)
        product(part(meta.hidden, block.begin * entry, rows, entry), across, products, False)
        _weigh(products, 1.0, change, lists, block, objectives)
        error = part(change.error, _errors_at(settings.steps, block) * width, block.size, width)
        start = block.begin * width
        product_on(address(meta.z) + 4 * start, 4 * width, products, error, part(z, start, rows, width))
    space.used[0] = mark
    active, by = room(space, count, width), room(space, count, 1)
    activate(z, part(meta.gate, 0, count, width), active)
    loss, learns = _losses(meta, change, lists, settings, active, by, fitted, space)
    if not (train and learns):
        return loss
    dz = room(space, count, width)
    _slopes(meta, change, lists, z, active, by, dz, slopes)
    mark = space.used[0]
    for b in range(len(table)):
        block, space.used[0] = block_of(table, b), mark
        rows = block.end - block.begin
        error = part(change.error, _errors_at(settings.steps, block) * width, block.size, width)
        products = room(space, rows, block.size)
        product(part(dz, block.begin * width, rows, width), turned(error, space), products, False)
        _weigh(products, 0.0, change, lists, block, objectives)
        given = part(support.hidden, block.low * entry, block.size, entry)
        product(products, given, part(slopes.hidden, block.begin * entry, rows, entry), True)
    return loss


@inlined
def _losses(
    meta: Meta, change: Change, lists: Lists, settings: Settings, active: F32, by: F32, fitted: F32, space: Workspace
) -> tuple[float, bool]:
    """Loss of the adapted rows, and whether any of it is learned from; fills `by` (n, 1) with its derivative by each logit."""
    (count, width), objectives, end, loss, learns = active.shape, change.bias.shape[1], 0, 0.0, False
    row, weight = address(active), address(change.output)
    for t in range(len(lists.n_items)):
        start, end = end, end + lists.n_items[t]
        for v in range(start * objectives, end * objectives):
            by[v, 0] = 0
            if lists.taken[t] > 0:
                o = v % objectives
                own = dot(row + 4 * width * v, weight + 4 * width * (t * objectives + o), width)
                by[v, 0] = own + change.bias[t, o] + meta.offset[v, 0]
    chance, entropy = room(space, 1, count)[0], room(space, 1, count)[0]
    cross_entropy(by, lists.label, chance, entropy)
    label, weights, said, end = flat(lists.label), flat(lists.weight), flat(fitted), 0
    for t in range(len(lists.n_items)):
        start, end = end, end + lists.n_items[t] * objectives
        adapts = lists.taken[t] > 0
        share = settings.weight / len(lists.label) if adapts and lists.codes[t] == ON else 0.0
        learns |= share > 0
        for v in range(start, end):
            if adapts:
                own = weights[v] * share
                said[v] = chance[v]
                loss += own * entropy[v]
                by[v, 0] = own * (chance[v] - label[v])
            else:
                by[v, 0] = 0
    return loss, learns


@inlined
def _slopes(meta: Meta, change: Change, lists: Lists, z: F32, active: F32, by: F32, dz: F32, slopes: Slopes) -> None:
    """Fill the gradient `dz` of adapted pre-activations; add it and all others but that of hidden inputs to the rows' own."""
    (count, width), objectives, end = z.shape, change.bias.shape[1], 0
    to, weight = address(dz), address(change.output)
    for t in range(len(lists.n_items)):
        start, end = end, end + lists.n_items[t] * objectives
        for v in range(start, end):
            # Where a list is not adapted, `by` is 0, and `z` as well, where its weights are nothing that was set.
            own = weight + 4 * width * (t * objectives + v % objectives) if lists.taken[t] > 0 else address(z) + 4 * width * v
            write(to + 4 * width * v, own, by[v, 0], width)
    gate = part(meta.gate, 0, count, width)
    before, by_gate, out, sums, gates = flat(z), flat(gate), flat(dz), flat(slopes.z), flat(slopes.gate)
    for i in range(len(out)):
        value, up = before[i], out[i]
        gates[i] += up * (np.float32(0) if value < 0 else value)
        slope = up * by_gate[i] if value > 0 else np.float32(0)
        out[i] = slope
        sums[i] += slope
    output_back(by, active, slopes)
    add_to(slopes.offset, by)
