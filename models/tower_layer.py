"""The tower's hidden layer in native code, the shared one with what each row's scenario owns of it, and the way back.

What a slot has earned is one number, so its weights and the shared ones become one before its rows are read, where they lie: a
product for both, and for each of their gradients.
"""

import numpy as np
import numpy.typing as npt

from models.matrices import Workspace, column_sums, product, product_at, product_on, product_over, turned
from models.slot_layers import BLOCK, in_order, joined
from models.vectors import add, address, row_address
from state.kernels import kernel

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]


@kernel
def _virtual(rows: I64, objectives: int, o: int, out: I64) -> I64:
    """Where objective o of these rows stands."""
    for k in range(len(rows)):
        out[k] = rows[k] * objectives + o
    return out[: len(rows)]


@kernel
def forward(hidden: F32, weight: F32, bias: F32, own: F32, own_bias: F32, slot: I64, earned: F32, z: F32) -> None:
    """Fill the pre-activations z (n x O, H2) of hidden rows (n x O, H1): h (W + earned W_own) + b + earned b_own.

    `own` (slots x O, H1, H2), of no slots where nothing is owned; `earned` (n,) is the same for all rows of a `slot` (n,).
    """
    if not len(own):
        product_on(address(bias), 0, hidden, weight, z)
        return
    objectives, (both, start) = len(hidden) // max(len(slot), 1), (np.empty_like(weight), np.empty_like(bias))
    order, starts = in_order(slot, len(own) // max(objectives, 1))
    place = np.empty(len(slot), np.int64)
    for s in range(len(starts) - 1):
        rows = order[starts[s] : starts[s + 1]]
        for o in range(objectives if len(rows) else 0):
            joined(weight, own[s * objectives + o], earned[rows[0]], both)
            joined(bias, own_bias[s * objectives + o], earned[rows[0]], start)
            product_at(_virtual(rows, objectives, o, place), address(start), 0, hidden, both, z)


@kernel
def _shared_back(hidden: F32, weight: F32, dz: F32, dhidden: F32, dweight: F32, dbias: F32) -> None:
    """`backward` where nothing is owned."""
    space = Workspace(np.empty(weight.size + 64, np.float32), np.zeros(1, np.int64))
    back = turned(weight, space)
    column_sums(dz, dbias)
    for start in range(0, len(dz), BLOCK):
        rows = slice(start, min(start + BLOCK, len(dz)))
        product(hidden[rows].T, dz[rows], dweight, start > 0)
        product(dz[rows], back, dhidden[rows], True)


@kernel
def backward(
    hidden: F32, weight: F32, own: F32, slot: I64, earned: F32, dz: F32, dhidden: F32, dweight: F32, dbias: F32, down: F32,
    down_bias: F32,
) -> None:  # fmt: skip
    """Fill the gradients of weights and biases and add that of `hidden`, from that (n x O, H2) of the pre-activations."""
    if not len(own):
        _shared_back(hidden, weight, dz, dhidden, dweight, dbias)
        return
    objectives, both, one = len(dz) // max(len(slot), 1), np.empty_like(weight), np.float32(1)
    order, starts = in_order(slot, len(own) // max(objectives, 1))
    place, space = np.empty(BLOCK, np.int64), Workspace(np.empty(weight.size + 64, np.float32), np.zeros(1, np.int64))
    dweight[:], dbias[:], down[:], down_bias[:] = 0, 0, 0, 0
    for s in range(len(starts) - 1):
        for o in range(objectives if starts[s] < starts[s + 1] else 0):
            k, by, space.used[0] = s * objectives + o, earned[order[starts[s]]], 0
            joined(weight, own[k], by, both)
            back = turned(both, space)
            for start in range(starts[s], starts[s + 1], BLOCK):
                rows = _virtual(order[start : min(start + BLOCK, starts[s + 1])], objectives, o, place)
                product_over(rows, hidden, dz, down[k], start > starts[s])
                product_at(rows, address(dhidden), dhidden.strides[0], dz, back, dhidden)
                for v in rows:
                    add(row_address(down_bias, k), row_address(dz, v), one, down_bias.shape[1])
            _share(down[k], by, dweight)
            _share(down_bias[k], by, dbias)


@kernel
def _share(own: F32, by: float, total: F32) -> None:
    """Add to the shared gradient what a slot's rows say, and make it that of what the slot owns."""
    values, to, share = own.reshape(-1), total.reshape(-1), np.float32(by)
    for i in range(len(values)):
        to[i] += values[i]
        values[i] *= share
