"""AdaSparse (Yang et al. 2022): after every hidden layer a pruner leaves out the neurons that a scenario does not need.

The points are the parts of the paper, by name, each with its equation.

* Domain-aware pruner, h x pi(z): factors of a layer's neurons from z = [what tells the scenario apart; the layer] P + p. Of the
  paper's three forms (binarisation, scaling, fusion) the last: gamma x sigmoid(z), and zero below `model.prune_below`, so that
  what remains is scaled as well.
* Sparsity control: the paper pulls the pruned share between r_min and r_max by a regulariser. Here the share is kept there
  outright: of a row's layer, at least `model.prune_least` and at most `model.prune_most` are left out, those with the smallest
  factors. No term of the loss is needed, and no row is pruned beyond the bound on the average of a batch. The paper's growing
  sharpness is left out: a model that never stops learning has no end of training to sharpen towards.
"""

import torch

from models import base, parts
from state import config


class AdaSparse(parts.Network):
    """The network as pure functions of its parameters."""

    def __init__(self, settings: config.Config) -> None:
        self.geometry, self.model = base.geometry(settings), settings.model
        self.objectives = self.geometry.objectives
        self.scenario = parts.columns(self.geometry, self.model.scenario_features)
        self.widths = (self.geometry.dense, *self.model.hidden)
        self.head = parts.Head(settings, self.widths[-2], own=False)
        self.shapes = self._shapes()

    def _shapes(self) -> base.Shapes:
        found = parts.layers("hidden", self.widths[:-1])
        for i, width in enumerate(self.model.hidden):
            found |= parts.layer(f"pruner{i}", len(self.scenario) + width, width)
        return found | self.head.shapes()

    def initial(self, seed: int) -> torch.Tensor:
        """Fan-in normal weights, zero biases."""
        flat = base.fan_in_normal(self.shapes, seed)
        self.head.start(base.views(flat, self.shapes))
        return flat

    def inspect(self, parameters: base.Parameters, inputs: base.Inputs) -> dict[str, torch.Tensor]:
        """`pruner0`, ...: factors of each layer's neurons (n, width), zero where one is left out."""
        return {f"pruner{i}": factor for i, (_, factor) in enumerate(self._layers(parameters, inputs))}

    def trunk(self, parameters: base.Parameters, inputs: base.Inputs) -> base.MetaInput:
        """Everything before the tower, whose own pruner is its gate."""
        layers = [*self._layers(parameters, inputs)]
        hidden = layers[-2][0] if len(layers) > 1 else inputs.x[:, : self.geometry.dense]
        meta = self.head.meta(parameters, hidden.unsqueeze(1).expand(-1, self.objectives, -1), inputs)
        return meta._replace(gate=layers[-1][1].unsqueeze(1).expand(-1, self.objectives, -1))

    def _layers(self, parameters: base.Parameters, inputs: base.Inputs) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Of each layer, the tower's last: its pruned output and its factors (n, width)."""
        found, hidden, seen = [], inputs.x[:, : self.geometry.dense], inputs.x[:, self.scenario]
        names = [f"hidden{i}" for i in range(len(self.model.hidden) - 1)]
        for i, name in enumerate([*names, "tower"]):
            z = torch.relu(parts.linear(parameters, name, hidden))
            factor = self._pruned(parts.linear(parameters, f"pruner{i}", torch.cat([seen, z], 1)))
            hidden = z * factor
            found.append((hidden, factor))
        return found

    def _pruned(self, logit: torch.Tensor) -> torch.Tensor:
        """Factors (n, width) with the smallest set to zero."""
        factor, width = self.model.gamma * torch.sigmoid(logit), logit.shape[1]
        with torch.no_grad():
            ordered = factor.sort(1).values
            # All below a bound are left out, so the neuron at place k of the order bounds k of them.
            least, most = (
                ordered[:, [min(int(share * width), width - 1)]] for share in (self.model.prune_least, self.model.prune_most)
            )
            bound = torch.full_like(least, self.model.prune_below).clamp(least, most)
        return factor * (factor >= bound)
