"""A factorisation machine (Rendle 2010, equation 1): first-order weights and inner products of all pairs of ids and numbers.

It is the wide part of kind "fm" (`models.wide`) by itself, whatever `model.wide` says, and a bias per objective. Objectives share
the factors and differ in how much the sum and the products count. There is no tower, so adaptation moves the bias alone.
"""

import torch

from models import base, parts, wide
from state import config


class FactorisationMachine(parts.Network):
    """The machine as pure functions of its parameters."""

    def __init__(self, settings: config.Config) -> None:
        self.geometry = base.geometry(settings)
        self.objectives = self.geometry.objectives
        self.wide = wide.plan(settings)._replace(kind=wide.FM, numbers=len(self.geometry.numbers))
        self.shapes = wide.shapes(self.wide) | {"output.bias": (self.objectives,)}

    def initial(self, seed: int) -> torch.Tensor:
        """Scales of one, vectors of numbers near zero."""
        flat = base.fan_in_normal(self.shapes, seed)
        wide.start(base.views(flat, self.shapes))
        return flat

    def fast_parameters(self) -> tuple[str, ...]:
        """The bias."""
        return ("output.bias",)

    def tower(self, fast: base.Parameters, meta: base.MetaInput) -> torch.Tensor:
        """Logits (n, O)."""
        return fast["output.bias"] + meta.offset

    def trunk(self, parameters: base.Parameters, inputs: base.Inputs) -> base.MetaInput:
        """All of the logit but the bias; nothing enters a hidden layer."""
        return base.without_hidden(wide.logits(parameters, inputs.x, self.wide))
