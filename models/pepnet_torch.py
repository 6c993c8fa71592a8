"""PEPNet's trunk and the tower's hidden layer with their gradient in torch's operations, without autograd.

Few calls, over query and support rows together: at small minibatches a step costs calls, not arithmetic; autograd makes one for
each operation and again for its gradient. The reference is `models.pepnet` under autograd; the tests hold the two together.
Covers what `models.pepnet_native` covers.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from models import base, towers, wide
from state import config

F32 = npt.NDArray[np.float32]

_rectify_back = torch.ops.aten.threshold_backward.default
_sigmoid_back = torch.ops.aten.sigmoid_backward.default


class Saved(NamedTuple):
    """A forward pass's activations of n rows; of the layers, objectives stand before rows."""

    x: torch.Tensor
    seen: torch.Tensor
    """EPNet's hidden layer (n, G)."""
    share: torch.Tensor
    """EPNet's gates before they are scaled (n, C x E)."""
    gate: torch.Tensor
    entry: torch.Tensor
    """[gated embeddings | numbers | personal embeddings] (n, P)"""
    within: torch.Tensor
    """Every PPNet gate's hidden layer (n, layers x O x G)."""
    shares: list[torch.Tensor]
    """PPNet's gates of each layer before they are scaled (O, n, width)."""
    gates: list[torch.Tensor]
    active: list[torch.Tensor]
    """Hidden layers before their gates; the first (1, n, width) is read by all objectives."""
    hidden: list[torch.Tensor]
    """Hidden layers behind their gates (O, n, width)."""
    entering: torch.Tensor
    """The last of them, virtual rows (n x O, H1) of the tower."""


class Trunk:
    """See `base.Written`."""

    def __init__(self, settings: config.Config, parameters: base.Parameters, gradient: base.Parameters) -> None:
        """Reads `parameters` and fills `gradient`, which are views by name."""
        self.own, self.slope = {name: view.detach() for name, view in parameters.items()}, gradient
        self.geometry, self.model, self.wide = base.geometry(settings), settings.model, wide.plan(settings)
        spans = {name: self.geometry.span(name) for name in self.geometry.categories}
        self.scenario = [spans[n] for n in dict.fromkeys(self.model.scenario_features) if n in spans]
        self.personal, at = [], self.geometry.dense
        for name in self.model.personal_features:
            if name in spans:
                self.personal.append((slice(at, at + self.geometry.width), spans[name]))
                at += self.geometry.width
        self.entered = at
        self.beside, self.dbeside = ([views[n] for n in wide.NAMES if n in views] for views in (self.own, self.slope))

    def forward(self, inputs: base.Inputs) -> tuple[towers.Meta, Saved]:
        """Meta inputs of n rows' virtual rows, and what `backward` needs."""
        g, own, x, gamma = self.geometry, self.own, inputs.x, self.model.gamma
        n, embedded = len(x), g.embedded
        seen = self._affine("epnet.in", x[:, : g.dense]).relu_()
        share = self._affine("epnet.out", seen).sigmoid_()
        gate = share * gamma
        entry = x.new_empty(n, self.entered)
        torch.mul(x[:, :embedded], gate, out=entry[:, :embedded])
        entry[:, embedded : g.dense] = x[:, embedded : g.dense]
        for to, span in self.personal:
            entry[:, to] = x[:, span]
        within = self._affine("ppnet.in", entry).relu_()
        shares, gates = self._gates(within)
        active = [self._affine("hidden0", entry[:, : g.dense]).relu_().unsqueeze(0)]
        hidden = [active[0] * gates[0]]
        for i in range(1, len(self.model.hidden) - 1):
            layer = torch.addmm(own[f"hidden{i}.bias"], hidden[-1].view(g.objectives * n, -1), own[f"hidden{i}.weight"])
            active.append(layer.relu_().view(g.objectives, n, -1))
            hidden.append(active[-1] * gates[i])
        entering, last = (part[-1].transpose(0, 1).reshape(n * g.objectives, -1) for part in (hidden, gates))
        offset = wide.added(self.beside, x, self.wide).view(-1, 1)
        meta = towers.Meta(*(part.numpy() for part in (entering, self._affine("tower", entering), last, offset)))
        return meta, Saved(x, seen, share, gate, entry, within, shares, gates, active, hidden, entering)

    def backward(self, saved: Saved, slopes: towers.Meta) -> F32:
        """Fill the gradient from that of the first R rows' meta inputs; returns the gradient (R, row) of their inputs."""
        g, rows = self.geometry, len(slopes.offset) // self.geometry.objectives
        dentering, dz, dlast, doffset = (torch.from_numpy(part) for part in slopes)
        self._weight_back("tower", saved.entering[: len(dz)], dz)
        dentering.addmm_(dz, self.own["tower.weight"].t())
        dfirst, dwithin = self._layers_back(saved, *(part.view(rows, g.objectives, -1) for part in (dentering, dlast)))
        entry, gate, x = saved.entry[:rows], saved.gate[:rows], saved.x[:rows]
        self._weight_back("hidden0", entry[:, : g.dense], dfirst)
        self._weight_back("ppnet.in", entry, dwithin)
        dentry = dfirst @ self.own["hidden0.weight"][: g.embedded].t()
        dgate = _sigmoid_back((dentry * x[:, : g.embedded]).mul_(self.model.gamma), saved.share[:rows])
        seen = saved.seen[:rows]
        self._weight_back("epnet.out", seen, dgate)
        dseen = _rectify_back(dgate @ self.own["epnet.out.weight"].t(), seen, 0)
        self._weight_back("epnet.in", x[:, : g.dense], dseen)
        dx = x.new_empty(rows, g.row)
        torch.mul(dentry, gate, out=dx[:, : g.embedded])
        dx[:, g.embedded :] = 0
        for span in self.scenario:
            dx[:, span].addmm_(dseen, self.own["epnet.in.weight"][span].t())
        if self.personal:
            dpersonal = dwithin @ self.own["ppnet.in.weight"][g.dense :].t()
            for at, span in self.personal:
                dx[:, span] += dpersonal[:, at.start - g.dense : at.stop - g.dense]
        wide.add_back(self.beside, x, self.wide, doffset.view(rows, -1), self.dbeside, dx)
        return dx.numpy()

    def _affine(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.own[f"{name}.bias"], x, self.own[f"{name}.weight"])

    def _weight_back(self, name: str, x: torch.Tensor, slope: torch.Tensor) -> None:
        """Fill the gradient of a layer that read x (n, inputs) from that of its output (n, outputs)."""
        torch.mm(x.t(), slope, out=self.slope[f"{name}.weight"])
        torch.sum(slope, 0, out=self.slope[f"{name}.bias"])

    def _parts(self, within: torch.Tensor) -> torch.Tensor:
        """Rows (n, layers x O x G) by layer and objective (layers, O, n, G)."""
        shape = len(within), len(self.model.hidden), self.geometry.objectives, self.model.gate_hidden
        return within.view(shape).permute(1, 2, 0, 3)

    def _gates(self, within: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Of each layer (O, n, width): sigmoids, and the gates that they scale to."""
        objectives, n, parts = self.geometry.objectives, len(within), self._parts(within)
        every = within.new_empty(objectives * n * sum(self.model.hidden))
        shares, gates, at = [], [], 0
        for i, width in enumerate(self.model.hidden):
            size = objectives * n * width
            own = every[at : at + size].view(objectives, n, width)
            bias = self.own[f"ppnet.out{i}.bias"].view(objectives, 1, width)
            torch.baddbmm(bias, parts[i], self.own[f"ppnet.out{i}.weight"], out=own)
            shares.append(own)
            at += size
        scaled, at = every.sigmoid_() * self.model.gamma, 0
        for own in shares:
            gates.append(scaled[at : at + own.numel()].view(own.shape))
            at += own.numel()
        return shares, gates

    def _layers_back(
        self, saved: Saved, dentering: torch.Tensor, dlast: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """From the tower down: gradients of the first hidden layer (R, width) and of all gates' hidden layers (R, L x O x G)."""
        rows = len(dlast)
        layers, dwithin = len(self.model.hidden), torch.empty_like(saved.within[:rows])
        parts, dparts = self._parts(saved.within[:rows]), self._parts(dwithin)
        self._gates_back(layers - 1, saved, dlast.transpose(0, 1), parts, dparts)
        dhidden = dentering.transpose(0, 1)
        for i in range(layers - 2, -1, -1):
            active, gate = saved.active[i][:, :rows], saved.gates[i][:, :rows]
            self._gates_back(i, saved, dhidden * active, parts, dparts)
            dactive = dhidden * gate
            if i == 0:
                break
            flat = _rectify_back(dactive, active, 0).reshape(-1, dactive.shape[2])
            self._weight_back(f"hidden{i}", saved.hidden[i - 1][:, :rows].reshape(len(flat), -1), flat)
            dhidden = (flat @ self.own[f"hidden{i}.weight"].t()).view(len(dactive), rows, -1)
        dfirst = dactive.sum(0) if len(dactive) > 1 else dactive[0]
        return _rectify_back(dfirst, saved.active[0][0, :rows], 0), _rectify_back(dwithin, saved.within[:rows], 0)

    def _gates_back(
        self, i: int, saved: Saved, slope: torch.Tensor, parts: torch.Tensor, dparts: torch.Tensor
    ) -> None:  # fmt: skip
        """From the gradient (O, R, width) of layer i's gates to those of the layer that makes them and of what it reads."""
        name, rows = f"ppnet.out{i}", slope.shape[1]
        dlogit = _sigmoid_back(slope * self.model.gamma, saved.shares[i][:, :rows])
        torch.bmm(parts[i].transpose(1, 2), dlogit, out=self.slope[f"{name}.weight"])
        torch.sum(dlogit, 1, out=self.slope[f"{name}.bias"].view(len(dlogit), -1))
        dparts[i].copy_(torch.bmm(dlogit, self.own[f"{name}.weight"].transpose(1, 2)))
