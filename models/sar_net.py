"""SAR-Net (Shen et al. 2021): inputs attended to and transformed by scenario, then shared and own debias experts.

The points are the parts of the paper, by name, each with its equation.

* Cross-scenario attention, a softmax over behaviour times its embedding, weighs behaviour by scenario in the paper. Here a row
  is a point, so the fields are weighed: softmax over categories of <query; the field's embedding> + what the scenario thinks of
  the field as such, times their number, so that equal attention is a factor of one. Query and opinion are a layer over what
  tells the scenario apart.
* Scenario-specific transform, the equation of the linear map by element: x x scale + shift, both the scenario's own; they start
  at one and zero.
* Mixture of debias experts, sum_k gate_k expert_k: experts that all scenarios share and experts of the scenario, mixed by a
  gate per objective. The scenario's experts start as shared ones of their own and become the scenario's as its rows earn it.
  The paper's fairness coefficients are the weights of the rows' losses, which every model here takes.
"""

import torch

from models import base, experts, parts
from state import config


class SarNet(parts.Network):
    """The network as pure functions of its parameters."""

    def __init__(self, settings: config.Config) -> None:
        self.geometry = base.geometry(settings)
        self.objectives = self.geometry.objectives
        self.widths = experts.widths(settings, self.geometry.dense)
        self.scenario = parts.columns(self.geometry, settings.model.scenario_features)
        self.shared, self.own = settings.model.experts, settings.model.own_experts
        self.head = parts.Head(settings, self.widths[-1], own=settings.model.own_towers)
        self.shapes = self._shapes()

    def _shapes(self) -> base.Shapes:
        inputs, slots = self.geometry.dense, self.head.slots
        found = parts.layer("attention", len(self.scenario), self.geometry.width + len(self.geometry.categories))
        found |= {"own.transform.scale": (slots, inputs), "own.transform.shift": (slots, inputs)}
        found |= parts.stacked("expert", self.shared + self.own, self.widths)
        found |= parts.stacked("own.expert", slots * self.own, self.widths)
        found |= parts.layer("gate", len(self.scenario) + inputs, self.objectives * (self.shared + self.own))
        return found | self.head.shapes()

    def initial(self, seed: int) -> torch.Tensor:
        """Fan-in normal weights, zero biases, own parameters that change nothing."""
        flat = base.fan_in_normal(self.shapes, seed)
        self.head.start(base.views(flat, self.shapes))
        return flat

    def inspect(self, parameters: base.Parameters, inputs: base.Inputs) -> dict[str, torch.Tensor]:
        """`attention`: factors of the categories (n, C); `experts`: shares (n, O, shared then own experts)."""
        return {"attention": self._attention(parameters, inputs), "experts": self._gate(parameters, inputs)}

    def trunk(self, parameters: base.Parameters, inputs: base.Inputs) -> base.MetaInput:
        """Everything before the tower."""
        rows, g = len(inputs.x), self.geometry
        earned, slot = inputs.earned.unsqueeze(1), inputs.slot
        attended = self._attention(parameters, inputs).unsqueeze(2) * inputs.x[:, : g.embedded].view(rows, -1, g.width)
        x = torch.cat([attended.view(rows, -1), inputs.x[:, g.embedded : g.dense]], 1)
        scale, shift = (parts.looked_up(parameters[f"own.transform.{name}"], slot) for name in ("scale", "shift"))
        x = x * (1 + earned * scale) + earned * shift
        mixed = torch.einsum("noe,enh->noh", self._gate(parameters, inputs), self._experts(parameters, x, inputs))
        return self.head.meta(parameters, mixed, inputs)

    def _attention(self, parameters: base.Parameters, inputs: base.Inputs) -> torch.Tensor:
        g = self.geometry
        seen = parts.linear(parameters, "attention", inputs.x[:, self.scenario])
        query, opinion = seen[:, : g.width], seen[:, g.width :]
        fields = inputs.x[:, : g.embedded].view(-1, len(g.categories), g.width)
        return len(g.categories) * torch.softmax(torch.bmm(fields, query.unsqueeze(2)).squeeze(2) + opinion, 1)

    def _gate(self, parameters: base.Parameters, inputs: base.Inputs) -> torch.Tensor:
        seen = torch.cat([inputs.x[:, self.scenario], inputs.x[:, : self.geometry.dense]], 1)
        logit = parts.linear(parameters, "gate", seen).view(len(seen), self.objectives, -1)
        return torch.softmax(logit, 2)

    def _experts(self, parameters: base.Parameters, x: torch.Tensor, inputs: base.Inputs) -> torch.Tensor:
        """(experts, n, H1), shared then own."""
        rows = len(x)
        which = torch.arange(self.own).unsqueeze(1)
        slot, earned = (inputs.slot * self.own + which).view(-1), inputs.earned.repeat(self.own).unsqueeze(1)
        hidden = x.expand(self.shared + self.own, -1, -1)
        for i in range(len(self.widths) - 1):
            weight = parameters[f"expert{i}.weight"]
            z = torch.baddbmm(parameters[f"expert{i}.bias"].view(len(weight), 1, -1), hidden, weight)
            entry = hidden[self.shared :].reshape(self.own * rows, -1)
            change = parts.own_layer(parameters, f"own.expert{i}", entry, slot, earned).view(self.own, rows, -1)
            hidden = torch.relu(torch.cat([z[: self.shared], z[self.shared :] + change]))
        return hidden
