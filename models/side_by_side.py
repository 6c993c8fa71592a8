"""Networks side by side, and their mixtures, as native forward and backward passes under autograd.

A batched product of torch takes several copies to get there and back: experts that read the same rows are one product a network,
and 1,024 mixtures of four experts are 1,024 products of almost nothing. Here a block of rows goes through product, bias and
rectifier, or back through all of them, while it is in the cache. One thread; where torch has more, or tensors are not float32 on
a processor, `usable` says so and torch does the work.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.autograd.function import once_differentiable

from models.matrices import Workspace, column_sums, part, product, turned
from models.vectors import add, address, dot, row_address, write
from state.kernels import kernel

F32 = npt.NDArray[np.float32]
BLOCK = 128


def usable(*tensors: torch.Tensor) -> bool:
    """Whether these can go through native code that replaces torch's."""
    return torch.get_num_threads() == 1 and all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)


@kernel
def forward(x: F32, weight: F32, bias: F32, out: F32) -> None:
    """Fill `out` (K, n, outputs), see `rectified`; x (K, n, inputs), or (1, n, inputs), which all read."""
    networks, rows, width = out.shape
    for start in range(0, rows, BLOCK):
        end = min(start + BLOCK, rows)
        for k in range(networks):
            block, own = out[k, start:end], bias[k * width : (k + 1) * width]
            for i in range(end - start):
                write(row_address(block, i), address(own), np.float32(1), width)
            product(x[k if len(x) > 1 else 0, start:end], weight[k], block, True)
            for i in range(end - start):
                for j in range(width):
                    value = block[i, j]
                    block[i, j] = np.float32(0) if value < 0 else value


@kernel
def place(values: F32, k: int, i: int) -> int:
    """Numbers from the first to row i of matrix k."""
    return int((k * values.strides[0] + i * values.strides[1]) // 4)


@kernel
def backward(x: F32, weight: F32, out: F32, slope: F32, dx: F32, dweight: F32, dbias: F32) -> None:
    """Fill the gradients; `dx` of no rows is not wanted. Rows must be contiguous."""
    networks, rows, width = out.shape
    shared, zero = len(x) == 1, np.float32(0)
    space = Workspace(np.empty(networks * (weight.shape[1] * width + 64), np.float32), np.zeros(1, np.int64))
    turns = [turned(weight[k], space) for k in range(networks)]
    block, sums = np.empty((BLOCK, width), np.float32), np.empty(width, np.float32)
    dbias[:] = 0
    for start in range(0, rows, BLOCK):
        end = min(start + BLOCK, rows)
        for k in range(networks):
            at = 0 if shared else k
            # As matrices of their own: numbers of an array that may be part of a larger one count as lying anywhere.
            dz, at_out, at_slope = block[: end - start], place(out, k, start), place(slope, k, start)
            active, up = part(out, at_out, end - start, width), part(slope, at_slope, end - start, width)
            for i in range(end - start):
                for j in range(width):
                    dz[i, j] = up[i, j] if active[i, j] > 0 else zero
            column_sums(dz, sums)
            dbias[k * width : (k + 1) * width] += sums
            product(x[at, start:end].T, dz, dweight[k], start > 0)
            if dx.shape[1] > 0:
                product(dz, turns[k], dx[at, start:end], shared and k > 0)


class _Rectified(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        stacked = x if x.dim() == 3 else x.unsqueeze(0)
        out = x.new_empty(len(weight), stacked.shape[1], weight.shape[2])
        forward(*(t.detach().numpy() for t in (stacked, weight, bias, out)))
        ctx.save_for_backward(x, weight, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
        x, weight, out = ctx.saved_tensors
        stacked = x if x.dim() == 3 else x.unsqueeze(0)
        dx = x.new_empty(stacked.shape if ctx.needs_input_grad[0] else (1, 0, stacked.shape[2]))
        dweight, dbias = torch.empty_like(weight), weight.new_empty(len(weight) * weight.shape[2])
        if not stacked.shape[1]:
            dweight.zero_()
        backward(*(t.detach().numpy() for t in (stacked, weight, out, slope.contiguous(), dx, dweight, dbias)))
        return dx.view(x.shape) if ctx.needs_input_grad[0] else None, dweight, dbias


def rectified(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """relu(x W + b) of K networks (K, n, outputs): weights (K, inputs, outputs), biases (K x outputs).

    x (K, n, inputs), or (n, inputs), which all read. The result has no second derivative.
    """
    found: torch.Tensor = _Rectified.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return found


@kernel
def mix(shares: F32, found: F32, out: F32) -> None:
    """Fill `out` (n, O, H), see `mixture`."""
    for i in range(out.shape[0]):
        for o in range(out.shape[1]):
            for h in range(out.shape[2]):
                out[i, o, h] = 0
            for k in range(found.shape[0]):
                by = shares[i, o, k]
                for h in range(out.shape[2]):
                    out[i, o, h] += by * found[k, i, h]


@kernel
def mix_back(shares: F32, found: F32, slope: F32, dshares: F32, dfound: F32) -> None:
    """Fill the gradients of shares and experts from that of their mixtures; rows must be contiguous."""
    width = slope.shape[2]
    for i in range(slope.shape[0]):
        up = address(slope) + i * slope.strides[0]
        for k in range(found.shape[0]):
            source = address(found) + k * found.strides[0] + i * found.strides[1]
            target = address(dfound) + k * dfound.strides[0] + i * dfound.strides[1]
            for o in range(slope.shape[1]):
                row = up + 4 * o * width
                dshares[i, o, k] = dot(row, source, width)
                if o == 0:
                    write(target, row, shares[i, o, k], width)
                else:
                    add(target, row, shares[i, o, k], width)


class _Mixture(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, shares: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
        out = found.new_empty(*shares.shape[:2], found.shape[2])
        mix(*(t.detach().numpy() for t in (shares, found, out)))
        ctx.save_for_backward(shares, found)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shares, found = ctx.saved_tensors
        dshares, dfound = torch.empty_like(shares), torch.empty_like(found)
        mix_back(*(t.detach().numpy() for t in (shares, found, slope.contiguous(), dshares, dfound)))
        return dshares, dfound


def mixture(shares: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """Rows (n, O, H) of experts (K, n, H), mixed by shares (n, O, K)."""
    if not usable(shares, found):
        return torch.bmm(shares, found.transpose(0, 1))
    mixed: torch.Tensor = _Mixture.apply(shares, found)  # type: ignore[no-untyped-call]
    return mixed
