"""All layers of MMoE's experts and the mixtures on top, over a block of rows while it is in the cache: forward, and the way back.

Layer by layer, the activations of a minibatch and their gradients would go to memory and come back several times between two
products, which costs as much as a tenth of the products. What `models.side_by_side` does is done here in another order.
"""

import numpy as np
import numpy.typing as npt

from models.matrices import Workspace, part, product_on, rectify, room, turn
from models.rectified import product_left, rectify_back, words
from models.side_by_side import mix_back, place
from models.vectors import add, address, row_address, write
from state.kernels import Plain, kernel

F32 = npt.NDArray[np.float32]
Layers = tuple[tuple[F32, F32], ...]
"""By layer: weights (K, inputs, outputs) and biases (K x outputs), or their gradients."""
BLOCK = 256


@kernel
def _rows(values: F32, k: int, start: int, count: int) -> F32:
    """Rows of matrix k as a matrix of their own, whose numbers count as lying nowhere else."""
    return part(values, place(values, k, start), count, values.shape[2])


@kernel
def _mix(shares: F32, found: F32, start: int, end: int, out: F32) -> None:
    """Fill rows of `out` (n, O, H) with the mixtures of experts (K, n, H) by shares (n, O, K)."""
    experts, _, width = found.shape
    for i in range(start, end):
        for o in range(out.shape[1]):
            target = row_address(out, i) + 4 * o * width
            for k in range(experts):
                source = address(found) + 4 * place(found, k, i)
                if k == 0:
                    write(target, source, shares[i, o, k], width)
                else:
                    add(target, source, shares[i, o, k], width)


@kernel
def _widest(experts: Layers) -> int:
    """Inputs or outputs of the widest layer."""
    most = experts[0][0].shape[1]
    for weight, _ in experts:
        most = max(most, weight.shape[2])
    return int(most)


@kernel
def forward(x: F32, experts: Layers, shares: F32, layers: Plain, hidden: F32) -> None:
    """Fill `layers`, each (K, n, outputs), and their mixtures `hidden` (n, O, H), from x (n, inputs) and shares (n, O, K)."""
    for start in range(0, len(x), BLOCK):
        end = min(start + BLOCK, len(x))
        for k in range(shares.shape[2]):
            for i in range(len(experts)):
                weight, bias = experts[i]
                out, first = _rows(layers[i], k, start, end - start), address(bias) + 4 * k * weight.shape[2]
                if i == 0:
                    product_on(first, 0, x[start:end], weight[k], out)
                else:
                    product_on(first, 0, _rows(layers[i - 1], k, start, end - start), weight[k], out)
                rectify(out)
        _mix(shares, layers[-1], start, end, hidden)


@kernel
def _like(experts: Layers, space: Workspace, turn_them: bool) -> list[list[F32]]:
    """Memory for the transposed weights by layer and expert, and the weights in it."""
    made = [[room(space, weight.shape[2], weight.shape[1]) for _ in range(len(weight))] for weight, _ in experts]
    if turn_them:
        for i in range(len(experts)):
            for k in range(len(made[i])):
                turn(experts[i][0][k], made[i][k])
    return made


def room_needed(experts: Layers) -> int:
    """Numbers that `backward` takes as scratch."""
    inputs, widths = experts[0][0].shape[1], [weight.shape[2] for weight, _ in experts]
    weights = sum(weight.size + 16 * len(weight) for weight, _ in experts)
    rows = len(experts[-1][0]) * widths[-1] + sum(widths) + max(inputs, *widths) + 2 * inputs
    return int(2 * weights + BLOCK * rows + 32 * (len(widths) + 4))


@kernel
def backward(
    x: F32, experts: Layers, layers: Plain, shares: F32, dhidden: F32, dshares: F32, dexperts: Layers, dx: F32, scratch: F32
) -> None:  # fmt: skip
    """Fill the gradients of shares, experts and x (R, inputs) from that (R, O, H) of the first R rows' mixtures."""
    rows, networks, last, inputs = len(dhidden), shares.shape[2], len(experts) - 1, x.shape[1]
    space, top, widest = Workspace(scratch, np.zeros(1, np.int64)), layers[-1].shape[2], _widest(experts)
    turns, grown = _like(experts, space, True), _like(experts, space, False)
    mixed, slopes = room(space, BLOCK * networks, top), [room(space, BLOCK, layer.shape[2]) for layer in layers]
    flat, entries, dentries = room(space, widest, BLOCK), room(space, BLOCK, inputs), room(space, BLOCK, inputs)
    marks, marks_across = np.empty((words(widest), BLOCK), np.uint64), np.empty((words(BLOCK), widest), np.uint64)
    for start in range(0, rows, BLOCK):
        count = min(start + BLOCK, rows) - start
        end, more = start + count, start > 0
        above = mixed[: networks * count].reshape(networks, count, top)
        mix_back(shares[start:end], layers[-1][:, start:end], dhidden[start:end], dshares[start:end], above)
        # As rows that begin at whole vectors.
        entry, dentry = part(entries, 0, count, inputs), part(dentries, 0, count, inputs)
        _copy(x[start:end], entry)
        for k in range(networks):
            slope = part(mixed, k * count * top, count, top)
            for i in range(last, -1, -1):
                dbias, width = dexperts[i][1], slope.shape[1]
                sums, across = np.empty(width, np.float32), part(flat, 0, width, count)
                left = rectify_back(slope, _rows(layers[i], k, start, count), sums, across, marks, marks_across)
                own = slice(k * width, (k + 1) * width)
                dbias[own] = dbias[own] + sums if more else sums
                before = entry if i == 0 else _rows(layers[i - 1], k, start, count)
                below = dentry if i == 0 else part(slopes[i - 1], 0, count, before.shape[1])
                product_left(slope, marks, left, turns[i][k], below, i == 0 and k > 0)
                product_left(across, marks_across, left, before, grown[i][k], more)
                slope = below
        _copy(dentry, dx[start:end])
    for i in range(last + 1):
        for k in range(networks):
            turn(grown[i][k], dexperts[i][0][k])


@kernel
def _copy(rows: F32, out: F32) -> None:
    """Copy rows; their numbers must be contiguous."""
    for i in range(len(rows)):
        write(row_address(out, i), row_address(rows, i), np.float32(1), rows.shape[1])
