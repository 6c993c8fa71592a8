"""What an outer gradient is made of, and the usual one: that of the adapted query loss."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from models import base, losses
from models.meta import adapters


class Adapted(NamedTuple):
    """The tasks of a minibatch after they were adapted: T lists with support, padded, and what they were asked."""

    tasks: adapters.Tasks
    query: base.MetaInput
    """(T, Q, O, .)"""
    label: torch.Tensor
    """(T, Q, objectives)"""
    asked: torch.Tensor
    """(T, Q), 1 where there is a row of a list that meta-learns and 0 elsewhere."""


class Outer(NamedTuple):
    """A minibatch of R rows, all that an outer gradient may depend on."""

    plan: losses.Plan
    fast: base.Parameters
    """Fast and meta-parameters, leaves of autograd."""
    wanted: losses.Targets
    """Targets of all rows, of weight 0 where a list does not meta-learn."""
    logit: torch.Tensor
    """(R, O), adapted; the plain ones of rows without support."""
    adapted: Adapted | None
    """None: no list has support."""


Loss = Callable[[Outer], torch.Tensor]
"""A scalar with the value of the meta loss, whose gradient is the algorithm's outer gradient."""


def query(minibatch: Outer) -> torch.Tensor:
    """The loss of the query rows under their adapted towers, differentiated as far as the adaptation lets autograd see."""
    return losses.loss(minibatch.plan, minibatch.wanted, minibatch.logit)
