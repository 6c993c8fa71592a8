"""MMoE's trunk and its gradient by native kernels and torch's operations, without autograd.

Query and support rows go through it together, and what a row's gradient is added up from is added where it stands. The
reference is `models.mmoe` under autograd; the tests hold the two together.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import embedding

from models import base, side_by_side, slot_layers, wide
from models.matrices import Workspace, affine, column_sums, product, turned
from state.kernels import kernel

F32 = npt.NDArray[np.float32]


@kernel
def _affine_back(x: F32, weight: F32, slope: F32, dweight: F32, dbias: F32, dx: F32) -> None:
    """Fill the gradients of weight and bias, add that of x."""
    space = Workspace(np.empty(weight.size + 64, np.float32), np.zeros(1, np.int64))
    product(x.T, slope, dweight, False)
    column_sums(slope, dbias)
    product(slope, turned(weight, space), dx, True)


class Saved(NamedTuple):
    """A forward pass's activations of n rows."""

    inputs: base.Inputs
    layers: list[torch.Tensor]
    """What the experts read (n, inputs), then each of their layers (K, n, outputs)."""
    shares: torch.Tensor
    """(n, O, K)"""
    hidden: torch.Tensor
    """Mixtures (n, O, H1)."""


class Trunk:
    """See `base.Written`."""

    def __init__(
        self, geometry: base.Geometry, beside: wide.Plan, depth: int, parameters: base.Parameters, gradient: base.Parameters
    ) -> None:  # fmt: skip
        """`depth` layers of experts. Reads `parameters` and fills `gradient`, which are views by name."""
        self.geometry, self.wide, self.depth = geometry, beside, depth
        self.own, self.slope = {name: view.detach() for name, view in parameters.items()}, gradient
        self.beside, self.dbeside = ([views[n] for n in wide.NAMES if n in views] for views in (self.own, self.slope))
        self.towers = "own.tower.weight" in self.own

    def forward(self, inputs: base.Inputs) -> tuple[base.MetaInput, Saved]:
        """Meta inputs of n rows, and what `backward` needs."""
        x, own, objectives = inputs.x, self.own, self.geometry.objectives
        n = len(x)
        layers = [x[:, : self.geometry.dense]]
        for i in range(self.depth):
            weight, bias = own[f"expert{i}.weight"], own[f"expert{i}.bias"]
            out = x.new_empty(len(weight), n, weight.shape[2])
            stacked = layers[-1] if i else layers[-1].unsqueeze(0)
            side_by_side.forward(*(t.numpy() for t in (stacked, weight, bias, out)))
            layers.append(out)
        logits, change = (x.new_empty(n, own["gate.weight"].shape[1]) for _ in range(2))
        affine(*(t.numpy() for t in (layers[0], own["gate.weight"], own["gate.bias"], logits)))
        self._own("own.gate", layers[0], inputs.slot, inputs.earned, change)
        shares = torch.softmax(logits.add_(change).view(n, objectives, -1), -1)
        hidden = x.new_empty(n, objectives, layers[-1].shape[2])
        side_by_side.mix(*(t.numpy() for t in (shares, layers[-1], hidden)))
        return self._head(inputs, hidden), Saved(inputs, layers, shares, hidden)

    def _head(self, inputs: base.Inputs, hidden: torch.Tensor) -> base.MetaInput:
        """See `parts.Head.meta`."""
        n, objectives, _ = hidden.shape
        offset = wide.added(self.beside, inputs.x, self.wide)
        if not self.towers:
            nothing = hidden.new_zeros(n, objectives, 1)
            return base.MetaInput(hidden, nothing + 1, offset, nothing)
        earned, width = inputs.earned.view(-1, 1), self.own["own.output.weight"].shape[2]
        shift = hidden.new_empty(n * objectives, width)
        self._own("own.tower", hidden.view(n * objectives, -1), *self._virtual(inputs, n), shift)
        gain = embedding(inputs.slot, self.own["own.output.weight"].flatten(1)).mul_(earned).add_(1)
        offset.addcmul_(earned, embedding(inputs.slot, self.own["own.output.bias"]))
        return base.MetaInput(hidden, gain.view(n, objectives, width), offset, shift.view(n, objectives, width))

    def backward(self, saved: Saved, slopes: base.MetaInput) -> torch.Tensor:
        """Fill the trunk's gradient from that of the first R rows' meta inputs; returns the gradient (R, row) of their inputs."""
        rows, g, slope = len(slopes.offset), self.geometry, self.slope
        inputs = base.Inputs(*(part[:rows] for part in saved.inputs))
        dhidden = self._head_back(inputs, saved.hidden[:rows], slopes)
        shares, found = saved.shares[:rows], saved.layers[-1][:, :rows].contiguous()
        dshares, dlayer = torch.empty_like(shares), torch.empty_like(found)
        side_by_side.mix_back(*(t.numpy() for t in (shares, found, dhidden, dshares, dlayer)))
        dlogits = torch.ops.aten._softmax_backward_data.default(dshares, shares, -1, torch.float32).view(rows, -1)  # noqa: SLF001
        dx = inputs.x.new_empty(rows, g.row)
        for i in range(self.depth - 1, -1, -1):
            x, active = saved.layers[i], saved.layers[i + 1][:, :rows].contiguous()
            entering = x[:, :rows].contiguous() if i else x[:rows].unsqueeze(0)
            below = torch.empty_like(entering) if i else dx[:, : g.dense].unsqueeze(0)
            weight, fills = self.own[f"expert{i}.weight"], (below, slope[f"expert{i}.weight"], slope[f"expert{i}.bias"])
            side_by_side.backward(*(t.numpy() for t in (entering, weight, active, dlayer, *fills)))
            dlayer = below
        x, dentry = saved.layers[0][:rows], dx[:, : g.dense]
        filled = slope["gate.weight"], slope["gate.bias"], dentry
        _affine_back(*(t.numpy() for t in (x, self.own["gate.weight"], dlogits, *filled)))
        self._own_back("own.gate", x, inputs.slot, inputs.earned, dlogits, dentry)
        dx[:, g.dense :] = 0
        wide.add_back(self.beside, inputs.x, self.wide, slopes.offset, self.dbeside, dx)
        return dx

    def _head_back(self, inputs: base.Inputs, hidden: torch.Tensor, slopes: base.MetaInput) -> torch.Tensor:
        """The gradient (R, O, H1) of the mixtures."""
        if not self.towers:
            return slopes.hidden
        rows, objectives, _ = hidden.shape
        earned, dhidden = inputs.earned.view(-1, 1), slopes.hidden.view(rows * objectives, -1)
        for name, part in (("weight", slopes.gate), ("bias", slopes.offset)):
            fill = self.slope[f"own.output.{name}"].flatten(1).zero_()
            fill.index_add_(0, inputs.slot, part.reshape(rows, -1) * earned)
        up = slopes.shift.reshape(rows * objectives, -1)
        self._own_back("own.tower", hidden.view(rows * objectives, -1), *self._virtual(inputs, rows), up, dhidden)
        return slopes.hidden

    def _virtual(self, inputs: base.Inputs, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Slot and earned share of virtual rows (n x O), a slot for each scenario and objective."""
        objectives = self.geometry.objectives
        slot = inputs.slot.unsqueeze(1) * objectives + torch.arange(objectives)
        return slot.view(-1), inputs.earned.unsqueeze(1).expand(rows, objectives).reshape(-1)

    def _own(self, name: str, x: torch.Tensor, slot: torch.Tensor, earned: torch.Tensor, out: torch.Tensor) -> None:
        weight = self.own[f"{name}.weight"]
        bias = self.own[f"{name}.bias"].view(len(weight), -1)
        slot_layers.forward(*(t.numpy() for t in (x, weight, bias, slot, earned, out)))

    def _own_back(
        self, name: str, x: torch.Tensor, slot: torch.Tensor, earned: torch.Tensor, up: torch.Tensor, dx: torch.Tensor
    ) -> None:  # fmt: skip
        """Fill the layer's gradients, add that of x."""
        weight, dweight = self.own[f"{name}.weight"], self.slope[f"{name}.weight"]
        dbias = self.slope[f"{name}.bias"].view(len(weight), -1)
        slot_layers.backward(*(t.numpy() for t in (x, weight, slot, earned, up, dx, dweight, dbias)))
