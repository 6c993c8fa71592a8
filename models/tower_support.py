"""What tasks of the tower are adapted on in native code: the support rows of a minibatch, and the lists that share them.

Rows are virtual, one for each objective of a row (`models.tower_rows`).
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from models.matrices import Workspace, flat, part, room
from models.tower_rows import Lists, Meta, Tower, activate, errors, gated_back, logits, spread
from models.vectors import address, write
from state.kernels import inlined, kernel

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

SPARED = 150
"""Pairs of a row and a support row that cost as much as the calls of one more block."""
LARGEST = 1 << 14
"""Pairs in a block of several lists."""
TOGETHER = 16
"""Support rows are worked on in whole multiples of these: remainders of a vector cost more than rows that count nothing."""


class Known(NamedTuple):
    """What every distinct support row says under the tower as it is, before any inner step; zero in rows that fill up."""

    slope: F32
    """(V, 1) error of its logit."""
    active: F32
    """(V, H2) its hidden layer behind the gates."""
    error: F32
    """(V, H2) the error at its pre-activation."""
    label: F32
    """(V,)"""


class Block(NamedTuple):
    """Lists [first, last) of query rows [begin, end), which are adapted together on support rows [low, low + size).

    All rows are virtual; shares of the lists' tasks begin at `share`.
    """

    first: int
    last: int
    begin: int
    end: int
    low: int
    size: int
    share: int


@kernel
def fill(values: F32, by: float) -> None:
    """Set all numbers of a contiguous matrix. An assignment to a slice costs more."""
    numbers, value = flat(values), np.float32(by)
    for i in range(len(numbers)):
        numbers[i] = value


@kernel
def support_of(meta: Meta, lists: Lists, objectives: int, space: Workspace) -> Meta:
    """Meta inputs of the distinct support rows, one after the other; zeros fill up to a multiple of `TOGETHER`."""
    rows, width, entry, together = len(lists.at), meta.z.shape[1], meta.hidden.shape[1], 0
    count = rows * objectives
    size = count + (-count) % TOGETHER
    while size == count and together < rows and lists.at[together] == lists.at[0] + together:
        together += 1
    if together == rows:
        start = lists.at[0] * objectives
        return Meta(
            part(meta.hidden, start * entry, size, entry), part(meta.z, start * width, size, width),
            part(meta.gate, start * width, size, width), part(meta.offset, start, size, 1),
        )  # fmt: skip
    found = Meta(room(space, size, entry), room(space, size, width), room(space, size, width), room(space, size, 1))
    one, hidden, z, gate = np.float32(1), address(found.hidden), address(found.z), address(found.gate)
    for v in range(count):
        source = lists.at[v // objectives] * objectives + v % objectives
        write(hidden + 4 * v * entry, address(meta.hidden) + 4 * source * entry, one, entry)
        write(z + 4 * v * width, address(meta.z) + 4 * source * width, one, width)
        write(gate + 4 * v * width, address(meta.gate) + 4 * source * width, one, width)
        found.offset[v, 0] = meta.offset[source, 0]
    fill(part(found.hidden, count * entry, size - count, entry), 0.0)
    fill(part(found.z, count * width, size - count, width), 0.0)
    fill(part(found.gate, count * width, size - count, width), 0.0)
    fill(part(found.offset, count, size - count, 1), 0.0)
    return found


@kernel
def known_of(support: Meta, tower: Tower, given: F32, space: Workspace) -> Known:
    """What the support rows say."""
    (size, width), count = support.z.shape, given.size
    slope, active, error = room(space, size, 1), room(space, size, width), room(space, size, width)
    label, labels = room(space, 1, size)[0], flat(given)
    activate(support.z, support.gate, active)
    logits(active, tower, support.offset, slope[:count])
    errors(slope[:count], labels)
    for v in range(size):
        label[v] = labels[v] if v < count else np.float32(0)
        slope[v, 0] = slope[v, 0] if v < count else np.float32(0)
    spread(slope, tower.output, error)
    gated_back(error, support.z, support.gate)
    return Known(slope, active, error, label)


@inlined
def _span(lists: Lists, t: int) -> tuple[int, int]:
    """The first support row of a list and the one after its last."""
    low, high = lists.place[t, 0], lists.place[t, 0]
    for k in range(1, lists.taken[t]):
        at = lists.place[t, k]
        low, high = min(low, at), max(high, at)
    return int(low), int(high) + 1


@kernel
def blocks_of(lists: Lists, steps: int, objectives: int, rows: int) -> I64:
    """Every `Block` (B, 7), over so many virtual support rows.

    A list and those after it that are worth adapting in the same products, though they do not share all rows: neighbours are
    often lists of one user. From the second inner step on, each list has errors of its own.
    """
    found, n, t, begin, pairs = np.empty((len(lists.n_items), 7), np.int64), 0, 0, 0, 0
    while t < len(lists.n_items):
        if lists.taken[t] == 0:
            t, begin = t + 1, begin + lists.n_items[t]
            continue
        last, end = t + 1, begin + lists.n_items[t]
        low, high = _span(lists, t)
        while steps == 1 and last < len(lists.n_items) and lists.taken[last] > 0:
            items = lists.n_items[last]
            near, far = _span(lists, last)
            lower, higher = min(low, near), max(high, far)
            together = (end + items - begin + last + 1 - t) * (higher - lower)
            apart = (end - begin + last - t) * (high - low) + (items + 1) * (far - near)
            if together > apart + SPARED or together > LARGEST:
                break
            last, end, low, high = last + 1, end + items, lower, higher
        size = (high - low) * objectives
        size += (-size) % TOGETHER
        first = min(low * objectives, rows - size)
        own = found[n]
        own[0], own[1], own[2], own[3] = t, last, begin * objectives, end * objectives
        own[4], own[5], own[6] = first, size, pairs
        n, t, begin, pairs = n + 1, last, end, pairs + (last - t) * size
    return found[:n]


@kernel
def block_of(found: I64, b: int) -> Block:
    """One of `blocks_of`."""
    own = found[b]
    return Block(own[0], own[1], own[2], own[3], own[4], own[5], own[6])
