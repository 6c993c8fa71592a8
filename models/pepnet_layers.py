"""The layers of PEPNet by hand, forward and backward, over one flat vector of parameters (`models.pepnet_native`)."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from models.matrices import Workspace, affine, column_sums, part, product, turned
from state.kernels import kernel

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]


class Plan(NamedTuple):
    """Geometry for the kernels; offsets are places in the flat vector of parameters, where a bias follows its weight."""

    embedded: int
    """C x E"""
    dense: int
    """Embeddings and numbers, what the network reads."""
    width: int
    """E"""
    gamma: float
    gate_hidden: int
    objectives: int
    personal: I64
    """First columns of the personal embeddings."""
    scenario: I64
    """First columns of the embeddings that EPNet's gate changes."""
    layers: I64
    """Widths of the hidden layers; the last one is the tower's."""
    starts: I64
    """O x sum of the layers before each, and of all."""
    epnet_in: int
    epnet_out: int
    hidden: I64
    """Of every layer; the last is the tower's."""
    ppnet_in: int
    ppnet_out: I64
    """Of every layer's gates (O, G, width)."""
    output: int
    wide: int


@kernel
def weight_at(flat: F32, at: int, rows: int, columns: int) -> F32:
    """The weights of the layer at `at`."""
    return part(flat, at, rows, columns)


@kernel
def affine_at(x: F32, flat: F32, at: int, out: F32) -> None:
    """Fill out = x W + b with the layer at `at`."""
    rows, columns = x.shape[1], out.shape[1]
    bias = at + rows * columns
    affine(x, weight_at(flat, at, rows, columns), flat[bias : bias + columns], out)


@kernel
def weight_back(x: F32, slope: F32, gradient: F32, at: int) -> None:
    """The gradient of the layer at `at` from that of its output (n, columns), whose inputs were the first n of `x`."""
    rows, columns = x.shape[1], slope.shape[1]
    bias = at + rows * columns
    product(x[: len(slope)].T, slope, weight_at(gradient, at, rows, columns), False)
    column_sums(slope, gradient[bias : bias + columns])


@kernel
def affine_back(x: F32, slope: F32, flat: F32, at: int, gradient: F32, dx: F32, add: bool, space: Workspace) -> None:
    """`weight_back`, and the gradient `dx` of its inputs."""
    weight_back(x, slope, gradient, at)
    product(slope, turned(weight_at(flat, at, dx.shape[1], slope.shape[1]), space), dx, add)


@kernel
def layer_of(blocks: F32, rows: int, plan: Plan, i: int) -> F32:
    """Block i of layers side by side (rows, O x width)."""
    return part(blocks, rows * plan.starts[i], rows, plan.starts[i + 1] - plan.starts[i])


@kernel
def virtual_of(blocks: F32, rows: int, plan: Plan, i: int) -> F32:
    """The same block (rows x O, width)."""
    return part(blocks, rows * plan.starts[i], rows * plan.objectives, plan.layers[i])


@kernel
def rectify_back(slope: F32, active: F32) -> None:
    """Where the active row of the forward pass is not above zero, its gradient is zero."""
    for i in range(slope.shape[0]):
        for j in range(slope.shape[1]):
            slope[i, j] = slope[i, j] if active[i, j] > 0 else np.float32(0)


@kernel
def sigmoid_back(slope: F32, value: F32, gamma: float) -> None:
    """From the gradient of gamma x sigmoid to that of its logit."""
    inverse = np.float32(1.0 / gamma)
    for i in range(slope.shape[0]):
        for j in range(slope.shape[1]):
            slope[i, j] *= value[i, j] * (np.float32(1) - value[i, j] * inverse)


@kernel
def join(x: F32, gate: F32, plan: Plan, entry: F32) -> None:
    """Fill `entry`: embeddings behind their gates, numbers, personal embeddings."""
    for i in range(x.shape[0]):
        for j in range(plan.embedded):
            entry[i, j] = x[i, j] * gate[i, j]
        for j in range(np.uintp(plan.embedded), np.uintp(plan.dense)):
            entry[i, j] = x[i, j]
        at = np.uintp(plan.dense)
        for start in plan.personal:
            for d in range(np.uintp(plan.width)):
                entry[i, at + d] = x[i, np.uintp(start) + d]
            at += np.uintp(plan.width)


@kernel
def gated(active: F32, gate: F32, out: F32) -> None:
    """`out` (n, O x width) = active x gate; an active row of one width serves all objectives."""
    columns = np.uintp(active.shape[1])
    for i in range(len(out)):
        # Unsigned places: a sum that might be negative would be checked for it, and the loop not be vectorised.
        for at in range(np.uintp(0), np.uintp(out.shape[1]), columns):
            for j in range(columns):
                out[i, at + j] = active[i, j] * gate[i, at + j]


@kernel
def gated_back(slope: F32, active: F32, gate: F32, gamma: float, dgate: F32, out: F32) -> None:
    """Backward of `gated`, of the gate's gamma x sigmoid and of the rectifier; `out` may be `slope` where it is as wide."""
    columns, inverse, one = np.uintp(active.shape[1]), np.float32(1.0 / gamma), np.float32(1)
    for i in range(len(slope)):
        for at in range(np.uintp(0), np.uintp(slope.shape[1]), columns):
            for j in range(columns):
                by = gate[i, at + j]
                dgate[i, at + j] = slope[i, at + j] * active[i, j] * by * (one - by * inverse)
        for j in range(columns):
            out[i, j] = slope[i, j] * gate[i, j]
        for at in range(columns, np.uintp(slope.shape[1]), columns):
            for j in range(columns):
                out[i, j] += slope[i, at + j] * gate[i, at + j]
        for j in range(columns):
            out[i, j] = out[i, j] if active[i, j] > 0 else np.float32(0)


@kernel
def split(x: F32, gate: F32, dentry: F32, dpersonal: F32, plan: Plan, dgate: F32, dx: F32) -> None:
    """Backward of `join`: gradients of the gate's logit and of the inputs."""
    inverse = np.float32(1.0 / plan.gamma)
    for i in range(dx.shape[0]):
        for j in range(plan.embedded):
            g = gate[i, j]
            dgate[i, j] = dentry[i, j] * x[i, j] * g * (np.float32(1) - g * inverse)
        for j in range(plan.embedded):
            dx[i, j] = dentry[i, j] * gate[i, j]
        for j in range(np.uintp(plan.embedded), np.uintp(dx.shape[1])):
            dx[i, j] = 0
        at = np.uintp(0)
        for start in plan.personal:
            for d in range(np.uintp(plan.width)):
                dx[i, np.uintp(start) + d] += dpersonal[i, at + d]
            at += np.uintp(plan.width)


@kernel
def gate_logits(plan: Plan, flat: F32, within: F32, i: int, out: F32) -> None:
    """Logits of layer i's gates (n, O x width)."""
    width, hidden = plan.layers[i], plan.gate_hidden
    biases = plan.ppnet_out[i] + plan.objectives * hidden * width
    bias = flat[biases : biases + plan.objectives * width]
    for o in range(plan.objectives):
        at = (i * plan.objectives + o) * hidden
        weight = weight_at(flat, plan.ppnet_out[i] + o * hidden * width, hidden, width)
        affine(within[:, at : at + hidden], weight, bias[o * width : (o + 1) * width], out[:, o * width : (o + 1) * width])


@kernel
def gate_logits_back(
    plan: Plan, flat: F32, within: F32, i: int, dgate: F32, gradient: F32, dwithin: F32, space: Workspace
) -> None:  # fmt: skip
    """Backward of `gate_logits`: fills its part of `gradient` and of `dwithin`."""
    width, hidden = plan.layers[i], plan.gate_hidden
    biases = plan.ppnet_out[i] + plan.objectives * hidden * width
    column_sums(dgate, gradient[biases : biases + plan.objectives * width])
    for o in range(plan.objectives):
        first, at = (i * plan.objectives + o) * hidden, plan.ppnet_out[i] + o * hidden * width
        own = dgate[:, o * width : (o + 1) * width]
        product(within[: len(dgate), first : first + hidden].T, own, weight_at(gradient, at, hidden, width), False)
        product(own, turned(weight_at(flat, at, hidden, width), space), dwithin[:, first : first + hidden], False)
