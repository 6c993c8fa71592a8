"""Logistic regression over ids and numbers (McMahan et al. 2013, section 2): the floor that a network has to beat.

A logit is the sum of the weights of the row's ids, of its numbers times their weights, and a bias. An id has one weight for each
objective: its first-order weight, then, for further objectives, the first numbers of its embedding row. There is no tower, so
adaptation moves the bias alone.
"""

import torch

from models import base, parts
from state import config


class LogisticRegression(parts.Network):
    """The regression as pure functions of its parameters."""

    def __init__(self, settings: config.Config) -> None:
        """Raises ConfigError: an embedding row is too short for the objectives."""
        self.geometry = base.geometry(settings)
        self.objectives = self.geometry.objectives
        if self.objectives - 1 > self.geometry.width:
            raise config.ConfigError(
                f"model.embedding_width: {self.geometry.width} is too few for {self.objectives} objectives of lr; "
                f"allowed: {self.objectives - 1} or more"
            )
        self.shapes: base.Shapes = {
            "numbers.weight": (len(self.geometry.numbers), self.objectives),
            "output.bias": (self.objectives,),
        }

    def initial(self, seed: int) -> torch.Tensor:
        """Weights of numbers near zero."""
        return base.fan_in_normal(self.shapes, seed) * 0.01

    def fast_parameters(self) -> tuple[str, ...]:
        """The bias."""
        return ("output.bias",)

    def tower(self, fast: base.Parameters, meta: base.MetaInput) -> torch.Tensor:
        """Logits (n, O)."""
        return fast["output.bias"] + meta.offset

    def trunk(self, parameters: base.Parameters, inputs: base.Inputs) -> base.MetaInput:
        """All of the logit but the bias; nothing enters a hidden layer."""
        g = self.geometry
        first = inputs.x[:, inputs.x.shape[1] - len(g.categories) :].sum(1, keepdim=True)
        further = inputs.x[:, : g.embedded].view(len(first), len(g.categories), g.width)[..., : self.objectives - 1].sum(1)
        numbers = inputs.x[:, g.embedded : g.dense] @ parameters["numbers.weight"]
        return base.without_hidden(torch.cat([first, further], 1) + numbers)
