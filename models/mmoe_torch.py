"""MMoE's trunk and its gradient without autograd, a native call for each.

Query and support rows go through it together, and what a row's gradient is added up from is added where it stands. The
reference is `models.mmoe` under autograd; the tests hold the two together.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from models import base, expert_gates, expert_rows, pages, slot_layers, wide
from state.kernels import Plain, kernel

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]

_GATES = ("gate.weight", "gate.bias", "own.gate.weight", "own.gate.bias")
_TOWERS = ("own.tower.weight", "own.tower.bias", "own.output.weight", "own.output.bias")


class Arrays(NamedTuple):
    """Parameters, or their gradients, as the kernels see them."""

    experts: tuple[tuple[F32, F32], ...]
    """By layer: weights (K, inputs, outputs) and biases (K x outputs)."""
    gates: tuple[F32, F32, F32, F32]
    """Weight and bias of the shared gate, and of the scenarios' own (slots, ...)."""
    towers: tuple[F32, F32, F32, F32]
    """What scenarios own of the tower: hidden (slots x O, ...) and output (slots, O x H2 and O); empty without it."""
    beside: Plain
    """See `wide.Arrays`."""


class Saved(NamedTuple):
    """A forward pass's activations of n rows."""

    inputs: Plain
    """`base.Inputs` as arrays."""
    layers: tuple[F32, ...]
    """The experts' layers (K, n, outputs)."""
    shares: F32
    """(n, O, K)"""
    hidden: F32
    """Mixtures (n, O, H1)."""


@kernel
def _virtual(slot: I64, earned: F32, objectives: int) -> tuple[I64, F32]:
    """Slot and earned share of virtual rows (n x O), a slot for each scenario and objective."""
    at, by = np.empty(len(slot) * objectives, np.int64), np.empty(len(slot) * objectives, np.float32)
    for v in range(len(at)):
        i = v // objectives
        at[v], by[v] = slot[i] * objectives + v - i * objectives, earned[i]
    return at, by


@kernel
def _rows_of(hidden: F32) -> F32:
    """Virtual rows (n x O, H) of (n, O, H)."""
    return hidden.reshape(hidden.shape[0] * hidden.shape[1], hidden.shape[2])


@kernel
def _forward(
    inputs: Plain, own: Plain, plan: Plain, layers: Plain, shares: F32, hidden: F32, gain: F32, offset: F32, shift: F32
) -> None:
    """Fill all from `layers` on: what is saved, and meta inputs as far as scenarios own of the tower."""
    (x, slot, earned), (experts, gates, towers, beside) = inputs, own
    entry = x[:, : gates[0].shape[0]]
    expert_gates.forward(entry, gates[0], gates[1], gates[2], gates[3], slot, earned, shares)
    expert_rows.forward(entry, experts, shares, layers, hidden)
    wide.forward(x, wide.Plan(*plan), wide.Arrays(*beside), offset)
    if len(towers[0]):
        at, by = _virtual(slot, earned, hidden.shape[1])
        slot_layers.forward(_rows_of(hidden), towers[0], towers[1], at, by, _rows_of(shift))
        gain[:] = 1
        slot_layers.add_own(towers[2], slot, earned, gain.reshape(len(x), -1))
        slot_layers.add_own(towers[3], slot, earned, offset)


@kernel
def _backward(
    saved: Plain, own: Plain, plan: Plain, slopes: Plain, fills: Plain, scratch: F32, dshares: F32, dx: F32
) -> None:  # fmt: skip
    """Fill `fills`, the gradients of `own`, and dx (R, row), from those of R rows' meta inputs; the others are scratch."""
    ((x, slot, earned), layers, shares, hidden), (experts, gates, towers, beside) = saved, own
    (dexperts, dgates, dtowers, dbeside), (dhidden, dgain, doffset, dshift) = fills, slopes
    rows, dense = len(dx), gates[0].shape[0]
    x, slot, earned = x[:rows], slot[:rows], earned[:rows]
    if len(towers[0]):
        at, by = _virtual(slot, earned, hidden.shape[1])
        slot_layers.backward(
            _rows_of(hidden[:rows]), towers[0], at, by, _rows_of(dshift), _rows_of(dhidden), dtowers[0], dtowers[1]
        )  # fmt: skip
        slot_layers.add_own_back(dgain.reshape(rows, -1), slot, earned, dtowers[2])
        slot_layers.add_own_back(doffset, slot, earned, dtowers[3])
    entry, dentry = x[:, :dense], dx[:, :dense]
    expert_rows.backward(entry, experts, layers, shares, dhidden, dshares, dexperts, dentry, scratch)
    expert_gates.backward(
        entry, gates[0], gates[2], slot, earned, shares[:rows], dshares, dentry, dgates[0], dgates[1], dgates[2], dgates[3]
    )  # fmt: skip
    dx[:, dense:] = 0
    geometry, weights = wide.Plan(*plan), wide.Arrays(*beside)
    wide.backward(x, geometry, weights, wide.terms(x, geometry, weights), doffset, wide.Arrays(*dbeside), dx)


class Trunk:
    """See `base.Written`. What it returns is valid until its next forward pass."""

    def __init__(
        self, geometry: base.Geometry, beside: wide.Plan, depth: int, parameters: base.Parameters, gradient: base.Parameters
    ) -> None:  # fmt: skip
        """`depth` layers of experts. Reads `parameters` and fills `gradient`, which are views by name."""
        self.geometry, self.wide, self.depth = geometry, tuple(beside), depth
        self.own, self.slope = (self._arrays(views, beside) for views in (parameters, gradient))
        self._arena = pages.Arena()

    def _arrays(self, views: base.Parameters, beside: wide.Plan) -> Arrays:
        named = {name: view.detach().numpy() for name, view in views.items()}
        experts = tuple((named[f"expert{i}.weight"], named[f"expert{i}.bias"]) for i in range(self.depth))
        weight, bias, own, own_bias = (named[name] for name in _GATES)
        nothing = np.zeros((0, 1), np.float32)
        towers = nothing.reshape(0, 1, 1), nothing, nothing, nothing
        if _TOWERS[0] in named:
            hidden, hidden_bias, output, output_bias = (named[name] for name in _TOWERS)
            towers = hidden, hidden_bias.reshape(len(hidden), -1), output.reshape(len(output), -1), output_bias
        beside_it = wide.arrays([views[name] for name in wide.NAMES if name in views], beside)
        return Arrays(experts, (weight, bias, own, own_bias.reshape(len(own), -1)), towers, beside_it)

    def forward(self, inputs: base.Inputs) -> tuple[base.MetaInput, Saved]:
        """Meta inputs of n rows, and what `backward` needs."""
        n, objectives, take = len(inputs.x), self.geometry.objectives, self._arena.take
        self._arena.begin()
        layers = tuple(take(len(weight), n, weight.shape[2]) for weight, _ in self.own.experts)
        shares, hidden = take(n, objectives, len(layers[-1])), take(n, objectives, layers[-1].shape[2])
        towers = len(self.own.towers[0]) > 0
        width = self.own.towers[0].shape[2]
        gain, shift, offset = take(n, objectives, width), take(n, objectives, width), take(n, objectives)
        if not towers:
            gain[:], shift[:] = 1, 0
        entering = tuple(part.numpy() for part in inputs)
        _forward(entering, tuple(self.own), self.wide, layers, shares, hidden, gain, offset, shift)
        meta = base.MetaInput(*(torch.from_numpy(part) for part in (hidden, gain, offset, shift)))
        return meta, Saved(entering, layers, shares, hidden)

    def backward(self, saved: Saved, slopes: base.MetaInput) -> torch.Tensor:
        """Fill the trunk's gradient from that of the first R rows' meta inputs; returns the gradient (R, row) of their inputs."""
        rows, take = len(slopes.offset), self._arena.take
        scratch = take(expert_rows.room_needed(self.own.experts))
        dshares, dx = take(rows, *saved.shares.shape[1:]), take(rows, self.geometry.row)
        given = tuple(part.contiguous().numpy() for part in slopes)
        _backward(tuple(saved), tuple(self.own), self.wide, given, tuple(self.slope), scratch, dshares, dx)
        return torch.from_numpy(dx)
