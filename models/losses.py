"""What the logits of an objective mean: by its kind the loss, the loss's slope, and what is predicted.

A row has one label per objective (NaN: none, because the scenario does not have the objective or nobody told the value) and one
logit per output; a multiclass objective has an output per class. The losses of one row, which weights multiply:

* binary: cross-entropy of the sigmoid.
* multiclass: cross-entropy of the softmax over the objective's outputs.
* regression: half the squared error of the logit, whose target is the transformed value over `scale`.
* ranking: the pairwise logistic loss (Burges et al. 2005) against the rows of the same list with a smaller label, each pair
  weighted by the difference of the labels, the mean over those rows: what was bought counts as much more as `weights` say.

The loss of a minibatch is, for each objective, the mean over the rows that have it, summed over objectives: rows without an
objective neither change nor dilute what it learns from the others, however rare it is.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from models import own_loss
from state import config

F32 = npt.NDArray[np.float32]
GREATEST_LOG = 80.0
"""exp of more would leave float32."""


class Part(NamedTuple):
    """One objective: its kind, its outputs `at` to `at + width`, and how a regression sees its value."""

    kind: str
    at: int
    width: int
    log1p: bool
    scale: float
    own: own_loss.RowLoss | None = None
    """A user's loss of rows instead of the kind's."""


class Plan(NamedTuple):
    """The objectives in order. `plain`: all binary and of every scenario, so outputs are objectives and no label is missing."""

    parts: tuple[Part, ...]
    outputs: int
    plain: bool


BINARY = Plan((), 0, plain=True)
"""Every output is a binary objective, however many there are."""


class Pairs(NamedTuple):
    """Pairs (P,) of rows of a list, by what `above` has over `below`, divided by the number of rows that `above` beats."""

    above: torch.Tensor
    below: torch.Tensor
    share: torch.Tensor


class Targets(NamedTuple):
    """What n rows are to learn: labels and weights (n, O), both 0 where there is no label, and the pairs of ranking objectives.

    `rows` has for each objective how many rows have it, at least 1.
    """

    label: torch.Tensor
    weight: torch.Tensor
    rows: torch.Tensor
    pairs: tuple[Pairs | None, ...]


def plan(objectives: Sequence[config.Objective]) -> Plan:
    """The objectives of a configuration.

    Raises:
        config.ConfigError: an objective's own loss is missing or breaks the contract (`models.own_loss`).
    """
    parts, at = [], 0
    for i, o in enumerate(objectives):
        key = f"objectives[{i}].loss"
        own = own_loss.named(key, o.loss, o.outputs) if o.loss else None
        parts.append(Part(o.kind, at, o.outputs, o.transform == "log1p", o.scale, own))
        at += o.outputs
    return Plan(tuple(parts), at, all(o.kind == "binary" and not (o.scenarios or o.loss) for o in objectives))


def targets(plan: Plan, label: torch.Tensor, weight: torch.Tensor, n_items: torch.Tensor) -> Targets:
    """Targets of the rows of whole lists: labels and weights (n, O), rows of each list (L,) int64."""
    if plan.plain:
        return Targets(label, weight, torch.tensor(max(len(label), 1)), ())
    there = ~torch.isnan(label)
    pairs = tuple(_pairs(label[:, o], n_items) if p.kind == "ranking" else None for o, p in enumerate(plan.parts))
    rows = there.sum(0).clamp(min=1)
    return Targets(label.nan_to_num(0.0), torch.where(there, weight, torch.zeros_like(weight)), rows, pairs)


def task_targets(plan: Plan, label: torch.Tensor, weight: torch.Tensor) -> Targets:
    """Targets of padded tasks, flattened: labels (T, K, O), weights (T, K), 0 for padding and of one sign.

    A task's weight is shared out again among those of its rows that have an objective. A ranking sees the task as one list.
    """
    tasks, most, objectives = label.shape
    weight = weight.unsqueeze(-1)
    if plan.plain:
        return Targets(label.flatten(0, 1), weight.flatten(0, 1), torch.ones(()), ())
    real = weight != 0
    label = torch.where(real, label, torch.full_like(label, torch.nan))
    there = ~torch.isnan(label)
    had = torch.where(there, weight, 0.0).sum(1, keepdim=True)
    share = weight.sum(1, keepdim=True) / torch.where(had != 0, had, 1.0)
    own = torch.where(there, weight * share, 0.0)
    flat = label.reshape(tasks * most, objectives)
    return targets(plan, flat, own.reshape(tasks * most, objectives), torch.full((tasks,), most))


def loss(plan: Plan, wanted: Targets, logit: torch.Tensor) -> torch.Tensor:
    """Of logits (n, outputs): for each objective the weighted mean over the rows that have it, summed over objectives."""
    if plan.plain:
        every = functional.binary_cross_entropy_with_logits(logit, wanted.label, wanted.weight, reduction="sum")
        return every / wanted.rows.item()
    return (row_losses(plan, wanted, logit) * wanted.weight / wanted.rows).sum()


def row_losses(plan: Plan, wanted: Targets, logit: torch.Tensor) -> torch.Tensor:
    """The loss (n, O) of every row and objective without its weight; meaningless where there is no label."""
    if plan.plain:
        return functional.binary_cross_entropy_with_logits(logit, wanted.label, reduction="none")
    return torch.stack([_row_loss(part, o, wanted, logit) for o, part in enumerate(plan.parts)], 1)


def _row_loss(part: Part, o: int, wanted: Targets, logit: torch.Tensor) -> torch.Tensor:
    label, own, pairs = wanted.label[:, o], logit[:, part.at : part.at + part.width], wanted.pairs[o]
    if part.own is not None:
        return part.own(_target(part, label), own)
    if pairs is not None:
        behind = functional.softplus(own[pairs.below, 0] - own[pairs.above, 0])
        return torch.zeros_like(own[:, 0]).index_add(0, pairs.above, pairs.share * behind)
    if part.kind == "multiclass":
        return functional.cross_entropy(own, label.long(), reduction="none")
    if part.kind == "regression":
        return 0.5 * (own[:, 0] - _seen(part, label)).square()
    return functional.binary_cross_entropy_with_logits(own[:, 0], label, reduction="none")


def slope(plan: Plan, wanted: Targets, logit: torch.Tensor) -> torch.Tensor:
    """Derivative (n, outputs) of the sum of the weighted row losses with respect to the logits (n, outputs)."""
    if plan.plain:
        return (torch.sigmoid(logit) - wanted.label) * wanted.weight
    return torch.cat([_slope(part, o, wanted, logit) for o, part in enumerate(plan.parts)], 1)


def _slope(part: Part, o: int, wanted: Targets, logit: torch.Tensor) -> torch.Tensor:
    label, weight = wanted.label[:, o], wanted.weight[:, o : o + 1]
    own, pairs = logit[:, part.at : part.at + part.width], wanted.pairs[o]
    if part.own is not None:
        return own_loss.slope(part.own, _target(part, label), weight, own)
    if pairs is not None:
        behind = own[pairs.below, 0] - own[pairs.above, 0]
        force = weight[pairs.above, 0] * pairs.share * torch.sigmoid(behind)
        return torch.zeros_like(own).index_add(0, pairs.below, force.unsqueeze(1)).index_add(0, pairs.above, -force.unsqueeze(1))
    if part.kind == "multiclass":
        return (torch.softmax(own, 1) - functional.one_hot(label.long(), part.width)) * weight
    if part.kind == "regression":
        return (own - _seen(part, label).unsqueeze(1)) * weight
    return (torch.sigmoid(own) - label.unsqueeze(1)) * weight


def curvature(plan: Plan, wanted: Targets, logit: torch.Tensor) -> torch.Tensor:
    """Diagonals (n, outputs) that bound the second derivative of the sum of the weighted row losses, whatever the logits are.

    Of a ranking, half of each pair's weight for either row: (a - b)^2 <= 2 a^2 + 2 b^2. A user's own loss is taken for one of its
    kind, which is no bound if it is more curved.
    """
    if plan.plain:
        return 0.25 * wanted.weight.expand_as(logit)
    return torch.cat([_curvature(part, o, wanted) for o, part in enumerate(plan.parts)], 1)


def _curvature(part: Part, o: int, wanted: Targets) -> torch.Tensor:
    weight, pairs = wanted.weight[:, o : o + 1], wanted.pairs[o]
    if pairs is not None:
        half = 0.5 * weight[pairs.above, 0] * pairs.share
        nothing = torch.zeros_like(weight[:, 0])
        return nothing.index_add(0, pairs.below, half).index_add(0, pairs.above, half).unsqueeze(1)
    return weight.expand(-1, part.width) * {"regression": 1.0, "multiclass": 0.5}.get(part.kind, 0.25)


def predictions(plan: Plan, logit: torch.Tensor) -> torch.Tensor:
    """What logits (n, outputs) say: a probability per class, a value, a rank between 0 and 1 that compares within a list."""
    if plan.plain:
        return torch.sigmoid(logit)
    return torch.cat([_prediction(part, logit[:, part.at : part.at + part.width]) for part in plan.parts], 1)


def _prediction(part: Part, own: torch.Tensor) -> torch.Tensor:
    if part.kind == "multiclass":
        return torch.softmax(own, 1)
    if part.kind == "regression":
        value = own * part.scale
        return torch.expm1(value.clamp(max=GREATEST_LOG)) if part.log1p else value
    return torch.sigmoid(own)


def value(part: Part, logit: F32) -> F32:
    """The value (n,) that logits (n,) of a regression predict."""
    told: F32 = _prediction(part, torch.from_numpy(logit)).numpy()
    return told


def seen(part: Part, value: npt.NDArray[Any]) -> F32:
    """What the loss of a regression sees of values (n,): the target of its logit."""
    target: F32 = _seen(part, torch.from_numpy(value)).numpy()
    return target


def _target(part: Part, label: torch.Tensor) -> torch.Tensor:
    """What a user's own loss compares the logits with."""
    return _seen(part, label) if part.kind == "regression" else label


def _seen(part: Part, value: torch.Tensor) -> torch.Tensor:
    """The target of a regression's logit."""
    return (torch.log1p(value) if part.log1p else value) / part.scale


def _pairs(label: torch.Tensor, n_items: torch.Tensor) -> Pairs:
    """Pairs of labels (n,), of which the smallest is 0, in lists (L,)."""
    start, size = ((n_items.cumsum(0) - n_items).repeat_interleave(n_items), n_items.repeat_interleave(n_items))
    acted = torch.nonzero(label > 0).squeeze(1)
    counts = size[acted]
    above = acted.repeat_interleave(counts)
    place = torch.arange(len(above), device=label.device) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    below = start[above] + place
    lower = label[below] < label[above]
    above, below = above[lower], below[lower]
    beaten = torch.bincount(above, minlength=len(label))[above]
    return Pairs(above, below, (label[above] - label[below]) / beaten)
