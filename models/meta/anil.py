"""ANIL (Raghu et al. 2020): only the output layer is adapted, so the features of the support rows are computed once."""

import torch

from models import adaptation, base, losses
from models.meta import adapters, low_rank


def adapter(given: adapters.Given) -> adapters.Adapter:
    """Gradient descent on output weights and biases, with its second order."""
    settings = given.settings

    def adapt(fast: base.Parameters, tasks: adapters.Tasks) -> low_rank.Change:
        fast, support = adaptation.with_tower(fast), tasks.support
        active = torch.relu(support.hidden @ fast["tower.weight"] + fast["tower.bias"] + support.shift) * support.gate
        count, _, outputs, width = active.shape
        wanted = losses.task_targets(given.plan, tasks.label, tasks.weight)
        output, bias = active.new_zeros(count, outputs, width), active.new_zeros(count, outputs)
        for _ in range(settings.inner_steps):
            weights = (fast["output.weight"] + output).unsqueeze(1)
            logit = (active * weights).sum(-1) + (fast["output.bias"] + bias).unsqueeze(1) + support.offset
            slope = losses.slope(given.plan, wanted, logit.flatten(0, 1)).view_as(logit)
            output = output * given.keep - settings.inner_rate * (slope.unsqueeze(-1) * active).sum(1)
            bias = bias * given.keep - settings.inner_rate * slope.sum(1)
        nothing = support.hidden.new_zeros(count, 0, support.hidden.shape[-1])
        return low_rank.Change(nothing, active.new_zeros(count, 0, width), active.new_zeros(count, width), output, bias)

    return adapters.Adapter({}, adapters.without_parameters, adapt, low_rank.logits)
