"""PEPNet's trunk forward and backward by hand: torch's matrix products between fused native loops, no autograd.

The reference is `models.pepnet` under autograd; the tests hold the two together. Covers the usual form of the network (both
gates, stopped gradients, at least two hidden layers); other forms take the autograd path.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from models import base, towers, wide
from state import config
from state.kernels import kernel

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]


class Plan(NamedTuple):
    """Geometry for the kernels: C x E, numbers read by the network, E, gamma, columns of the personal embeddings."""

    embedded: int
    dense: int
    width: int
    gamma: float
    personal: I64


@kernel
def _join(x: F32, gate: F32, plan: Plan, entry: F32) -> None:
    """`entry` = [embeddings x gate | numbers | personal embeddings]; `gate` becomes gamma x sigmoid."""
    gamma = np.float32(plan.gamma)
    for i in range(len(x)):
        for j in range(plan.embedded):
            gate[i, j] *= gamma
            entry[i, j] = x[i, j] * gate[i, j]
        for j in range(plan.embedded, plan.dense):
            entry[i, j] = x[i, j]
        at = plan.dense
        for p in range(len(plan.personal)):
            for d in range(plan.width):
                entry[i, at + d] = x[i, plan.personal[p] + d]
            at += plan.width


@kernel
def _scale_gates(gates: F32, gamma: float) -> None:
    by = np.float32(gamma)
    for i in range(len(gates)):
        for j in range(gates.shape[1]):
            gates[i, j] *= by


@kernel
def _gated(active: F32, columns: int, shared: bool, gates: F32, at: int, objectives: int, out: F32) -> None:
    """`out` (n, O x columns) = active x gates; one active row serves all objectives when it is shared."""
    for i in range(len(out)):
        for o in range(objectives):
            low, start = o * columns, 0 if shared else o * columns
            for j in range(columns):
                out[i, low + j] = active[i, start + j] * gates[i, at + low + j]


@kernel
def _ungated(
    slope: F32, active: F32, columns: int, shared: bool, gates: F32, at: int, objectives: int, dgates: F32, out: F32
) -> None:
    """Backward of `_gated` and of the rectifier before it; `out` may be `slope` unless the active rows are shared."""
    for i in range(len(slope)):
        if shared:
            for j in range(columns):
                out[i, j] = 0
        for o in range(objectives):
            low, start = o * columns, 0 if shared else o * columns
            for j in range(columns):
                up, value = slope[i, low + j], active[i, start + j]
                dgates[i, at + low + j] = up * value
                down = up * gates[i, at + low + j] if value > 0 else np.float32(0)
                if shared:
                    out[i, j] += down
                else:
                    out[i, low + j] = down


@kernel
def _sigmoid_slope(dgates: F32, gates: F32, gamma: float) -> None:
    """From the gradient of gamma x sigmoid to that of its logit."""
    inverse = np.float32(1.0 / gamma)
    for i in range(len(dgates)):
        for j in range(dgates.shape[1]):
            dgates[i, j] *= gates[i, j] * (np.float32(1) - gates[i, j] * inverse)


@kernel
def _rectified(slope: F32, active: F32, low: int) -> None:
    """Backward of the rectifier for the columns from `low`."""
    for i in range(len(slope)):
        for j in range(low, slope.shape[1]):
            slope[i, j] = slope[i, j] if active[i, j] > 0 else np.float32(0)


@kernel
def column_sums(values: F32, low: int, out: F32) -> None:
    """Sum over rows of the columns from `low`, in row order."""
    out[:] = 0
    for i in range(len(values)):
        for j in range(len(out)):
            out[j] += values[i, low + j]


@kernel
def _split(x: F32, gate: F32, dentry: F32, dpersonal: F32, plan: Plan, dgate: F32, dx: F32) -> None:
    """Backward of `_join`: gradients of the gate's logit and of the inputs."""
    inverse = np.float32(1.0 / plan.gamma)
    for i in range(len(dx)):
        for j in range(plan.embedded):
            g = gate[i, j]
            dgate[i, j] = dentry[i, j] * x[i, j] * g * (np.float32(1) - g * inverse)
            dx[i, j] = dentry[i, j] * g
        for j in range(plan.embedded, dx.shape[1]):
            dx[i, j] = 0
        at = 0
        for p in range(len(plan.personal)):
            for d in range(plan.width):
                dx[i, plan.personal[p] + d] += dpersonal[i, at + d]
            at += plan.width


class Saved(NamedTuple):
    """A forward pass's activations, for its backward pass."""

    x: F32
    """Gathered inputs (N, row)."""
    seen: F32
    """EPNet's hidden layer."""
    gate: F32
    """EPNet's gates."""
    entry: F32
    first: F32
    """First hidden layer before its gate, and every PPNet gate's hidden layer."""
    active: tuple[F32, ...]
    """Later hidden layers before their gates."""
    hidden: tuple[F32, ...]
    """Hidden layers behind their gates; the last enters the tower."""


def covers(settings: config.Config) -> bool:
    """Whether the configuration asks for the form of the network that is written out here."""
    model = settings.model
    return model.use_epnet and model.use_ppnet and model.stop_gradient and len(model.hidden) >= 2


class Network:
    """The trunk over one flat parameter vector."""

    def __init__(self, settings: config.Config, shapes: base.Shapes, flat: torch.Tensor) -> None:
        geometry, model = base.geometry(settings), settings.model
        self.parameters = base.views(flat.detach(), shapes)
        self.turned = {name: view.transpose(-1, -2) for name, view in self.parameters.items() if view.dim() > 1}
        self.layers, self.gate_hidden, self.objectives = model.hidden, model.gate_hidden, geometry.objectives
        spans = {name: geometry.span(name) for name in geometry.categories}
        self.scenario = [spans[n] for n in dict.fromkeys(model.scenario_features) if n in spans]
        personal = [spans[n].start for n in model.personal_features if n in spans]
        self.plan = Plan(geometry.embedded, geometry.dense, geometry.width, model.gamma, np.array(personal, np.int64))
        self.wide = wide.plan(settings)
        self.beside = wide.arrays({name: view.numpy() for name, view in self.parameters.items()}, self.wide)
        starts = np.cumsum([0, *(geometry.objectives * width for width in self.layers)])
        self.starts: list[int] = starts.tolist()
        self.gate_parts = self._gate_parts()
        self.tower = towers.Tower(self.parameters["output.weight"].numpy(), self.parameters["output.bias"].numpy())

    def forward(self, x: F32) -> tuple[towers.Meta, Saved]:
        """Meta inputs of gathered rows (N, row)."""
        p, plan, rows, objectives = self.parameters, self.plan, len(x), self.objectives
        with torch.no_grad():
            inputs = torch.from_numpy(x)[:, : plan.dense]
            seen = torch.addmm(p["epnet.in.bias"], inputs, p["epnet.in.weight"]).relu_()
            gate = torch.addmm(p["epnet.out.bias"], seen, p["epnet.out.weight"]).sigmoid_()
            entry, offset = torch.empty(rows, len(p["ppnet.in.weight"])), np.empty((rows, objectives), np.float32)
            _join(x, gate.numpy(), plan, entry.numpy())
            wide.forward(x, self.wide, self.beside, offset)
            width = self.layers[0]
            first = torch.empty(rows, width + len(p["ppnet.in.bias"]))
            torch.addmm(p["hidden0.bias"], entry[:, : plan.dense], p["hidden0.weight"], out=first[:, :width])
            torch.addmm(p["ppnet.in.bias"], entry, p["ppnet.in.weight"], out=first[:, width:])
            first.relu_()
            gates = self._gates(first)
            hidden = [torch.empty(rows, objectives * width)]
            _gated(first.numpy(), width, True, gates.numpy(), 0, objectives, hidden[0].numpy())
            active = []
            for i, width in enumerate(self.layers[1:-1], 1):
                before = hidden[-1].view(rows * objectives, -1)
                active.append(torch.addmm(p[f"hidden{i}.bias"], before, p[f"hidden{i}.weight"]).relu_().view(rows, -1))
                hidden.append(torch.empty(rows, objectives * width))
                _gated(active[-1].numpy(), width, False, gates.numpy(), self.starts[i], objectives, hidden[-1].numpy())
            z = torch.addmm(p["tower.bias"], hidden[-1].view(rows * objectives, -1), p["tower.weight"]).view(rows, -1)
        meta = towers.Meta(hidden[-1].numpy(), z.numpy(), gates.numpy(), self.starts[-2], offset)
        saved = Saved(
            x, seen.numpy(), gate.numpy(), entry.numpy(), first.numpy(),
            tuple(a.numpy() for a in active), tuple(h.numpy() for h in hidden),
        )  # fmt: skip
        return meta, saved

    def _gates(self, first: torch.Tensor) -> torch.Tensor:
        """PPNet's gates (N, sum of O x width), layer by layer, objective by objective."""
        gates = torch.empty(len(first), self.starts[-1])
        for i, o, source, target in self.gate_parts:
            bias = self.parameters[f"ppnet.out{i}.bias"][target.start - self.starts[i] : target.stop - self.starts[i]]
            torch.addmm(bias, first[:, source], self.parameters[f"ppnet.out{i}.weight"][o], out=gates[:, target])
        gates.sigmoid_()
        _scale_gates(gates.numpy(), self.plan.gamma)
        return gates

    def _gate_parts(self) -> list[tuple[int, int, slice, slice]]:
        """Layer, objective, columns of its hidden layer and columns of its gates, for every gate."""
        parts, at = [], self.layers[0]
        for i, width in enumerate(self.layers):
            for o in range(self.objectives):
                low = self.starts[i] + o * width
                parts.append((i, o, slice(at, at + self.gate_hidden), slice(low, low + width)))
                at += self.gate_hidden
        return parts

    def slopes(self, rows: int, gradient: base.Gradient) -> towers.Slopes:
        """Room for the gradients that the tower hands to `backward`."""
        entry, width, objectives = self.layers[-2], self.layers[-1], self.objectives
        return towers.Slopes(
            np.empty((rows, objectives * entry), np.float32), np.empty((rows, objectives * width), np.float32),
            np.empty((rows, self.starts[-1]), np.float32), np.empty((rows, objectives), np.float32),
            gradient.arrays["output.weight"], gradient.arrays["output.bias"],
        )  # fmt: skip

    def backward(self, meta: towers.Meta, saved: Saved, slopes: towers.Slopes, gradient: base.Gradient) -> F32:
        """Fill `gradient` from the tower's slopes of the first R rows; returns the gradient of the inputs (R, row)."""
        g, rows, objectives = gradient.views, len(slopes.z), self.objectives
        with torch.no_grad():
            dz = torch.from_numpy(slopes.z).view(rows * objectives, -1)
            dhidden = torch.from_numpy(slopes.hidden).view(rows * objectives, -1)
            self._weight_gradient("tower", torch.from_numpy(saved.hidden[-1])[:rows].reshape(rows * objectives, -1), dz, gradient)
            dhidden.addmm_(dz, self.turned["tower.weight"])
            for i in range(len(self.layers) - 2, 0, -1):
                _ungated(
                    dhidden.view(rows, -1).numpy(), saved.active[i - 1], self.layers[i], False, meta.gates, self.starts[i],
                    objectives, slopes.gates, dhidden.view(rows, -1).numpy(),
                )  # fmt: skip
                before = torch.from_numpy(saved.hidden[i - 1])[:rows].reshape(rows * objectives, -1)
                self._weight_gradient(f"hidden{i}", before, dhidden, gradient)
                dhidden = dhidden @ self.turned[f"hidden{i}.weight"]
            width = self.layers[0]
            dfirst = torch.empty(rows, saved.first.shape[1])
            _ungated(
                dhidden.view(rows, -1).numpy(), saved.first, width, True, meta.gates, 0, objectives, slopes.gates, dfirst.numpy()
            )
            self._gates_backward(meta, saved, slopes, dfirst, gradient)
            entry = torch.from_numpy(saved.entry)[:rows]
            torch.mm(entry[:, : self.plan.dense].t(), dfirst[:, :width], out=g["hidden0.weight"])
            torch.mm(entry.t(), dfirst[:, width:], out=g["ppnet.in.weight"])
            column_sums(dfirst.numpy(), 0, gradient.arrays["hidden0.bias"])
            column_sums(dfirst.numpy(), width, gradient.arrays["ppnet.in.bias"])
            return self._epnet_backward(saved, slopes, dfirst, gradient)

    def _gates_backward(
        self, meta: towers.Meta, saved: Saved, slopes: towers.Slopes, dfirst: torch.Tensor, gradient: base.Gradient
    ) -> None:
        _sigmoid_slope(slopes.gates, meta.gates, self.plan.gamma)
        dgates, first = torch.from_numpy(slopes.gates), torch.from_numpy(saved.first)[: len(slopes.gates)]
        for i, o, source, target in self.gate_parts:
            torch.mm(first[:, source].t(), dgates[:, target], out=gradient.views[f"ppnet.out{i}.weight"][o])
            torch.mm(dgates[:, target], self.turned[f"ppnet.out{i}.weight"][o], out=dfirst[:, source])
        for i in range(len(self.layers)):
            column_sums(slopes.gates, self.starts[i], gradient.arrays[f"ppnet.out{i}.bias"])
        _rectified(dfirst.numpy(), saved.first, self.layers[0])

    def _epnet_backward(self, saved: Saved, slopes: towers.Slopes, dfirst: torch.Tensor, gradient: base.Gradient) -> F32:
        plan, rows, width = self.plan, len(dfirst), self.layers[0]
        dentry = dfirst[:, :width] @ self.turned["hidden0.weight"][:, : plan.embedded]
        dpersonal = dfirst[:, width:] @ self.turned["ppnet.in.weight"][:, plan.dense :]
        dgate, dx = torch.empty(rows, plan.embedded), torch.empty(rows, saved.x.shape[1])
        _split(saved.x, saved.gate, dentry.numpy(), dpersonal.numpy(), plan, dgate.numpy(), dx.numpy())
        wide.backward(saved.x, self.wide, self.beside, slopes.offset, wide.arrays(gradient.arrays, self.wide), dx.numpy())
        seen = torch.from_numpy(saved.seen)[:rows]
        self._weight_gradient("epnet.out", seen, dgate, gradient)
        dseen = dgate @ self.turned["epnet.out.weight"]
        _rectified(dseen.numpy(), saved.seen, 0)
        self._weight_gradient("epnet.in", torch.from_numpy(saved.x)[:rows, : plan.dense], dseen, gradient)
        for span in self.scenario:
            dx[:, span].addmm_(dseen, self.turned["epnet.in.weight"][:, span])
        return dx.numpy()

    @staticmethod
    def _weight_gradient(name: str, inputs: torch.Tensor, slope: torch.Tensor, gradient: base.Gradient) -> None:
        torch.mm(inputs.t(), slope, out=gradient.views[f"{name}.weight"])
        column_sums(slope.numpy(), 0, gradient.arrays[f"{name}.bias"])
