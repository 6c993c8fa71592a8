"""PLE, progressive layered extraction (Tang et al. 2020, sections 4.2 and 4.3), with tasks that are a scenario and an objective.

A level has groups of experts: shared ones, those of each objective, and those of each row's own scenario. Every group ends a
level as a softmax mixture and starts the next one from it: an objective mixes its own experts, the shared and the scenario's;
the scenario mixes its own and the shared; the shared group mixes all. Only the objectives' mixtures leave the last level.
"""

import torch

from models import base, experts, parts
from state import config


class PLE(parts.Network):
    """The network as pure functions of its parameters; `model.levels` levels of `model.experts` shared, `own_experts` other."""

    def __init__(self, settings: config.Config) -> None:
        model, self.geometry = settings.model, base.geometry(settings)
        self.objectives, self.levels = self.geometry.objectives, model.levels
        self.shared, self.each = model.experts, model.own_experts
        widths = experts.widths(settings, self.geometry.dense)
        self.depth = len(widths) - 1
        self.head = parts.Head(settings, widths[-1], own=model.own_towers)
        self.shapes: base.Shapes = {}
        for level in range(self.levels):
            last, sizes = level == self.levels - 1, widths if level == 0 else (widths[-1], *widths[1:])
            self.shapes |= self._level_shapes(level, sizes, last)
        self.shapes |= self.head.shapes()

    def _level_shapes(self, level: int, sizes: tuple[int, ...], last: bool) -> base.Shapes:
        slots, per_objective = self.head.slots, self.shared + 2 * self.each
        found = parts.stacked(f"shared{level}.", self.shared, sizes)
        found |= parts.stacked(f"objective{level}.", self.objectives * self.each, sizes)
        found |= experts.own_shapes(f"scenario.own.{level}", slots, self.each, sizes)
        found[f"gate{level}.weight"] = (self.objectives, sizes[0], per_objective)
        found[f"gate{level}.bias"] = (self.objectives * per_objective,)
        found[f"own.gate{level}.weight"] = (slots * self.objectives, sizes[0], per_objective)
        found[f"own.gate{level}.bias"] = (slots, self.objectives, per_objective)
        if not last:
            found |= parts.layer(f"gate{level}.shared", sizes[0], self.shared + (self.objectives + 1) * self.each)
            found |= experts.gate_shapes(f"gate{level}.scenario", slots, sizes[0], self.shared + self.each)
        return found

    def initial(self, seed: int) -> torch.Tensor:
        """Fan-in normal weights, zero biases, own parameters that change nothing; own experts are drawn like all others."""
        flat = base.fan_in_normal(self.shapes, seed)
        self.head.start(base.views(flat, self.shapes))
        return flat

    def inspect(self, parameters: base.Parameters, inputs: base.Inputs) -> dict[str, torch.Tensor]:
        """`gate0`, ...: shares (n, O, shared + objective's + scenario's experts) at each level."""
        return {f"gate{i}": shares for i, shares in enumerate(self._extract(parameters, inputs)[1])}

    def trunk(self, parameters: base.Parameters, inputs: base.Inputs) -> base.MetaInput:
        """The objectives' mixtures of the last level, and what scenarios own of the tower."""
        return self.head.meta(parameters, self._extract(parameters, inputs)[0], inputs)

    def _extract(self, parameters: base.Parameters, inputs: base.Inputs) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Mixtures (n, O, H) of the last level, and the shares (n, O, .) of every level."""
        x = inputs.x[:, : self.geometry.dense]
        shared, scenario, objective, gates = x, x, x.expand(self.objectives, -1, -1), []
        for level in range(self.levels):
            of_all = parts.side_by_side(parameters, f"shared{level}.", shared, self.depth).transpose(0, 1)
            of_scenario = experts.own(parameters, f"scenario.own.{level}", scenario, inputs.slot, self.each, self.depth)
            repeated = objective.repeat_interleave(self.each, 0)
            of_each = parts.side_by_side(parameters, f"objective{level}.", repeated, self.depth).transpose(0, 1)
            shares = self._shares(parameters, level, objective, inputs)
            gates.append(shares)
            if level < self.levels - 1:
                logits = parts.linear(parameters, f"gate{level}.shared", shared)
                mixed = torch.softmax(experts.odds(logits, self.each, inputs), -1).unsqueeze(1)
                shared = torch.bmm(mixed, torch.cat([of_all, of_each, of_scenario], 1)).squeeze(1)
                logits = experts.gate(parameters, f"gate{level}.scenario", scenario, inputs)
                mixed = torch.softmax(experts.odds(logits, self.each, inputs), -1).unsqueeze(1)
                scenario = torch.bmm(mixed, torch.cat([of_all, of_scenario], 1)).squeeze(1)
            common, own, brought = torch.split(shares, [self.shared, self.each, self.each], -1)
            hidden = torch.bmm(common, of_all) + torch.bmm(brought, of_scenario)
            hidden = hidden + torch.einsum("nok,nokh->noh", own, of_each.view(len(x), self.objectives, self.each, -1))
            objective = hidden.transpose(0, 1)
        return hidden, gates

    def _shares(self, parameters: base.Parameters, level: int, x: torch.Tensor, inputs: base.Inputs) -> torch.Tensor:
        """Shares (n, O, .) of an objective's gate, as the scenario has changed it; x (O, n, inputs)."""
        name, objectives = f"gate{level}", self.objectives
        logits = torch.baddbmm(parameters[f"{name}.bias"].view(objectives, 1, -1), x, parameters[f"{name}.weight"])
        each = (inputs.slot.unsqueeze(1) * objectives + torch.arange(objectives)).view(-1)
        weight, share = parameters[f"own.{name}.weight"], inputs.earned.unsqueeze(1).expand(-1, objectives).reshape(-1)
        bias = parameters[f"own.{name}.bias"].view(len(weight), -1)
        change = parts.slot_layer(x.transpose(0, 1).reshape(len(each), -1), weight, bias, each, share)
        logits = logits.transpose(0, 1) + change.view(-1, objectives, logits.shape[-1])
        return torch.softmax(experts.odds(logits, self.each, inputs), -1)
