"""Shared bottom (Caruana 1997): one network reads every scenario's rows; each scenario and objective may end in its own tower.

The form is the multitask net of that paper, one hidden representation under an output for each task: y_k = tower_k(bottom(x)).
"""

import torch

from models import base, parts
from state import config


class SharedBottom(parts.Network):
    """The network as pure functions of its parameters. `model.own_towers` decides whether scenarios have towers of their own."""

    def __init__(self, settings: config.Config) -> None:
        self.geometry = base.geometry(settings)
        self.objectives = self.geometry.objectives
        widths = (self.geometry.dense, *settings.model.hidden[:-1])
        self.depth = len(widths) - 1
        self.head = parts.Head(settings, widths[-1], own=settings.model.own_towers)
        self.shapes = parts.layers("bottom", widths) | self.head.shapes()

    def initial(self, seed: int) -> torch.Tensor:
        """Fan-in normal weights, zero biases, own parameters that change nothing."""
        flat = base.fan_in_normal(self.shapes, seed)
        self.head.start(base.views(flat, self.shapes))
        return flat

    def inspect(self, parameters: base.Parameters, inputs: base.Inputs) -> dict[str, torch.Tensor]:  # noqa: ARG002 - no gates
        """Nothing."""
        return {}

    def trunk(self, parameters: base.Parameters, inputs: base.Inputs) -> base.MetaInput:
        """Everything before the tower."""
        hidden = parts.rectified(parameters, "bottom", inputs.x[:, : self.geometry.dense], self.depth)
        return self.head.meta(parameters, hidden.unsqueeze(1).expand(-1, self.objectives, -1), inputs)
