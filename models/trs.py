"""Tencent's cross-domain model (TRS, second part of the talk): shared experts and the scenario's own, fused by a gate of its own.

Features that scenarios have in common are categories that all of them fill, and share an embedding space; a scenario's own
features are categories that only it fills, and are absent, so zero, elsewhere. Every row passes the shared experts, which read
`model.common_features`, and its scenario's own expert, which reads everything: one network, with `model.own_experts` above 1 a
group with a gate of its own (an MMoE), or with `model.own_gates` a PEPNet (`models.own_pepnet`). The fusing gate is a
scenario's and objective's. Its own share has prior odds of what the scenario has earned; what is left to the shared experts is
scaled by 1 + `own.open`, zero for a scenario that was migrated from a model of its own (`models.migration`), which so predicts
as before and opens itself as far as that pays. On top stands a tower per objective, with `model.star_tower` one that scenarios
scale. A scenario also has scales of its own for the wide part.
"""

import torch

from models import base, experts, own_pepnet, parts
from state import config


class TRS(parts.Network):
    """The network as pure functions of its parameters."""

    def __init__(self, settings: config.Config) -> None:
        model, self.geometry = settings.model, base.geometry(settings)
        self.objectives, self.shared, self.group = self.geometry.objectives, model.experts, model.own_experts
        everything = (*self.geometry.categories, *self.geometry.numbers)
        for name in model.common_features:
            if name not in everything:
                raise config.ConfigError(f'model.common_features: "{name}" is no feature; allowed: {", ".join(everything)}')
        self.common = parts.columns(self.geometry, model.common_features or everything)
        own, shared = (experts.widths(settings, n) for n in (self.geometry.dense, len(self.common)))
        self.depth = len(own) - 1
        self.head = parts.Head(settings, own[-1], own=model.own_towers or model.star_tower, star=model.star_tower, scaled=True)
        slots = self.head.slots
        self.gated = own_pepnet.Expert(settings, slots, own) if model.own_gates else None
        mine = self.gated.shapes() if self.gated else experts.own_shapes("expert.own", slots, self.group, own)
        self.shapes = parts.stacked("expert", self.shared, shared) | mine
        if self.group > 1:
            self.shapes |= experts.own_shapes("inner.own", slots, 1, (own[0], self.objectives * self.group))
        self.shapes |= experts.gate_shapes("gate", slots, own[0], self.objectives * (self.shared + 1))
        self.shapes["own.open"] = (slots, self.objectives)
        self.shapes |= self.head.shapes()

    def initial(self, seed: int) -> torch.Tensor:
        """Fan-in normal weights, zero biases, own parameters that change nothing; own experts are drawn like all others."""
        flat = base.fan_in_normal(self.shapes, seed)
        self.head.start(base.views(flat, self.shapes))
        return flat

    def inspect(self, parameters: base.Parameters, inputs: base.Inputs) -> dict[str, torch.Tensor]:
        """`gate`: shares (n, O, shared experts + 1), the scenario's own expert last; with own gates those as well."""
        found = self.gated.factors(parameters, inputs) if self.gated else {}
        return {"gate": self._shares(parameters, inputs)} | found

    def trunk(self, parameters: base.Parameters, inputs: base.Inputs) -> base.MetaInput:
        """Shared and own experts, fused, and what scenarios own of the tower."""
        shared = parts.side_by_side(parameters, "expert", inputs.x[:, self.common], self.depth).transpose(0, 1)
        shares = self._shares(parameters, inputs)
        share = shares[..., -1:]
        if not self.gated:
            hidden = torch.bmm(shares[..., :-1], shared) + share * self._own(parameters, inputs)
            return self.head.meta(parameters, hidden, inputs)
        own, gate = self.gated.forward(parameters, inputs)
        meta = self.head.meta(parameters, torch.bmm(shares[..., :-1], shared) + share * own, inputs)
        return meta._replace(gate=meta.gate * (1 + share * (gate - 1)))

    def _own(self, parameters: base.Parameters, inputs: base.Inputs) -> torch.Tensor:
        """Output (n, O or 1, H) of the own expert of each row's scenario."""
        x = inputs.x[:, : self.geometry.dense]
        found = experts.own(parameters, "expert.own", x, inputs.slot, self.group, self.depth)
        if self.group == 1:
            return found
        weight, every = parameters["inner.own.0.weight"], torch.ones_like(inputs.earned)
        logits = parts.slot_layer(x, weight, parameters["inner.own.0.bias"].view(self.head.slots, -1), inputs.slot, every)
        return torch.bmm(torch.softmax(logits.view(-1, self.objectives, self.group), -1), found)

    def _shares(self, parameters: base.Parameters, inputs: base.Inputs) -> torch.Tensor:
        """Shares (n, O, shared experts + 1), which sum to one."""
        logits = experts.gate(parameters, "gate", inputs.x[:, : self.geometry.dense], inputs)
        shares = torch.softmax(experts.odds(logits.view(-1, self.objectives, self.shared + 1), 1, inputs), -1)
        opened = 1 + inputs.earned.view(-1, 1, 1) * parts.looked_up(parameters["own.open"], inputs.slot).unsqueeze(-1)
        return torch.cat([opened * shares[..., :-1], 1 - opened * (1 - shares[..., -1:])], -1)
