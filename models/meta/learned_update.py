"""A learned update rule, after "Efficient Learning to Learn a Robust CTR Model" (Baidu, CIKM 2021): an optimiser learned on
earlier data follows later data fast.

There, gradients on new data go through a space of few dimensions, which smooths what few examples say. Here both sides of the
gradient G of a weight matrix do: the step is inner_rate x (I + P P°')' G (I + Q Q°') with P, P° of `meta.rank` columns for the
inputs and Q, Q° for the hidden layer (as in Meta-Curvature, Park and Oliva 2019). One of each pair starts at zero, so the rule
starts as gradient descent; a rule of this form keeps the low rank of the change.
"""

from collections.abc import Mapping

import torch

from models import base
from models.meta import adapters, low_rank


def adapter(given: adapters.Given) -> adapters.Adapter:
    """Steps by the learned rule."""
    settings, (inputs, width, outputs), rank = given.settings, given.tower, given.settings.rank
    shapes: base.Shapes = {
        "meta.update.in": (inputs, rank), "meta.update.in_back": (rank, inputs),
        "meta.update.out": (width, rank), "meta.update.out_back": (rank, width), "meta.update.biases": (outputs,),
    }  # fmt: skip

    def start(views: Mapping[str, torch.Tensor], generator: torch.Generator) -> None:
        for name in ("meta.update.in", "meta.update.out"):
            view = views[name]
            view.copy_(torch.randn(view.shape, generator=generator) / max(len(view), 1) ** 0.5)

    def adapt(fast: base.Parameters, tasks: adapters.Tasks) -> low_rank.Change:
        rate = settings.inner_rate

        def through(side: str, g: torch.Tensor) -> torch.Tensor:
            return g + (g @ fast[f"meta.update.{side}"]) @ fast[f"meta.update.{side}_back"]

        rule = low_rank.Rule(
            lambda h: through("in", h), lambda e: rate * through("out", e), lambda g: rate * through("out", g),
            lambda g: rate * through("out", g), lambda g: g * (rate * (1 + fast["meta.update.biases"])),
        )  # fmt: skip
        return low_rank.adapt(fast, tasks, rule, settings.inner_steps, given.keep, given.plan)

    return adapters.Adapter(shapes, start, adapt, low_rank.logits)
