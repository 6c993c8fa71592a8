"""One bias per task and output: the least that an adaptation can be, and what every other must beat."""

import torch

from models import adaptation, base, losses
from models.meta import adapters


def adapter(given: adapters.Given) -> adapters.Adapter:
    """Gradient descent on the bias alone, with its second order."""
    settings = given.settings

    def adapt(fast: base.Parameters, tasks: adapters.Tasks) -> torch.Tensor:
        plain = base.tower(adaptation.with_tower(fast), tasks.support)
        wanted = losses.task_targets(given.plan, tasks.label, tasks.weight)
        bias = plain.new_zeros(len(plain), plain.shape[-1])
        for _ in range(settings.inner_steps):
            slope = losses.slope(given.plan, wanted, (plain + bias.unsqueeze(1)).flatten(0, 1)).view_as(plain)
            bias = bias * given.keep - settings.inner_rate * slope.sum(1)
        return bias

    return adapters.Adapter({}, adapters.without_parameters, adapt, logits)


def logits(fast: base.Parameters, bias: torch.Tensor, query: base.MetaInput) -> torch.Tensor:
    """Logits (T, Q, O) of padded queries (T, Q, O, .) under biases (T, O)."""
    return base.tower(adaptation.with_tower(fast), query) + bias.unsqueeze(1)
