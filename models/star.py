"""STAR (Sheng et al. 2021): every layer's weight is a shared one times the scenario's own, element by element.

The points are the parts of the paper, by name, each with its equation.

* Star topology, the equations of the combined weight and bias: W = W_shared x W_own, b = b_shared + b_own, in the tower and the
  output too. W_own = 1 + earned x change, so a scenario without rows of its own is served by the shared network.
* Partitioned normalisation, (gamma gamma_own) (z - mean_own) / deviation_own + (beta + beta_own), has moments, a scale and a
  shift per scenario. Moments of the mixed batch would let a row's score depend on its company, so moments are running ones
  only: the table's, which standardise every number before it gets here. What a scenario's other moments would change is an
  affine map per input, and that is what its own scale and shift can learn; they start at the shared ones.
* Auxiliary network, the equation of the prediction, sigmoid(s_main + s_auxiliary): a small network reads what tells scenarios
  apart and adds to the logit, which has no rectifier after it.
"""

import torch

from models import base, parts
from state import config


class Star(parts.Network):
    """The network as pure functions of its parameters."""

    def __init__(self, settings: config.Config) -> None:
        self.geometry = base.geometry(settings)
        self.objectives = self.geometry.objectives
        self.widths = (self.geometry.dense, *settings.model.hidden[:-1])
        self.scenario = parts.columns(self.geometry, settings.model.scenario_features)
        self.auxiliary = settings.model.gate_hidden
        self.head = parts.Head(settings, self.widths[-1], own=True, star=True)
        self.shapes = self._shapes()

    def _shapes(self) -> base.Shapes:
        inputs, slots = self.geometry.dense, self.head.slots
        found: base.Shapes = {"norm.scale": (inputs,), "norm.shift": (inputs,)}
        found |= {"own.norm.scale": (slots, inputs), "own.norm.shift": (slots, inputs)}
        found |= parts.layers("star", self.widths) | parts.stacked("own.star", slots, self.widths)
        found |= parts.layer("auxiliary.in", len(self.scenario), self.auxiliary)
        found |= parts.layer("auxiliary.out", self.auxiliary, self.objectives)
        return found | self.head.shapes()

    def initial(self, seed: int) -> torch.Tensor:
        """Fan-in normal shared weights, zero biases, own weights of one, normalisation that changes nothing."""
        flat = base.fan_in_normal(self.shapes, seed)
        views = base.views(flat, self.shapes)
        views["norm.scale"].fill_(1.0)
        self.head.start(views)
        return flat

    def inspect(self, parameters: base.Parameters, inputs: base.Inputs) -> dict[str, torch.Tensor]:
        """`own0`, ...: share of a layer's input to the rectifier that is the scenario's own, |own| / (|shared| + |own|) (n,)."""
        found = {}
        for i, (shared, own, _) in enumerate(self._layers(parameters, inputs)):
            sizes = shared.abs().sum(1), own.abs().sum(1)
            found[f"own{i}"] = sizes[1] / (sizes[0] + sizes[1]).clamp(min=torch.finfo(torch.float32).tiny)
        return found

    def trunk(self, parameters: base.Parameters, inputs: base.Inputs) -> base.MetaInput:
        """Everything before the tower; the tower's own factors become its shift, gate and offset."""
        layers = self._layers(parameters, inputs)
        hidden = layers[-1][2] if layers else self._normalised(parameters, inputs)
        meta = self.head.meta(parameters, hidden.unsqueeze(1).expand(-1, self.objectives, -1), inputs)
        seen = inputs.x[:, self.scenario]
        scenario = torch.relu(parts.linear(parameters, "auxiliary.in", seen))
        return meta._replace(offset=meta.offset + parts.linear(parameters, "auxiliary.out", scenario))

    def _normalised(self, parameters: base.Parameters, inputs: base.Inputs) -> torch.Tensor:
        earned, slot = inputs.earned.unsqueeze(1), inputs.slot
        scale = parameters["norm.scale"] * (1 + earned * parts.looked_up(parameters["own.norm.scale"], slot))
        shift = parameters["norm.shift"] + earned * parts.looked_up(parameters["own.norm.shift"], slot)
        return inputs.x[:, : self.geometry.dense] * scale + shift

    def _layers(self, parameters: base.Parameters, inputs: base.Inputs) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Of each hidden layer: what the shared and the own weights give (n, width), and their rectified sum."""
        found, hidden, earned = [], self._normalised(parameters, inputs), inputs.earned.unsqueeze(1)
        for i in range(len(self.widths) - 1):
            shared = parts.linear(parameters, f"star{i}", hidden)
            weight = parameters[f"own.star{i}.weight"] * parameters[f"star{i}.weight"]
            changes = {"own.weight": weight, "own.bias": parameters[f"own.star{i}.bias"]}
            own = parts.own_layer(changes, "own", hidden, inputs.slot, earned)
            hidden = torch.relu(shared + own)
            found.append((shared, own, hidden))
        return found
