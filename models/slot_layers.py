"""A layer whose weights depend on the row: each is multiplied with those of its scenario's slot, forward and backward natively.

In torch this takes a sort, a padded copy, a batched product and the way back, and all of it again for the gradient. Here rows are
counted into the order of their slots once, and a block of one slot's rows goes through its product while it is in the cache.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.autograd.function import once_differentiable

from models.matrices import Workspace, product, turned
from models.vectors import add, row_address, write
from state.kernels import kernel

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
BLOCK = 128


@kernel
def in_order(slot: I64, slots: int) -> tuple[I64, I64]:
    """Rows (n,) by slot, in their order within one, and where each slot's begin (slots + 1,)."""
    starts, order = np.zeros(slots + 1, np.int64), np.empty(len(slot), np.int64)
    for i in range(len(slot)):
        starts[slot[i] + 1] += 1
    for s in range(slots):
        starts[s + 1] += starts[s]
    at = starts[:slots].copy()
    for i in range(len(slot)):
        order[at[slot[i]]] = i
        at[slot[i]] += 1
    return order, starts


@kernel
def take(x: F32, rows: I64, out: F32) -> None:
    """Copy rows (n,) of x to the first n of `out`."""
    for i in range(len(rows)):
        write(row_address(out, i), row_address(x, rows[i]), np.float32(1), out.shape[1])


@kernel
def forward(x: F32, weight: F32, bias: F32, slot: I64, earned: F32, out: F32) -> None:
    """Fill `out` (n, outputs), see `layer`; numbers of a row of x must be contiguous."""
    slots, inputs, outputs = weight.shape
    order, starts = in_order(slot, slots)
    block, found = np.empty((BLOCK, inputs), np.float32), np.empty((BLOCK, outputs), np.float32)
    for s in range(slots):
        for start in range(starts[s], starts[s + 1], BLOCK):
            rows = order[start : min(start + BLOCK, starts[s + 1])]
            n = len(rows)
            take(x, rows, block)
            for i in range(n):
                write(row_address(found, i), row_address(bias, s), np.float32(1), outputs)
            product(block[:n], weight[s], found[:n], True)
            for i in range(n):
                write(row_address(out, rows[i]), row_address(found, i), earned[rows[i]], outputs)


@kernel
def backward(
    x: F32, weight: F32, slot: I64, earned: F32, slope: F32, dx: F32, dweight: F32, dbias: F32
) -> None:  # fmt: skip
    """Fill the gradients of weights and biases and add that of x; `dx` of no rows is not wanted."""
    slots, inputs, outputs = weight.shape
    order, starts = in_order(slot, slots)
    block, up = np.empty((BLOCK, inputs), np.float32), np.empty((BLOCK, outputs), np.float32)
    space = Workspace(np.empty(inputs * outputs + 64, np.float32), np.zeros(1, np.int64))
    dbias[:] = 0
    for s in range(slots):
        if starts[s] == starts[s + 1]:
            dweight[s] = 0
            continue
        space.used[0] = 0
        back = turned(weight[s], space)
        for start in range(starts[s], starts[s + 1], BLOCK):
            rows = order[start : min(start + BLOCK, starts[s + 1])]
            n = len(rows)
            for i in range(n):
                write(row_address(up, i), row_address(slope, rows[i]), earned[rows[i]], outputs)
                add(row_address(dbias, s), row_address(up, i), np.float32(1), outputs)
            take(x, rows, block)
            product(block[:n].T, up[:n], dweight[s], start > starts[s])
            if len(dx):
                product(up[:n], back, block[:n], False)
                for i in range(n):
                    add(row_address(dx, rows[i]), row_address(block, i), np.float32(1), inputs)


@kernel
def joined(shared: F32, own: F32, earned: float, out: F32) -> None:
    """`out` = shared weights and what a slot has of its own, as far as it is earned, as one; all contiguous."""
    one, other, both, by = shared.reshape(-1), own.reshape(-1), out.reshape(-1), np.float32(earned)
    for i in range(len(both)):
        both[i] = one[i] + by * other[i]


@kernel
def add_own(own: F32, slot: I64, earned: F32, out: F32) -> None:
    """Add to each row of `out` (n, m) what its slot has of `own` (slots, m), as far as it is earned."""
    for i in range(len(out)):
        add(row_address(out, i), row_address(own, slot[i]), earned[i], own.shape[1])


@kernel
def add_own_back(slope: F32, slot: I64, earned: F32, down: F32) -> None:
    """Fill the gradient (slots, m) of `own` from that (n, m) of the rows that it was added to."""
    down[:] = 0
    for i in range(len(slope)):
        add(row_address(down, slot[i]), row_address(slope, i), earned[i], down.shape[1])


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, slot: torch.Tensor, earned: torch.Tensor
    ) -> torch.Tensor:
        out = x.new_empty(len(x), weight.shape[2])
        forward(*(t.detach().numpy() for t in (x, weight, bias, slot, earned, out)))
        ctx.save_for_backward(x, weight, slot, earned)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, slot, earned = ctx.saved_tensors
        dx = x.new_zeros(x.shape if ctx.needs_input_grad[0] else (0, x.shape[1]))
        dweight, dbias = torch.empty_like(weight), weight.new_empty(weight.shape[0], weight.shape[2])
        backward(*(t.detach().numpy() for t in (x, weight, slot, earned, slope.contiguous(), dx, dweight, dbias)))
        return dx if ctx.needs_input_grad[0] else None, dweight, dbias, None, None


def layer(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, slot: torch.Tensor, earned: torch.Tensor
) -> torch.Tensor:  # fmt: skip
    """Rows x (n, inputs) to `earned` (x W + b), by weights (slots, inputs, outputs) and biases (slots, outputs) of their slots.

    `slot` (n,) int64, `earned` (n,) without a gradient. The result has no second derivative.
    """
    found: torch.Tensor = _Layer.apply(  # type: ignore[no-untyped-call]
        x.contiguous(), weight.contiguous(), bias.contiguous(), slot, earned.contiguous()
    )
    return found
