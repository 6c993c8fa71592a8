"""Reptile (Nichol et al. 2018): the tower moves towards where inner steps on all of a task's rows end.

It has no query: support and query rows are one set here. The outer gradient is (shared tower - adapted tower) / (rate x steps),
each list counting as many rows as it has, so that it is as large as the gradient of a mean loss; with one step it is just that.
The adapted weights are constants, and the trunk learns from the original loss alone.
"""

import torch

from learner.meta import outer
from models import adaptation, base
from models.meta import adapters
from state import config


def loss(settings: config.MetaLearning) -> outer.Loss:
    """The query loss in value, Reptile in gradient."""

    def build(minibatch: outer.Outer) -> torch.Tensor:
        said = outer.query(minibatch).detach()
        if minibatch.adapted is None or not settings.inner_rate or not settings.inner_steps:
            return said
        way = _towards(minibatch, minibatch.adapted, settings)
        return said + way - way.detach()

    return build


def _towards(minibatch: outer.Outer, adapted: outer.Adapted, settings: config.MetaLearning) -> torch.Tensor:
    """A scalar with Reptile's gradient: minus the product of the tower with the mean change."""
    share = adapted.asked.sum(1) / len(minibatch.logit)
    decay = max(0.0, 1.0 - settings.inner_rate * settings.inner_decay)
    change = adaptation.adapt(
        minibatch.fast, *_whole(adapted), settings.inner_rate, settings.inner_steps, minibatch.plan, decay
    )  # fmt: skip
    fast = adaptation.with_tower(minibatch.fast)
    error = change.error * share[:, None, None]
    way = (fast["tower.weight"] * torch.einsum("tnh,tnj->hj", change.hidden, error)).sum()
    way = way + (fast["tower.bias"] * error.sum((0, 1))).sum()
    way = way + (fast["output.weight"] * torch.einsum("toj,t->oj", change.output, share)).sum()
    way = way + (fast["output.bias"] * torch.einsum("to,t->o", change.bias, share)).sum()
    return -way / (settings.inner_rate * settings.inner_steps)


def _whole(adapted: outer.Adapted) -> adapters.Tasks:
    """Support and query rows as one set, all of equal weight."""
    tasks, query = adapted.tasks, adapted.query
    rows = base.MetaInput(*(torch.cat([known, asked.detach()], 1) for known, asked in zip(tasks.support, query, strict=True)))
    there = torch.cat([(tasks.weight > 0).to(adapted.asked.dtype), adapted.asked], 1)
    return adapters.Tasks(rows, torch.cat([tasks.label, adapted.label], 1), there / there.sum(1, keepdim=True).clamp(min=1))
