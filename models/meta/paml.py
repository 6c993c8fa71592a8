"""A rate for each task (the idea of PAML, Yu et al. 2021): how far to go depends on how much is known, and of what kind.

rate = inner_rate x FARTHEST ^ tanh(f w), with f the task's features: 1, its support rows on a log scale, and for each objective
the mean label of the support and how far the shared tower's mean error is from zero. w is learned from zero. PAML takes its
rates from similar users; a stream of tasks keeps no register of those, so features of the support stand for the user.
"""

import math

import torch

from models import adaptation, base, losses
from models.meta import adapters, low_rank

FARTHEST = 8.0
"""A task's rate is at most so many times `inner_rate`, and at least its inverse."""
USUAL_ROWS = 16.0


def features(fast: base.Parameters, tasks: adapters.Tasks, plan: losses.Plan) -> torch.Tensor:
    """(T, 2 + objectives + outputs), about the size of 1."""
    rows = (tasks.weight > 0).sum(1, keepdim=True)
    size = torch.log((rows + 1) / (USUAL_ROWS + 1)) / math.log(USUAL_ROWS + 1)
    there = (tasks.weight > 0).unsqueeze(-1) & ~torch.isnan(tasks.label)
    total = torch.where(there, tasks.label, torch.zeros_like(tasks.label)).sum(1)
    mean = total / there.sum(1).clamp(min=1)
    plain = base.tower(adaptation.with_tower(fast), tasks.support)
    wanted = losses.task_targets(plan, tasks.label, tasks.weight)
    error = losses.slope(plan, wanted, plain.flatten(0, 1)).view_as(plain).sum(1)
    return torch.cat([torch.ones_like(size), size, torch.sign(mean) * torch.log1p(mean.abs()), torch.tanh(error.abs())], 1)


def adapter(given: adapters.Given) -> adapters.Adapter:
    """Gradient descent at a rate per task."""
    settings = given.settings
    count = 2 + (len(given.plan.parts) or given.tower.outputs) + given.tower.outputs

    def adapt(fast: base.Parameters, tasks: adapters.Tasks) -> low_rank.Change:
        told = features(fast, tasks, given.plan) @ fast["meta.rate.task"].unsqueeze(1)
        rate = settings.inner_rate * torch.exp(math.log(FARTHEST) * torch.tanh(told))
        return low_rank.adapt(fast, tasks, low_rank.sgd(rate), settings.inner_steps, given.keep, given.plan)

    return adapters.Adapter({"meta.rate.task": (count,)}, adapters.without_parameters, adapt, low_rank.logits)
