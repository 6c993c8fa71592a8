"""M2M (Zhang et al. 2022): what tells a scenario apart generates weights, of the attention over experts and of the tower.

The points are the parts of the paper, by name, each with its equation.

* Backbone: experts read the whole row; every objective has a view of its own.
* Meta unit: scenario knowledge s, a rectified layer over the scenario's features, gives a layer its weights, W = reshape(V s +
  v), b = U s + u. They are a row's own and are never built per scenario, so there is nothing to own.
* Meta attention: of an objective over a row's own experts, softmax_i of v . relu(Meta([expert_i; view])). Nothing attends to
  other rows of the batch: their number and order do not exist for a row.
* Meta tower: relu(Meta(R) + R) of what the attention took, before the tower that all scenarios share.
"""

import torch

from models import base, experts, parts
from state import config


class M2M(parts.Network):
    """The network as pure functions of its parameters. Scenario knowledge and the attention are `model.gate_hidden` wide."""

    def __init__(self, settings: config.Config) -> None:
        self.geometry = base.geometry(settings)
        self.objectives, self.experts = self.geometry.objectives, settings.model.experts
        self.widths = experts.widths(settings, self.geometry.dense)
        self.width, self.knowledge = self.widths[-1], settings.model.gate_hidden
        self.scenario = parts.columns(self.geometry, settings.model.scenario_features)
        self.head = parts.Head(settings, self.width, own=False)
        self.shapes = self._shapes()

    def _shapes(self) -> base.Shapes:
        width, knowledge = self.width, self.knowledge
        found = parts.stacked("expert", self.experts, self.widths) | parts.layer("knowledge", len(self.scenario), knowledge)
        found |= {"view": (self.objectives, self.geometry.width)}
        found |= self._unit("attention", width + self.geometry.width, knowledge)
        found |= {"attention.out": (self.objectives, knowledge)}
        return found | self._unit("residual", width, width) | self.head.shapes()

    def _unit(self, name: str, inputs: int, outputs: int) -> base.Shapes:
        return parts.layer(f"{name}.weight", self.knowledge, inputs * outputs) | parts.layer(
            f"{name}.bias", self.knowledge, outputs
        )

    def initial(self, seed: int) -> torch.Tensor:
        """Fan-in normal weights, zero biases; generated weights have the size that their own fan-in gives."""
        flat = base.fan_in_normal(self.shapes, seed)
        views, generator = base.views(flat, self.shapes), torch.Generator().manual_seed(seed + 1)
        for name, inputs in (("attention", self.width + self.geometry.width), ("residual", self.width)):
            views[f"{name}.weight.weight"].mul_(inputs**-0.5)
            # A scenario that says nothing still has weights: the biases of the generator.
            drawn = torch.randn(views[f"{name}.weight.bias"].shape, generator=generator)
            views[f"{name}.weight.bias"].copy_(drawn * inputs**-0.5)
        self.head.start(views)
        return flat

    def inspect(self, parameters: base.Parameters, inputs: base.Inputs) -> dict[str, torch.Tensor]:
        """`experts`: the attention's shares (n, O, experts)."""
        return {"experts": self._attention(parameters, inputs)[0]}

    def trunk(self, parameters: base.Parameters, inputs: base.Inputs) -> base.MetaInput:
        """Everything before the tower."""
        share, mixed, knowledge = self._attention(parameters, inputs)
        taken = torch.bmm(share, mixed)
        return self.head.meta(parameters, torch.relu(_meta(parameters, "residual", knowledge, taken) + taken), inputs)

    def _attention(self, parameters: base.Parameters, inputs: base.Inputs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Shares (n, O, experts), the experts' outputs (n, experts, H1) and the scenario knowledge (n, knowledge)."""
        rows, objectives = len(inputs.x), self.objectives
        x = inputs.x[:, : self.geometry.dense]
        mixed = parts.side_by_side(parameters, "expert", x, len(self.widths) - 1).transpose(0, 1)
        knowledge = torch.relu(parts.linear(parameters, "knowledge", inputs.x[:, self.scenario]))
        views = parameters["view"].view(1, objectives, 1, -1).expand(rows, -1, self.experts, -1)
        pairs = torch.cat([mixed.unsqueeze(1).expand(-1, objectives, -1, -1), views], 3).flatten(1, 2)
        hidden = torch.relu(_meta(parameters, "attention", knowledge, pairs)).view(rows, objectives, self.experts, -1)
        return torch.softmax((hidden * parameters["attention.out"].unsqueeze(1)).sum(3), 2), mixed, knowledge


def _meta(parameters: base.Parameters, name: str, knowledge: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The meta unit: rows' vectors x (n, m, inputs) times each row's generated weight, plus its bias."""
    weight = parts.linear(parameters, f"{name}.weight", knowledge).view(len(x), x.shape[2], -1)
    return torch.baddbmm(parts.linear(parameters, f"{name}.bias", knowledge).unsqueeze(1), x, weight)
