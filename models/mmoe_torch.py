"""MMoE's trunk and the tower's hidden layer with their gradient, without autograd, a native call for each.

Query and support rows go through it together, and what a row's gradient is added up from is added where it stands. The
reference is `models.mmoe` under autograd; the tests hold the two together.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from models import base, expert_gates, expert_rows, pages, slot_layers, tower_layer, towers, wide
from state.kernels import Plain, kernel

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]

_GATES = ("gate.weight", "gate.bias", "own.gate.weight", "own.gate.bias")
_TOWER = ("tower.weight", "tower.bias")
_OWNED = ("own.tower.weight", "own.tower.bias", "own.output.weight", "own.output.bias")


class Arrays(NamedTuple):
    """Parameters, or their gradients, as the kernels see them."""

    experts: tuple[tuple[F32, F32], ...]
    """By layer: weights (K, inputs, outputs) and biases (K x outputs)."""
    gates: tuple[F32, F32, F32, F32]
    """Weight and bias of the shared gate, and of the scenarios' own (slots, ...)."""
    tower: tuple[F32, F32]
    """Weight and bias of the tower's hidden layer."""
    owned: tuple[F32, F32, F32, F32]
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
def _rows_of(hidden: F32) -> F32:
    """Virtual rows (n x O, H) of (n, O, H)."""
    return hidden.reshape(hidden.shape[0] * hidden.shape[1], hidden.shape[2])


@kernel
def _forward(
    inputs: Plain, own: Plain, plan: Plain, layers: Plain, shares: F32, hidden: F32, z: F32, gain: F32, offset: F32
) -> None:
    """Fill all from `layers` on: what is saved, and meta inputs (n, O, ...)."""
    (x, slot, earned), (experts, gates, tower, owned, beside) = inputs, own
    entry = x[:, : gates[0].shape[0]]
    expert_gates.forward(entry, gates[0], gates[1], gates[2], gates[3], slot, earned, shares)
    expert_rows.forward(entry, experts, shares, layers, hidden)
    tower_layer.forward(_rows_of(hidden), tower[0], tower[1], owned[0], owned[1], slot, earned, _rows_of(z))
    wide.forward(x, wide.Plan(*plan), wide.Arrays(*beside), offset)
    gain[:] = 1
    if len(owned[0]):
        slot_layers.add_own(owned[2], slot, earned, gain.reshape(len(x), -1))
        slot_layers.add_own(owned[3], slot, earned, offset)


@kernel
def _backward(
    saved: Plain, own: Plain, plan: Plain, slopes: Plain, fills: Plain, scratch: F32, dshares: F32, dx: F32
) -> None:  # fmt: skip
    """Fill `fills`, the gradients of `own`, and dx (R, row), from those of R rows' meta inputs; the others are scratch."""
    ((x, slot, earned), layers, shares, hidden), (experts, gates, tower, owned, beside) = saved, own
    (dexperts, dgates, dtower, downed, dbeside), (dhidden, dz, dgain, doffset) = fills, slopes
    rows, dense = len(dx), gates[0].shape[0]
    x, slot, earned = x[:rows], slot[:rows], earned[:rows]
    tower_layer.backward(
        _rows_of(hidden[:rows]), tower[0], owned[0], slot, earned, dz, dhidden, dtower[0], dtower[1], downed[0], downed[1]
    )  # fmt: skip
    doffset = doffset.reshape(rows, hidden.shape[1])
    if len(owned[0]):
        slot_layers.add_own_back(dgain.reshape(rows, -1), slot, earned, downed[2])
        slot_layers.add_own_back(doffset, slot, earned, downed[3])
    entry, dentry = x[:, :dense], dx[:, :dense]
    dmixed = dhidden.reshape(rows, hidden.shape[1], hidden.shape[2])
    expert_rows.backward(entry, experts, layers, shares, dmixed, dshares, dexperts, dentry, scratch)
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
        owned = nothing.reshape(0, 1, 1), nothing, nothing, nothing
        if _OWNED[0] in named:
            hidden, hidden_bias, output, output_bias = (named[name] for name in _OWNED)
            owned = hidden, hidden_bias.reshape(len(hidden), -1), output.reshape(len(output), -1), output_bias
        beside_it = wide.arrays([views[name] for name in wide.NAMES if name in views], beside)
        gates = weight, bias, own, own_bias.reshape(len(own), -1)
        return Arrays(experts, gates, (named[_TOWER[0]], named[_TOWER[1]]), owned, beside_it)

    def forward(self, inputs: base.Inputs) -> tuple[towers.Meta, Saved]:
        """Meta inputs of n rows' virtual rows, and what `backward` needs."""
        n, objectives, take = len(inputs.x), self.geometry.objectives, self._arena.take
        self._arena.begin()
        layers = tuple(take(len(weight), n, weight.shape[2]) for weight, _ in self.own.experts)
        shares, (entry, width) = take(n, objectives, len(layers[-1])), self.own.tower[0].shape
        hidden, z, gain, offset = (take(n, objectives, *more) for more in ((entry,), (width,), (width,), ()))
        entering = tuple(part.numpy() for part in inputs)
        _forward(entering, tuple(self.own), self.wide, layers, shares, hidden, z, gain, offset)
        meta = towers.Meta(*(part.reshape(n * objectives, -1) for part in (hidden, z, gain, offset)))
        return meta, Saved(entering, layers, shares, hidden)

    def backward(self, saved: Saved, slopes: towers.Meta) -> F32:
        """Fill the gradient from that of the first R rows' meta inputs; returns the gradient (R, row) of their inputs."""
        rows, take = len(slopes.offset) // self.geometry.objectives, self._arena.take
        scratch = take(expert_rows.room_needed(self.own.experts))
        dshares, dx = take(rows, *saved.shares.shape[1:]), take(rows, self.geometry.row)
        _backward(tuple(saved), tuple(self.own), self.wide, tuple(slopes), tuple(self.slope), scratch, dshares, dx)
        return dx
