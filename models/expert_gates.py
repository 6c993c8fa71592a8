"""MMoE's gates in native code: from input rows to the shares of experts, and back.

A row's logits are the shared gate's and its scenario's change of it. What a slot has earned is one number, so both weights become
one before its rows are read, where they lie.
"""

import numpy as np
import numpy.typing as npt

from models.matrices import Workspace, product_at, product_over, turned
from models.slot_layers import BLOCK, in_order, joined
from models.vectors import address
from state.kernels import kernel

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]


@kernel
def _normalise(shares: F32) -> None:
    """Replace logits (n, O, K) by shares: the softmax of each objective's."""
    experts = shares.shape[2]
    for i in range(len(shares)):
        for o in range(shares.shape[1]):
            highest, total = shares[i, o, 0], np.float32(0)
            for k in range(1, experts):
                highest = max(highest, shares[i, o, k])
            for k in range(experts):
                value = np.exp(shares[i, o, k] - highest)
                shares[i, o, k] = value
                total += value
            for k in range(experts):
                shares[i, o, k] /= total


@kernel
def forward(x: F32, weight: F32, bias: F32, own: F32, own_bias: F32, slot: I64, earned: F32, shares: F32) -> None:
    """Fill `shares` (n, O, K): softmax_K of x W + b + earned (x W_slot + b_slot), for the O x K outputs of a gate.

    `earned` (n,) is the same for all rows of a slot.
    """
    order, starts = in_order(slot, len(own))
    both, start = np.empty_like(weight), np.empty_like(bias)
    logits = shares.reshape(len(x), len(bias))
    for s in range(len(own)):
        rows = order[starts[s] : starts[s + 1]]
        if len(rows):
            joined(weight, own[s], earned[rows[0]], both)
            joined(bias, own_bias[s], earned[rows[0]], start)
            product_at(rows, address(start), 0, x, both, logits)
    _normalise(shares)


@kernel
def _logits_back(shares: F32, slope: F32) -> None:
    """Replace the gradient of shares by that of their logits."""
    for i in range(len(slope)):
        for o in range(slope.shape[1]):
            mean = np.float32(0)
            for k in range(slope.shape[2]):
                mean += shares[i, o, k] * slope[i, o, k]
            for k in range(slope.shape[2]):
                slope[i, o, k] = shares[i, o, k] * (slope[i, o, k] - mean)


@kernel
def backward(
    x: F32, weight: F32, own: F32, slot: I64, earned: F32, shares: F32, slope: F32, dx: F32, dweight: F32, dbias: F32, down: F32,
    down_bias: F32,
) -> None:  # fmt: skip
    """Fill the gradients of weights and biases and add that of x, from that (n, O, K) of the shares, which is overwritten."""
    slots, inputs, outputs = own.shape
    order, starts = in_order(slot, slots)
    both, grown = np.empty_like(weight), np.empty((outputs, inputs), np.float32)
    space = Workspace(np.empty(both.size + 64, np.float32), np.zeros(1, np.int64))
    _logits_back(shares, slope)
    up = slope.reshape(len(slope), outputs)
    dweight[:], dbias[:], down[:], down_bias[:] = 0, 0, 0, 0
    for s in range(slots):
        if starts[s] == starts[s + 1]:
            continue
        by, space.used[0] = earned[order[starts[s]]], 0
        joined(weight, own[s], by, both)
        back = turned(both, space)
        for start in range(starts[s], starts[s + 1], BLOCK):
            rows = order[start : min(start + BLOCK, starts[s + 1])]
            product_over(rows, up, x, grown, start > starts[s])
            product_at(rows, address(dx), dx.strides[0], up, back, dx)
            for i in rows:
                for j in range(outputs):
                    down_bias[s, j] += up[i, j]
        for j in range(outputs):
            dbias[j] += down_bias[s, j]
            down_bias[s, j] *= by
        for i in range(inputs):
            for j in range(outputs):
                dweight[i, j] += grown[j, i]
                down[s, i, j] = by * grown[j, i]
