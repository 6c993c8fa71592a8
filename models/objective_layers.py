"""What each objective has for itself of the layers before its output, beside the parameters that all share."""

from collections.abc import Mapping

import torch

from models import base
from state import config


class Own:
    """Hidden layers that each objective has for itself, as a change of the shared one that starts at nothing.

    A tower per objective, as MMoE (Ma et al. 2018, section 4), PLE and PEPNet's PPNet have it, on `model.objective_towers`; with
    one objective, or without the setting, there are none.
    """

    def __init__(self, settings: config.Config, layers: Mapping[str, tuple[int, int]]) -> None:
        """`layers` by name: inputs and outputs."""
        self.objectives = base.geometry(settings).objectives
        self.layers = dict(layers) if settings.model.objective_towers and self.objectives > 1 else {}

    def __bool__(self) -> bool:
        """Whether objectives have layers of their own."""
        return bool(self.layers)

    def shapes(self) -> base.Shapes:
        """Weights (O, in, out) and biases (O, out) of every layer."""
        found: base.Shapes = {}
        for name, (inputs, outputs) in self.layers.items():
            found[f"objective.{name}.weight"] = (self.objectives, inputs, outputs)
            found[f"objective.{name}.bias"] = (self.objectives, outputs)
        return found

    def start(self, views: dict[str, torch.Tensor]) -> None:
        """Change nothing."""
        for name in self.shapes():
            views[name].zero_()

    def change(self, parameters: base.Parameters, name: str, hidden: torch.Tensor) -> torch.Tensor:
        """What comes to the layer's output (n, O, out) before it is rectified, for its input (n, O, in)."""
        weight, bias = parameters[f"objective.{name}.weight"], parameters[f"objective.{name}.bias"]
        return torch.baddbmm(bias.unsqueeze(1), hidden.transpose(0, 1), weight).transpose(0, 1)


class Deeper:
    """Further hidden layers before the tower, as many as each objective asks for (`objectives.layers`; DUPN, D4: towers of
    different depth). They keep the width; an objective with fewer passes the rest unchanged.
    """

    def __init__(self, settings: config.Config, width: int) -> None:
        """`width` is that of the rows that enter the tower."""
        self.width = width
        self.depth = tuple(o.layers for o in settings.objectives for _ in range(o.outputs))
        self.layers = max(self.depth, default=0)

    def __bool__(self) -> bool:
        """Whether any objective has further layers."""
        return self.layers > 0

    def shapes(self) -> base.Shapes:
        """Weights (O, H, H) and biases (O x H) of every layer; those of objectives that do not reach it rest."""
        outputs, width = len(self.depth), self.width
        found: base.Shapes = {}
        for i in range(self.layers):
            found |= {f"objective.deeper{i}.weight": (outputs, width, width), f"objective.deeper{i}.bias": (outputs * width,)}
        return found

    def through(self, parameters: base.Parameters, hidden: torch.Tensor) -> torch.Tensor:
        """Rows (n, O, H) behind the layers of their objectives."""
        if not self:
            return hidden
        depth = torch.tensor(self.depth, device=hidden.device).view(-1, 1)
        for i in range(self.layers):
            bias = parameters[f"objective.deeper{i}.bias"].view(-1, 1, self.width)
            layer = torch.baddbmm(bias, hidden.transpose(0, 1), parameters[f"objective.deeper{i}.weight"]).relu().transpose(0, 1)
            hidden = torch.where(depth > i, layer, hidden)
        return hidden
