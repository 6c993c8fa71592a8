"""MMoE, multi-gate mixture of experts (Ma et al. 2018, section 4): experts that all rows share, mixed anew by each gate.

f(x) = sum_k softmax(G x)_k expert_k(x), with a gate G for every scenario and objective and a tower on top. A scenario's gate is
the shared gate of the objective plus a change of its own (`models.experts`), so an unseen scenario is mixed as all are.
"""

import torch

from models import base, experts, mmoe_torch, parts, side_by_side
from state import config


class MMoE(parts.Network):
    """The network as pure functions of its parameters; `model.experts` experts of `model.expert_hidden`."""

    def __init__(self, settings: config.Config) -> None:
        self.geometry = base.geometry(settings)
        self.objectives, self.experts = self.geometry.objectives, settings.model.experts
        widths = experts.widths(settings, self.geometry.dense)
        self.depth = len(widths) - 1
        self.head = parts.Head(settings, widths[-1], own=settings.model.own_towers)
        self.shapes = parts.stacked("expert", self.experts, widths)
        self.shapes |= experts.gate_shapes("gate", self.head.slots, self.geometry.dense, self.objectives * self.experts)
        self.shapes |= self.head.shapes()

    def initial(self, seed: int) -> torch.Tensor:
        """Fan-in normal weights, zero biases, own parameters that change nothing."""
        flat = base.fan_in_normal(self.shapes, seed)
        self.head.start(base.views(flat, self.shapes))
        return flat

    def inspect(self, parameters: base.Parameters, inputs: base.Inputs) -> dict[str, torch.Tensor]:
        """`gate`: each expert's share (n, O, K)."""
        return {"gate": self._shares(parameters, inputs.x[:, : self.geometry.dense], inputs)}

    def trunk(self, parameters: base.Parameters, inputs: base.Inputs) -> base.MetaInput:
        """The experts, each objective's mixture of them, and what scenarios own of the tower."""
        x = inputs.x[:, : self.geometry.dense].contiguous()
        found = parts.side_by_side(parameters, "expert", x, self.depth)
        return self.head.meta(parameters, side_by_side.mixture(self._shares(parameters, x, inputs), found), inputs)

    def written(self, parameters: base.Parameters, gradient: base.Parameters) -> base.Written | None:
        """The trunk without autograd, where native kernels may replace torch's threads and objectives share their tower."""
        if not self.head.plain or not side_by_side.usable(*parameters.values()):
            return None
        return mmoe_torch.Trunk(self.geometry, self.head.wide, self.depth, parameters, gradient)

    def _shares(self, parameters: base.Parameters, x: torch.Tensor, inputs: base.Inputs) -> torch.Tensor:
        logits = experts.gate(parameters, "gate", x, inputs)
        return torch.softmax(logits.view(-1, self.objectives, self.experts), -1)
