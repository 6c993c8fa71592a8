"""A whole PEPNet for each scenario, as its own expert in a cross-domain model (TRS, C2: an expert may be any module).

The equations are those of `models.pepnet`, by weights of each row's slot: EPNet's gate on the embeddings, PPNet's gate behind
every hidden layer and behind the tower, which all scenarios share as far as they have no columns of their own in it. The expert
brings its gate of the tower as it brings its hidden layer: in proportion to its share, 1 + share (gate - 1).
"""

import torch

from models import base, experts, parts, pepnet
from state import config


class Expert:
    """The expert of every slot; `sizes` are its widths from the inputs on, the tower's comes after them."""

    def __init__(self, settings: config.Config, slots: int, sizes: tuple[int, ...]) -> None:
        """Raises config.ConfigError for a group of own experts, which have one set of gates."""
        model = settings.model
        if model.own_experts > 1:
            raise config.ConfigError(
                f"model.own_experts: is {model.own_experts}, must be 1 with model.own_gates: gates belong to one network"
            )
        self.model, self.geometry, self.slots = model, base.geometry(settings), slots
        self.objectives, self.sizes, self.gated = self.geometry.objectives, sizes, (*sizes[1:], model.hidden[-1])
        self.scenario = pepnet.spans(self.geometry, model.scenario_features)
        self.personal = pepnet.spans(self.geometry, model.personal_features)

    def shapes(self) -> base.Shapes:
        """Hidden layers, EPNet's and PPNet's, slot by slot and within one objective by objective."""
        slots, g, inner = self.slots, self.geometry, self.model.gate_hidden
        personal = g.dense + len(self.personal) * g.width
        found = experts.own_shapes("expert.own", slots, 1, self.sizes)
        found |= _layer("epnet.in.own", slots, g.dense, inner) | _layer("epnet.out.own", slots, inner, g.embedded)
        found |= _layer("ppnet.in.own", slots, personal, len(self.gated) * self.objectives * inner)
        for i, width in enumerate(self.gated):
            found |= _layer(f"ppnet.out{i}.own", slots * self.objectives, inner, width)
        return found

    def forward(self, parameters: base.Parameters, inputs: base.Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        """The last hidden layer (n, O, H) behind its gate, and the tower's gate (n, O, width of the tower)."""
        entry = self._entry(parameters, inputs)
        gates = self.gates(parameters, inputs, entry)
        slot = inputs.slot
        hidden = self._layer(parameters, "expert.own.0", entry, slot).relu().unsqueeze(1) * gates[0]
        for i in range(1, len(self.sizes) - 1):
            rows = self._layer(parameters, f"expert.own.{i}", hidden.flatten(0, 1), slot.repeat_interleave(self.objectives))
            hidden = rows.relu().view(len(slot), self.objectives, -1) * gates[i]
        return hidden, gates[-1]

    def factors(self, parameters: base.Parameters, inputs: base.Inputs) -> dict[str, torch.Tensor]:
        """What the gates say, as `models.pepnet.PEPNet.inspect` has it: `epnet` (n, C), `ppnet0`, ...: (n, O, width)."""
        g = self.geometry
        gate = self._embedding_gate(parameters, inputs)
        found = {f"ppnet{i}": each for i, each in enumerate(self.gates(parameters, inputs, self._entry(parameters, inputs)))}
        return {"epnet": gate.view(len(gate), len(g.categories), g.width).mean(2)} | found

    def gates(self, parameters: base.Parameters, inputs: base.Inputs, entry: torch.Tensor) -> list[torch.Tensor]:
        """PPNet's (n, O, width) of every hidden layer and the tower, for EPNet's output."""
        seen = torch.cat([entry.detach() if self.model.stop_gradient else entry, *(inputs.x[:, s] for s in self.personal)], 1)
        within = self._layer(parameters, "ppnet.in.own", seen, inputs.slot).relu()
        within = within.view(len(seen), len(self.gated), self.objectives, -1)
        each = (inputs.slot.unsqueeze(1) * self.objectives + torch.arange(self.objectives, device=seen.device)).flatten()
        found = []
        for i, width in enumerate(self.gated):
            logit = self._layer(parameters, f"ppnet.out{i}.own", within[:, i].flatten(0, 1), each)
            found.append(self.model.gamma * torch.sigmoid(logit).view(len(seen), self.objectives, width))
        return found

    def _entry(self, parameters: base.Parameters, inputs: base.Inputs) -> torch.Tensor:
        """EPNet's output (n, dense)."""
        g = self.geometry
        gated = inputs.x[:, : g.embedded] * self._embedding_gate(parameters, inputs)
        return torch.cat([gated, inputs.x[:, g.embedded : g.dense]], 1)

    def _embedding_gate(self, parameters: base.Parameters, inputs: base.Inputs) -> torch.Tensor:
        """(n, C x E)"""
        g = self.geometry
        embedded, numbers = inputs.x[:, : g.embedded], inputs.x[:, g.embedded : g.dense]
        kept = pepnet.without_gradient(embedded, self.scenario) if self.model.stop_gradient else embedded
        hidden = self._layer(parameters, "epnet.in.own", torch.cat([kept, numbers], 1), inputs.slot).relu()
        return self.model.gamma * torch.sigmoid(self._layer(parameters, "epnet.out.own", hidden, inputs.slot))

    @staticmethod
    def _layer(parameters: base.Parameters, name: str, x: torch.Tensor, slot: torch.Tensor) -> torch.Tensor:
        weight = parameters[f"{name}.weight"]
        return parts.slot_layer(x, weight, parameters[f"{name}.bias"].view(len(weight), -1), slot, x.new_ones(len(x)))


def _layer(name: str, stack: int, inputs: int, outputs: int) -> base.Shapes:
    return {f"{name}.weight": (stack, inputs, outputs), f"{name}.bias": (stack * outputs,)}
