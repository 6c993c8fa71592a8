"""All layers of MMoE's experts and the mixtures on top, over a block of rows while it is in the cache: forward, and the way back.

Layer by layer, the activations of a minibatch and their gradients would go to memory and come back several times between two
products, which costs as much as a tenth of the products. What `models.side_by_side` does is done here in another order.
"""

import numpy as np
import numpy.typing as npt

from models.matrices import Workspace, part, product, product_on, rectify, room, turned
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
def _rectify_back(slope: F32, active: F32, sums: F32) -> None:
    """Replace the gradients of active rows by those before the rectifier; `sums` is their sum over rows."""
    zero = np.float32(0)
    sums[:] = 0
    for i in range(len(slope)):
        for j in range(slope.shape[1]):
            value = slope[i, j] if active[i, j] > 0 else zero
            slope[i, j] = value
            sums[j] += value


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
def _turns(experts: Layers, space: Workspace) -> list[list[F32]]:
    """The transposed weights, by layer and expert."""
    return [[turned(weight[k], space) for k in range(len(weight))] for weight, _ in experts]


def room_needed(experts: Layers) -> int:
    """Numbers that `backward` takes as scratch."""
    widths = [weight.shape[2] for weight, _ in experts]
    weights = sum(weight.size + 16 * len(weight) for weight, _ in experts)
    return int(weights + BLOCK * (len(experts[-1][0]) * widths[-1] + sum(widths)) + 32 * (len(widths) + 1))


@kernel
def backward(
    x: F32, experts: Layers, layers: Plain, shares: F32, dhidden: F32, dshares: F32, dexperts: Layers, dx: F32, scratch: F32
) -> None:  # fmt: skip
    """Fill the gradients of shares, experts and x (R, inputs) from that (R, O, H) of the first R rows' mixtures."""
    rows, networks, last = len(dhidden), shares.shape[2], len(experts) - 1
    space = Workspace(scratch, np.zeros(1, np.int64))
    turns, top = _turns(experts, space), layers[-1].shape[2]
    mixed, slopes = room(space, BLOCK * networks, top), [room(space, BLOCK, layer.shape[2]) for layer in layers]
    for start in range(0, rows, BLOCK):
        count = min(start + BLOCK, rows) - start
        end, more = start + count, start > 0
        above = mixed[: networks * count].reshape(networks, count, top)
        mix_back(shares[start:end], layers[-1][:, start:end], dhidden[start:end], dshares[start:end], above)
        for k in range(networks):
            slope = part(mixed, k * count * top, count, top)
            for i in range(last, -1, -1):
                dweight, dbias = dexperts[i]
                width = dweight.shape[2]
                sums = np.empty(width, np.float32)
                _rectify_back(slope, _rows(layers[i], k, start, count), sums)
                own = slice(k * width, (k + 1) * width)
                dbias[own] = dbias[own] + sums if more else sums
                if i == 0:
                    product(x[start:end].T, slope, dweight[k], more)
                    product(slope, turns[0][k], dx[start:end], k > 0)
                else:
                    product(_rows(layers[i - 1], k, start, count).T, slope, dweight[k], more)
                    below = part(slopes[i - 1], 0, count, dweight.shape[1])
                    product(slope, turns[i][k], below, False)
                    slope = below
