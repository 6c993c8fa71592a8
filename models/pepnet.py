"""PEPNet (Chang et al. 2023): gates personalise the embeddings by scenario and the hidden layers by user and item.

The equations are those of the paper's three parts. Gate NU: gamma sigmoid(relu(x W + b) W' + b'). EPNet, output = gate x E:
scales the embeddings by a Gate NU that reads the scenario's features and, without gradient, everything else. PPNet, output of a
layer x gate: scales every hidden layer by a Gate NU that reads the personal features and, without gradient, EPNet's output. One
tower is shared by all scenarios; each objective has gates and an output of its own, and with `model.objective_towers` hidden
weights as well, as a change of the shared ones (`models.objective_layers`). Beside the tower stands the wide part
(`models.wide`).
"""

import itertools

import torch

from models import base, objective_layers, parts, pepnet_native, pepnet_torch, wide
from state import config


class PEPNet:
    """The network as pure functions of its parameters."""

    def __init__(self, settings: config.Config) -> None:
        self.settings = settings
        self.geometry = base.geometry(settings)
        self.model = settings.model
        self.objectives = self.geometry.objectives
        self.scenario = spans(self.geometry, self.model.scenario_features)
        self.personal = spans(self.geometry, self.model.personal_features)
        self.inputs = self.geometry.dense
        self.wide = wide.plan(settings)
        names = [*(f"hidden{i}" for i in range(len(self.model.hidden) - 1)), "tower"]
        self.apart = objective_layers.Own(
            settings, dict(zip(names, itertools.pairwise((self.inputs, *self.model.hidden)), strict=True))
        )
        self.deeper = objective_layers.Deeper(settings, (self.inputs, *self.model.hidden)[-2])
        self.shapes = self._shapes()

    def _shapes(self) -> base.Shapes:
        model, inputs, objectives = self.model, self.inputs, self.objectives
        shapes: base.Shapes = {}
        if model.use_epnet:
            shapes |= parts.layer("epnet.in", inputs, model.gate_hidden) | parts.layer(
                "epnet.out", model.gate_hidden, self.geometry.embedded
            )
        widths = (inputs, *model.hidden)
        for i, (fan_in, width) in enumerate(itertools.pairwise(widths[:-1])):
            shapes |= parts.layer(f"hidden{i}", fan_in, width)
        if model.use_ppnet:
            gates = len(model.hidden) * objectives
            personal = inputs + len(self.personal) * self.geometry.width
            shapes |= parts.layer("ppnet.in", personal, gates * model.gate_hidden)
            for i, width in enumerate(model.hidden):
                shapes[f"ppnet.out{i}.weight"] = (objectives, model.gate_hidden, width)
                shapes[f"ppnet.out{i}.bias"] = (objectives * width,)
        shapes |= parts.layer("tower", widths[-2], widths[-1])
        shapes["output.weight"] = (objectives, widths[-1])
        shapes["output.bias"] = (objectives,)
        return shapes | self.deeper.shapes() | self.apart.shapes() | wide.shapes(self.wide)

    def initial(self, seed: int) -> torch.Tensor:
        """Fan-in normal weights, zero biases; the output starts at the size that a fan-in of the last layer gives."""
        flat = base.fan_in_normal(self.shapes, seed)
        views = base.views(flat, self.shapes)
        views["output.weight"].mul_((self.objectives / self.model.hidden[-1]) ** 0.5)
        self.apart.start(views)
        wide.start(views)
        return flat

    def fast_parameters(self) -> tuple[str, ...]:
        """The last hidden layer and the output."""
        return base.FAST

    def inspect(self, parameters: base.Parameters, inputs: base.Inputs) -> dict[str, torch.Tensor]:
        """`epnet`: factors of the embeddings (n, C), means over their numbers; `ppnet0`, ...: of the layers (n, O, width)."""
        g = self.geometry
        embedded, numbers = inputs.x[:, : g.embedded], inputs.x[:, g.embedded : g.dense]
        entry = self._epnet(parameters, embedded, numbers)
        found = {f"ppnet{i}": gate for i, gate in enumerate(self._ppnet(parameters, embedded, entry))}
        if self.model.use_epnet:
            gate = self._embedding_gate(parameters, embedded, numbers)
            found["epnet"] = gate.view(len(gate), len(g.categories), g.width).mean(2)
        return found

    def tower(self, fast: base.Parameters, meta: base.MetaInput) -> torch.Tensor:
        """Logits (n, O)."""
        return base.tower(fast, meta)

    def written(self, parameters: base.Parameters, gradient: base.Parameters) -> base.Written | None:
        """The trunk in torch's operations without autograd, for the usual configuration."""
        covered = not (self.apart or self.deeper) and pepnet_native.covers(self.settings)
        return pepnet_torch.Trunk(self.settings, parameters, gradient) if covered else None

    def native(self, flat: torch.Tensor) -> base.NativeTrunk | None:
        """The hand-written form, for the usual configuration."""
        covered = not (self.apart or self.deeper) and pepnet_native.covers(self.settings)
        return pepnet_native.Network(self.settings, self.shapes, flat) if covered else None

    def trunk(self, parameters: base.Parameters, inputs: base.Inputs) -> base.MetaInput:
        """Everything up to the last hidden layer's input, that layer's gates, and the wide part as the logit's offset."""
        x = inputs.x
        embedded, numbers = x[:, : self.geometry.embedded], x[:, self.geometry.embedded : self.geometry.dense]
        entry = self._epnet(parameters, embedded, numbers)
        gates = self._ppnet(parameters, embedded, entry)
        hidden = entry.unsqueeze(1).expand(-1, self.objectives, -1)
        for i in range(len(self.model.hidden) - 1):
            weight, bias = parameters[f"hidden{i}.weight"], parameters[f"hidden{i}.bias"]
            shared = torch.addmm(bias, entry, weight).unsqueeze(1) if i == 0 else hidden @ weight + bias
            if self.apart:
                shared = shared + self.apart.change(parameters, f"hidden{i}", hidden)
            hidden = torch.relu(shared) * gates[i]
        hidden = self.deeper.through(parameters, hidden)
        offset = wide.logits(parameters, x, self.wide)
        shift = self.apart.change(parameters, "tower", hidden) if self.apart else x.new_zeros(len(x), self.objectives, 1)
        return base.MetaInput(hidden, gates[-1], offset, shift)

    def _epnet(self, parameters: base.Parameters, embedded: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        if not self.model.use_epnet:
            return torch.cat([embedded, numbers], 1)
        gate = self._embedding_gate(parameters, embedded, numbers)
        return torch.cat([embedded * gate, numbers], 1)

    def _embedding_gate(self, parameters: base.Parameters, embedded: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """(n, C x E)"""
        seen = torch.cat([without_gradient(embedded, self.scenario) if self.model.stop_gradient else embedded, numbers], 1)
        hidden = torch.relu(torch.addmm(parameters["epnet.in.bias"], seen, parameters["epnet.in.weight"]))
        return self.model.gamma * torch.sigmoid(torch.addmm(parameters["epnet.out.bias"], hidden, parameters["epnet.out.weight"]))

    def _ppnet(self, parameters: base.Parameters, embedded: torch.Tensor, entry: torch.Tensor) -> list[torch.Tensor]:
        """A gate (n, O, width) for each hidden layer."""
        rows, layers, objectives = len(embedded), self.model.hidden, self.objectives
        if not self.model.use_ppnet:
            return [torch.ones(rows, objectives, width) for width in layers]
        seen = torch.cat([entry.detach() if self.model.stop_gradient else entry, *(embedded[:, s] for s in self.personal)], 1)
        hidden = torch.relu(torch.addmm(parameters["ppnet.in.bias"], seen, parameters["ppnet.in.weight"]))
        within = hidden.view(rows, len(layers), objectives, self.model.gate_hidden).permute(1, 2, 0, 3)
        gates = []
        for i, width in enumerate(layers):
            bias = parameters[f"ppnet.out{i}.bias"].view(objectives, 1, width)
            logit = torch.baddbmm(bias, within[i], parameters[f"ppnet.out{i}.weight"])
            gates.append(self.model.gamma * torch.sigmoid(logit).transpose(0, 1))
        return gates


def spans(geometry: base.Geometry, names: tuple[str, ...]) -> list[slice]:
    """Columns of the embeddings of those of these features that are categories."""
    return [geometry.span(name) for name in names if name in geometry.categories]


def without_gradient(x: torch.Tensor, keep: list[slice]) -> torch.Tensor:
    """`x` detached but for the columns `keep`."""
    kept, at = [], 0
    for span in sorted(keep, key=lambda s: int(s.start)):
        kept += [x[:, at : span.start].detach(), x[:, span]]
        at = span.stop
    return torch.cat([*kept, x[:, at:].detach()], 1)
