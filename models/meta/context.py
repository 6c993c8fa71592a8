"""A few numbers per task instead of weights: FiLM (Perez et al. 2018) of the tower's hidden layer, and biases of the logits.

logit = sum of relu(z + shift) x gate x (1 + scale) x output weights + bias + offset. The context of a task, `[shift H2 | scale H2
| bias O]`, starts at zero, so that a task without support has the plain tower.
"""

from collections.abc import Callable

import torch

from models import adaptation, base, losses
from models.meta import adapters


def adapt(
    fast: base.Parameters, tasks: adapters.Tasks, step_of: Callable[[torch.Tensor], torch.Tensor], steps: int, keep: float,
    plan: losses.Plan,
) -> torch.Tensor:  # fmt: skip
    """The contexts (T, 2 x H2 + O) after the inner steps; `step_of` turns gradients of the contexts into what is subtracted."""
    fast, support = adaptation.with_tower(fast), tasks.support
    z = support.hidden @ fast["tower.weight"] + fast["tower.bias"] + support.shift
    width, outputs = z.shape[-1], support.offset.shape[-1]
    wanted = losses.task_targets(plan, tasks.label, tasks.weight)
    context = z.new_zeros(len(z), 2 * width + outputs)
    for _ in range(steps):
        logit, shifted, scale = _forward(fast, context, z, support)
        slope = losses.slope(plan, wanted, logit.flatten(0, 1)).view_as(logit)
        by = slope.unsqueeze(-1) * fast["output.weight"] * support.gate
        gradient = (
            (by * (1 + scale) * (shifted > 0)).sum((1, 2)),
            (by * torch.relu(shifted)).sum((1, 2)),
            slope.sum(1),
        )
        context = context * keep - step_of(torch.cat(gradient, 1))
    return context


def logits(fast: base.Parameters, context: torch.Tensor, query: base.MetaInput) -> torch.Tensor:
    """Logits (T, Q, O) of padded queries (T, Q, O, .) under contexts (T, 2 x H2 + O)."""
    fast = adaptation.with_tower(fast)
    z = query.hidden @ fast["tower.weight"] + fast["tower.bias"] + query.shift
    return _forward(fast, context, z, query)[0]


def _forward(
    fast: base.Parameters, context: torch.Tensor, z: torch.Tensor, meta: base.MetaInput
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits (T, n, O), shifted pre-activations (T, n, O, H2) and scales (T, 1, 1, H2)."""
    width, outputs = z.shape[-1], meta.offset.shape[-1]
    shift, scale, bias = torch.split(context, [width, width, outputs], 1)
    shifted, scale = z + shift[:, None, None], scale[:, None, None]
    active = torch.relu(shifted) * meta.gate * (1 + scale)
    logit = (active * fast["output.weight"]).sum(-1) + fast["output.bias"] + bias.unsqueeze(1) + meta.offset
    return logit, shifted, scale
