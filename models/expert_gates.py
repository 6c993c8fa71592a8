"""MMoE's gates in native code: from input rows to the shares of experts, and back.

A row's logits are the shared gate's and its scenario's change of it. Both weights stand side by side for as long as a slot's rows
go through them, so that rows are read once: their products are narrow, and cost the reading more than the arithmetic.
"""

import numpy as np
import numpy.typing as npt

from models.matrices import Workspace, product, turned
from models.slot_layers import BLOCK, in_order, take
from models.vectors import add, row_address
from state.kernels import kernel

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]


@kernel
def _normalise(logits: F32, i: int, shares: F32, row: int) -> None:
    """Shares (O, K) of a row: the softmax of its logits, objective by objective."""
    experts = shares.shape[2]
    for o in range(shares.shape[1]):
        highest, total = logits[i, o * experts], np.float32(0)
        for k in range(1, experts):
            highest = max(highest, logits[i, o * experts + k])
        for k in range(experts):
            value = np.exp(logits[i, o * experts + k] - highest)
            shares[row, o, k] = value
            total += value
        for k in range(experts):
            shares[row, o, k] /= total


@kernel
def _beside(weight: F32, own: F32, out: F32) -> None:
    """Fill `out` (inputs, 2 x outputs) with both weights."""
    outputs = weight.shape[1]
    for i in range(len(out)):
        for j in range(outputs):
            out[i, j], out[i, outputs + j] = weight[i, j], own[i, j]


@kernel
def forward(x: F32, weight: F32, bias: F32, own: F32, own_bias: F32, slot: I64, earned: F32, shares: F32) -> None:
    """Fill `shares` (n, O, K): softmax_K of x W + b + earned (x W_slot + b_slot), for the O x K outputs of a gate."""
    slots, inputs, outputs = own.shape
    order, starts = in_order(slot, slots)
    both, block = np.empty((inputs, 2 * outputs), np.float32), np.empty((BLOCK, inputs), np.float32)
    found = np.empty((BLOCK, 2 * outputs), np.float32)
    for s in range(slots):
        if starts[s] < starts[s + 1]:
            _beside(weight, own[s], both)
        for start in range(starts[s], starts[s + 1], BLOCK):
            rows = order[start : min(start + BLOCK, starts[s + 1])]
            n = len(rows)
            take(x, rows, block)
            product(block[:n], both, found[:n], False)
            for i in range(n):
                by = earned[rows[i]]
                for j in range(outputs):
                    found[i, j] += bias[j] + by * (found[i, outputs + j] + own_bias[s, j])
                _normalise(found, i, shares, rows[i])


@kernel
def _logits_back(shares: F32, slope: F32, row: int, by: float, up: F32, i: int) -> None:
    """Row i of `up` (n, 2 x O x K): the gradient of a row's logits, and of the scenario's part of them."""
    objectives, experts = shares.shape[1:]
    for o in range(objectives):
        mean = np.float32(0)
        for k in range(experts):
            mean += shares[row, o, k] * slope[row, o, k]
        for k in range(experts):
            value = shares[row, o, k] * (slope[row, o, k] - mean)
            up[i, o * experts + k], up[i, (objectives + o) * experts + k] = value, by * value


@kernel
def backward(
    x: F32, weight: F32, own: F32, slot: I64, earned: F32, shares: F32, slope: F32, dx: F32, dweight: F32, dbias: F32, down: F32,
    down_bias: F32,
) -> None:  # fmt: skip
    """Fill the gradients of weights and biases and add that of x, from that (n, O, K) of the shares."""
    slots, inputs, outputs = own.shape
    order, starts = in_order(slot, slots)
    both, block = np.empty((inputs, 2 * outputs), np.float32), np.empty((BLOCK, inputs), np.float32)
    up, grown = np.empty((BLOCK, 2 * outputs), np.float32), np.empty((2 * outputs, inputs), np.float32)
    space = Workspace(np.empty(both.size + 64, np.float32), np.zeros(1, np.int64))
    dweight[:], dbias[:], down_bias[:] = 0, 0, 0
    for s in range(slots):
        if starts[s] == starts[s + 1]:
            down[s] = 0
            continue
        _beside(weight, own[s], both)
        space.used[0] = 0
        back = turned(both, space)
        for start in range(starts[s], starts[s + 1], BLOCK):
            rows = order[start : min(start + BLOCK, starts[s + 1])]
            n = len(rows)
            for i in range(n):
                _logits_back(shares, slope, rows[i], earned[rows[i]], up, i)
                for j in range(outputs):
                    dbias[j] += up[i, j]
                    down_bias[s, j] += up[i, outputs + j]
            take(x, rows, block)
            product(up[:n].T, block[:n], grown, start > starts[s])
            product(up[:n], back, block[:n], False)
            for i in range(n):
                add(row_address(dx, rows[i]), row_address(block, i), np.float32(1), inputs)
        for i in range(inputs):
            for j in range(outputs):
                dweight[i, j] += grown[j, i]
                down[s, i, j] = grown[outputs + j, i]
