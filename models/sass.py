"""SASS (Taobao 2022, "Scenario-Adaptive and Self-Supervised Model for Multi-Scenario Personalized Recommendation"), to rank.

A global network reads every scenario's rows; a scenario's network is the same changed by weights of its own, as far as its
rows have earned them. Transfer: at every hidden layer before the tower an adaptive gate says how
much of the global layer passes, and an update gate how much of the mixture is that and how much the scenario's own layer:

    a = sigmoid(A [g; s; b]),   u = sigmoid(U [g; s; b]),   z = u x a x g + (1 - u) x s

Both see the global layer g, the scenario's s and a bias b. The bias network reads the scenario's id, features that other
scenarios do not have and context (`model.scenario_features`), and also adds to the logit. The talk's three layers are four
widths in `model.hidden`: three transfers and the tower. Its towers of user and item, contrastive pre-training and auxiliary
global loss belong to retrieval.
"""

import torch

from models import base, parts
from state import config


class Sass(parts.Network):
    """The network as pure functions of its parameters. With a single hidden width it has one transfer, of the same."""

    def __init__(self, settings: config.Config) -> None:
        self.geometry = base.geometry(settings)
        self.objectives, self.bias = self.geometry.objectives, settings.model.gate_hidden
        self.scenario = parts.columns(self.geometry, settings.model.scenario_features)
        self.widths = (self.geometry.dense, *(settings.model.hidden[:-1] or settings.model.hidden))
        self.head = parts.Head(settings, self.widths[-1], own=settings.model.own_towers)
        self.shapes = self._shapes()

    def _shapes(self) -> base.Shapes:
        found = parts.layers("global", self.widths) | parts.stacked("own.layer", self.head.slots, self.widths)
        found |= parts.layer("bias.in", len(self.scenario), self.bias) | parts.layer("bias.out", self.bias, self.objectives)
        for i, width in enumerate(self.widths[1:]):
            found |= parts.layer(f"gates{i}", 2 * width + self.bias, 2 * width)
        return found | self.head.shapes()

    def initial(self, seed: int) -> torch.Tensor:
        """Fan-in normal weights, zero biases, own parameters that change nothing."""
        flat = base.fan_in_normal(self.shapes, seed)
        self.head.start(base.views(flat, self.shapes))
        return flat

    def inspect(self, parameters: base.Parameters, inputs: base.Inputs) -> dict[str, torch.Tensor]:
        """Of layer i (n, width): `adaptive`, `update`, and `transferred`, their product: the share of the global layer."""
        found: dict[str, torch.Tensor] = {}
        bias = self._bias(parameters, inputs)
        for i, (_, adaptive, update) in enumerate(self._layers(parameters, inputs, bias)):
            found |= {f"adaptive{i}": adaptive, f"update{i}": update, f"transferred{i}": adaptive * update}
        return found

    def trunk(self, parameters: base.Parameters, inputs: base.Inputs) -> base.MetaInput:
        """Everything before the tower, and the bias network as part of the logit's offset."""
        bias = self._bias(parameters, inputs)
        hidden = self._layers(parameters, inputs, bias)[-1][0]
        meta = self.head.meta(parameters, hidden.unsqueeze(1).expand(-1, self.objectives, -1), inputs)
        return meta._replace(offset=meta.offset + parts.linear(parameters, "bias.out", bias))

    def _bias(self, parameters: base.Parameters, inputs: base.Inputs) -> torch.Tensor:
        return torch.relu(parts.linear(parameters, "bias.in", inputs.x[:, self.scenario]))

    def _layers(
        self, parameters: base.Parameters, inputs: base.Inputs, bias: torch.Tensor
    ) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Of each layer (n, width): the mixture, the adaptive gate and the update gate."""
        found, earned = [], inputs.earned.unsqueeze(1)
        common = own = inputs.x[:, : self.geometry.dense]
        for i in range(len(self.widths) - 1):
            change = parts.own_layer(parameters, f"own.layer{i}", own, inputs.slot, earned)
            own = torch.relu(parts.linear(parameters, f"global{i}", own) + change)
            common = torch.relu(parts.linear(parameters, f"global{i}", common))
            gates = torch.sigmoid(parts.linear(parameters, f"gates{i}", torch.cat([common, own, bias], 1)))
            adaptive, update = gates.chunk(2, 1)
            own = update * adaptive * common + (1 - update) * own
            found.append((own, adaptive, update))
        return found
