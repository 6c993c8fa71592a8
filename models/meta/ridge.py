"""Ridge regression on the tower's hidden layer, with learned shrinkage (after R2-D2, Bertinetto et al. 2019).

The output weights and biases of a task are those that fit its support best under a normal prior around the shared ones, instead
of a few gradient steps towards it: with few rows they stay where they are, with many they go as far as the rows say, and no rate
has to suit both. Prior variances are `inner_rate` x exp(-a), with a learned from zero for each weight. A step is a Newton step on
a quadratic that lies above the loss (Boehning and Lindsay 1988), so the loss never rises; for a regression the first is exact.
A variance so large that the step has no solution in single precision has diverged: the task's changes are no numbers then.
Where support rows have weights, a task of n rows counts as n times their sum; `inner_decay` has no part, the prior does its work.
"""

import torch

from models import adaptation, base, losses
from models.meta import adapters, low_rank


def adapter(given: adapters.Given) -> adapters.Adapter:
    """The posterior mode of the output layer, differentiated through its solution."""
    settings, (_, width, outputs) = given.settings, given.tower

    def adapt(fast: base.Parameters, tasks: adapters.Tasks) -> low_rank.Change:
        precision = torch.exp(fast["meta.prior"])
        fast, support = adaptation.with_tower(fast), tasks.support
        active = torch.relu(support.hidden @ fast["tower.weight"] + fast["tower.bias"] + support.shift) * support.gate
        count = len(active)
        change = active.new_zeros(count, outputs, width + 1)
        if settings.inner_rate:
            rows = (tasks.weight > 0).sum(1, keepdim=True)
            wanted = losses.task_targets(given.plan, tasks.label, tasks.weight * rows)
            basis = torch.cat([active, active.new_ones(*active.shape[:-1], 1)], -1)
            plain = (active * fast["output.weight"]).sum(-1) + fast["output.bias"] + support.offset
            for _ in range(settings.inner_steps):
                change = _step(given.plan, wanted, plain, basis, precision / settings.inner_rate, change)
        nothing = support.hidden.new_zeros(count, 0, support.hidden.shape[-1])
        return low_rank.Change(
            nothing, active.new_zeros(count, 0, width), active.new_zeros(count, width), change[..., :width], change[..., width]
        )  # fmt: skip

    return adapters.Adapter({"meta.prior": (outputs, width + 1)}, adapters.without_parameters, adapt, low_rank.logits)


def _step(
    plan: losses.Plan, wanted: losses.Targets, plain: torch.Tensor, basis: torch.Tensor, precision: torch.Tensor,
    change: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """Changes (T, O, H2 + 1) after a Newton step; plain logits (T, K, O), their basis (T, K, O, H2 + 1)."""
    logit = plain + (basis * change.unsqueeze(1)).sum(-1)
    slope = losses.slope(plan, wanted, logit.flatten(0, 1)).view_as(logit)
    curvature = losses.curvature(plan, wanted, logit.flatten(0, 1)).view_as(logit)
    each = basis.transpose(1, 2)
    gradient = (each * slope.transpose(1, 2).unsqueeze(-1)).sum(2) + precision * change
    hessian = (each * curvature.transpose(1, 2).unsqueeze(-1)).transpose(2, 3) @ each + torch.diag_embed(precision)
    found, failed = torch.linalg.solve_ex(hessian, gradient.unsqueeze(-1))
    moved: torch.Tensor = change - found.squeeze(-1).masked_fill(failed.unsqueeze(-1) > 0, torch.nan)
    return moved
