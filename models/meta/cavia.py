"""CAVIA (Zintgraf et al. 2019): a short context vector per task; learned maps make it FiLM of the hidden layer and biases."""

from collections.abc import Mapping

import torch

from models import base
from models.meta import adapters, context


def adapter(given: adapters.Given) -> adapters.Adapter:
    """Gradient descent on the vector of `meta.context` numbers c.

    With c M the FiLM, a step of c by g M' moves the FiLM by g M'M: the vector itself is never needed.
    """
    settings, (_, width, outputs) = given.settings, given.tower

    def start(views: Mapping[str, torch.Tensor], generator: torch.Generator) -> None:
        # Unit variance over the vector makes M'M the identity on average: at first as far a step as FiLM's own.
        maps = views["meta.context"]
        maps.copy_(torch.randn(maps.shape, generator=generator) / len(maps) ** 0.5)

    def adapt(fast: base.Parameters, tasks: adapters.Tasks) -> torch.Tensor:
        maps = fast["meta.context"]
        return context.adapt(
            fast, tasks, lambda g: settings.inner_rate * (g @ maps.T) @ maps, settings.inner_steps, given.keep, given.plan
        )  # fmt: skip

    return adapters.Adapter({"meta.context": (settings.context, 2 * width + outputs)}, start, adapt, context.logits)
