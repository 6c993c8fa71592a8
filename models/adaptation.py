"""First-order MAML on the tower (Finn et al. 2017) in closed form: no weights are ever built per task.

A gradient step on a task's support rows changes the tower's hidden layer by a matrix of low rank, W_u = W + A'S with A the
support rows' hidden inputs (fixed, as the trunk is not adapted) and S the sum of their errors over the inner steps. So a
query's pre-activation is q W + (q A' + 1) S: one product shared by all tasks and two small ones. The output layer, a vector
per objective, is adapted outright. The inner loss is that of the objective's kind (`models.losses`): the mean over those of a
task's own rows that have the objective, summed over objectives, so that tasks
merged into one batch get what each gets alone. A model without a tower has one of no width: only its bias is adapted.
"""

from typing import NamedTuple

import torch

from models import base, losses


class Adapted(NamedTuple):
    """What a support set does to the tower, for T tasks of at most K rows and O outputs; constants for autograd."""

    hidden: torch.Tensor
    """A (T, K x O, H1)"""
    error: torch.Tensor
    """S (T, K x O, H2); its column sums are the change of the hidden bias."""
    output: torch.Tensor
    """Change of the output weights (T, O, H2)."""
    bias: torch.Tensor
    """Change of the output biases (T, O)."""


def adapt(
    fast: base.Parameters, support: base.MetaInput, label: torch.Tensor, weight: torch.Tensor, rate: float, steps: int,
    plan: losses.Plan = losses.BINARY, keep: float = 1.0,
) -> Adapted:  # fmt: skip
    """Run `steps` inner steps on padded supports: meta inputs (T, K, O, .), labels (T, K, objectives), weights (T, K).

    The weights of a task sum to one, padding has 0. Zero steps, a zero rate or no rows change nothing. `keep` is what a step
    leaves of the change so far: below 1, the tower decays towards the shared one.
    """
    fast = with_tower(fast)
    with torch.no_grad():
        tasks, most, objectives, inputs = support.hidden.shape
        width = fast["tower.weight"].shape[1]
        hidden = support.hidden.reshape(tasks, most * objectives, inputs)
        start = support.hidden @ fast["tower.weight"] + fast["tower.bias"] + support.shift
        start = start.reshape(tasks, most * objectives, width)
        wanted = losses.task_targets(plan, label, weight * -rate)
        error = torch.zeros_like(start)
        output = start.new_zeros(tasks, *fast["output.weight"].shape)
        bias = start.new_zeros(tasks, objectives)
        products = torch.bmm(hidden, hidden.transpose(1, 2)) + 1 if steps > 1 else None
        for step in range(steps):
            z = start if step == 0 or products is None else torch.baddbmm(start, products, error)
            z = z.view(tasks, most, objectives, width)
            weights = (fast["output.weight"] + output).unsqueeze(1)
            active = torch.relu(z) * support.gate
            logit = (active * weights).sum(-1) + (fast["output.bias"] + bias).unsqueeze(1) + support.offset
            slope = losses.slope(plan, wanted, logit.flatten(0, 1)).view_as(logit).unsqueeze(-1)
            if step and keep < 1:
                error, output, bias = error * keep, output * keep, bias * keep
            error = error + (slope * weights * support.gate * (z > 0)).view_as(error)
            output = output + (slope * active).sum(1)
            bias = bias + slope.squeeze(-1).sum(1)
        return Adapted(hidden, error, output, bias)


def logits(fast: base.Parameters, adapted: Adapted, query: base.MetaInput) -> torch.Tensor:
    """Logits (T, Q, O) of padded queries (T, Q, O, .) under each task's adapted tower.

    Differentiable in the fast parameters and the query; the changes themselves are constants, which makes it first order.
    """
    fast = with_tower(fast)
    tasks, most, objectives, inputs = query.hidden.shape
    width = fast["tower.weight"].shape[1]
    flat = query.hidden.reshape(tasks, most * objectives, inputs)
    plain = query.hidden @ fast["tower.weight"] + fast["tower.bias"] + query.shift
    changed = torch.bmm(flat, adapted.hidden.transpose(1, 2)) + 1
    z = torch.baddbmm(plain.reshape(tasks, most * objectives, width), changed, adapted.error)
    active = torch.relu(z).view(tasks, most, objectives, width) * query.gate
    weights = (fast["output.weight"] + adapted.output).unsqueeze(1)
    return (active * weights).sum(-1) + (fast["output.bias"] + adapted.bias).unsqueeze(1) + query.offset


def pick(meta: base.MetaInput, rows: torch.Tensor) -> base.MetaInput:
    """Meta inputs at integer positions of any shape; a position past the padding must be masked by its user."""
    return base.MetaInput(*(part[rows] for part in meta))


def with_tower(fast: base.Parameters) -> base.Parameters:
    """The fast parameters, with a tower of no width where the model has none."""
    if "tower.weight" in fast:
        return fast
    bias = fast["output.bias"]
    nothing = {"tower.weight": (0, 0), "tower.bias": (0,), "output.weight": (len(bias), 0)}
    return {name: bias.new_zeros(shape) for name, shape in nothing.items()} | {"output.bias": bias}
