"""Inner steps in closed form that autograd can follow: the change of the hidden weights keeps its low rank, A'S.

As in `models.adaptation`, with two differences: nothing is a constant but the support rows, so gradients of the second order and
of meta-parameters come out of autograd exactly; and a rule says how gradients become steps. A rule for the hidden weights must
factorise into what it does to the inputs and what it does to the errors, or the change would need weights per task.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from models import adaptation, base, losses
from models.meta import adapters

Map = Callable[[torch.Tensor], torch.Tensor]


class Rule(NamedTuple):
    """Linear maps from gradients to steps (which are subtracted); the rate is in them."""

    enter: Map
    """Of hidden inputs (T, n, H1): with `error` it makes the step of the hidden weights."""
    error: Map
    """Of errors of pre-activations (T, n, H2)."""
    bias: Map
    """(T, H2)"""
    output: Map
    """(T, O, H2)"""
    output_bias: Map
    """(T, O)"""


class Change(NamedTuple):
    """What T tasks do to the tower: hidden weights A'S and biases, output weights and biases."""

    hidden: torch.Tensor
    """A (T, n, H1)"""
    error: torch.Tensor
    """S (T, n, H2)"""
    bias: torch.Tensor
    """(T, H2)"""
    output: torch.Tensor
    """(T, O, H2)"""
    output_bias: torch.Tensor
    """(T, O)"""


def sgd(rate: float | torch.Tensor) -> Rule:
    """Plain gradient descent, at one rate or at one for each task, (T, 1)."""
    deep = rate if isinstance(rate, float) else rate.unsqueeze(-1)
    return Rule(lambda h: h, lambda e: e * deep, lambda g: g * rate, lambda g: g * deep, lambda g: g * rate)


def adapt(fast: base.Parameters, tasks: adapters.Tasks, rule: Rule, steps: int, keep: float, plan: losses.Plan) -> Change:
    """Run the inner steps; `keep` is what each leaves of the change so far."""
    fast = adaptation.with_tower(fast)
    tasks_, most, outputs, inputs = tasks.support.hidden.shape
    width, count = fast["tower.weight"].shape[1], most * outputs
    hidden = tasks.support.hidden.reshape(tasks_, count, inputs)
    entered = rule.enter(hidden)
    start = (tasks.support.hidden @ fast["tower.weight"] + fast["tower.bias"] + tasks.support.shift).reshape(tasks_, count, width)
    wanted = losses.task_targets(plan, tasks.label, tasks.weight)
    change = Change(
        entered, start.new_zeros(start.shape), start.new_zeros(tasks_, width), start.new_zeros(tasks_, outputs, width),
        start.new_zeros(tasks_, outputs),
    )  # fmt: skip
    products = hidden @ entered.transpose(1, 2) if steps > 1 else None
    for step in range(steps):
        z = start if step == 0 or products is None else torch.baddbmm(start, products, change.error) + change.bias.unsqueeze(1)
        z = z.view(tasks_, most, outputs, width)
        weights = (fast["output.weight"] + change.output).unsqueeze(1)
        active = torch.relu(z) * tasks.support.gate
        logit = (active * weights).sum(-1) + (fast["output.bias"] + change.output_bias).unsqueeze(1) + tasks.support.offset
        slope = losses.slope(plan, wanted, logit.flatten(0, 1)).view_as(logit).unsqueeze(-1)
        error = (slope * weights * tasks.support.gate * (z > 0)).view_as(start)
        change = Change(
            entered, change.error * keep - rule.error(error), change.bias * keep - rule.bias(error.sum(1)),
            change.output * keep - rule.output((slope * active).sum(1)),
            change.output_bias * keep - rule.output_bias(slope.squeeze(-1).sum(1)),
        )  # fmt: skip
    return change


def logits(fast: base.Parameters, change: Change, query: base.MetaInput) -> torch.Tensor:
    """Logits (T, Q, O) of padded queries (T, Q, O, .) under each task's changed tower."""
    fast = adaptation.with_tower(fast)
    tasks, most, outputs, inputs = query.hidden.shape
    width = fast["tower.weight"].shape[1]
    flat = query.hidden.reshape(tasks, most * outputs, inputs)
    plain = (query.hidden @ fast["tower.weight"] + fast["tower.bias"] + query.shift).reshape(tasks, most * outputs, width)
    z = torch.baddbmm(plain + change.bias.unsqueeze(1), flat @ change.hidden.transpose(1, 2), change.error)
    active = torch.relu(z).view(tasks, most, outputs, width) * query.gate
    weights = (fast["output.weight"] + change.output).unsqueeze(1)
    return (active * weights).sum(-1) + (fast["output.bias"] + change.output_bias).unsqueeze(1) + query.offset
