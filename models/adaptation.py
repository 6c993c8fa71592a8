"""First-order MAML on the tower (Finn et al. 2017) in closed form: no weights are ever built per task.

A gradient step on a task's support rows changes the tower's hidden layer by a matrix of low rank, W_u = W + A'S with A the
support rows' hidden inputs (fixed, as the trunk is not adapted) and S the sum of their errors over the inner steps. So a
query's pre-activation is q W + (q A' + 1) S: one product shared by all tasks and two small ones. The output layer, a vector
per objective, is adapted outright. The inner loss is the mean over a task's own rows, summed over objectives, so that tasks
merged into one batch get what each gets alone.
"""

from typing import NamedTuple

import torch

from models import base


class Adapted(NamedTuple):
    """What a support set does to the tower, for T tasks of at most K rows and O objectives; constants for autograd."""

    hidden: torch.Tensor
    """A (T, K x O, H1)"""
    error: torch.Tensor
    """S (T, K x O, H2); its column sums are the change of the hidden bias."""
    output: torch.Tensor
    """Change of the output weights (T, O, H2)."""
    bias: torch.Tensor
    """Change of the output biases (T, O)."""


def adapt(
    fast: base.Parameters, support: base.MetaInput, label: torch.Tensor, weight: torch.Tensor, rate: float, steps: int
) -> Adapted:
    """Run `steps` inner steps on padded supports: meta inputs (T, K, O, .), labels (T, K, O), weights (T, K).

    A row's weight is 1 / (rows of its task), 0 for padding. Zero steps, a zero rate or no rows change nothing.
    """
    with torch.no_grad():
        tasks, most, objectives, _ = support.hidden.shape
        hidden = support.hidden.reshape(tasks, most * objectives, -1)
        start = (support.hidden @ fast["tower.weight"] + fast["tower.bias"] + support.shift).reshape(tasks, most * objectives, -1)
        scale = weight.unsqueeze(-1) * -rate
        error = torch.zeros_like(start)
        output = torch.zeros(tasks, *fast["output.weight"].shape)
        bias = torch.zeros(tasks, objectives)
        products = torch.bmm(hidden, hidden.transpose(1, 2)) + 1 if steps > 1 else None
        for step in range(steps):
            z = start if step == 0 or products is None else torch.baddbmm(start, products, error)
            z = z.view(tasks, most, objectives, -1)
            weights = (fast["output.weight"] + output).unsqueeze(1)
            active = torch.relu(z) * support.gate
            logit = (active * weights).sum(-1) + (fast["output.bias"] + bias).unsqueeze(1) + support.offset
            slope = ((torch.sigmoid(logit) - label) * scale).unsqueeze(-1)
            error = error + (slope * weights * support.gate * (z > 0)).view_as(error)
            output = output + (slope * active).sum(1)
            bias = bias + slope.squeeze(-1).sum(1)
        return Adapted(hidden, error, output, bias)


def logits(fast: base.Parameters, adapted: Adapted, query: base.MetaInput) -> torch.Tensor:
    """Logits (T, Q, O) of padded queries (T, Q, O, .) under each task's adapted tower.

    Differentiable in the fast parameters and the query; the changes themselves are constants, which makes it first order.
    """
    tasks, most, objectives, _ = query.hidden.shape
    flat = query.hidden.reshape(tasks, most * objectives, -1)
    plain = (query.hidden @ fast["tower.weight"] + fast["tower.bias"] + query.shift).reshape(tasks, most * objectives, -1)
    z = torch.baddbmm(plain, torch.bmm(flat, adapted.hidden.transpose(1, 2)) + 1, adapted.error)
    active = torch.relu(z).view(tasks, most, objectives, -1) * query.gate
    weights = (fast["output.weight"] + adapted.output).unsqueeze(1)
    return (active * weights).sum(-1) + (fast["output.bias"] + adapted.bias).unsqueeze(1) + query.offset


def pick(meta: base.MetaInput, rows: torch.Tensor) -> base.MetaInput:
    """Meta inputs at integer positions of any shape; a position past the padding must be masked by its user."""
    return base.MetaInput(*(part[rows] for part in meta))
