"""What an adaptation is: parameters of its own, and two pure functions, `adapt` and `logits`."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from models import base, losses
from state import config


class Tasks(NamedTuple):
    """The support rows of T tasks, padded to K rows; constants, whatever the algorithm differentiates."""

    support: base.MetaInput
    """(T, K, O, .)"""
    label: torch.Tensor
    """(T, K, objectives)"""
    weight: torch.Tensor
    """(T, K), 0 for padding; in a task they sum to one, or to less where few rows shall move little."""


class Tower(NamedTuple):
    """What an adaptation must know of a model: widths of its tower's input and hidden layer (0: no tower), and logits."""

    inputs: int
    width: int
    outputs: int


class Adapter(NamedTuple):
    """An algorithm for one model and configuration.

    Meta-parameters are learned with the model's and stand behind them in the dense vector, so snapshots carry them to serving.
    """

    shapes: base.Shapes
    """Meta-parameters, by names that begin with "meta."."""
    start: Callable[[Mapping[str, torch.Tensor], torch.Generator], None]
    """Fills views of zeros with what the meta-parameters start from: adapting then is plain gradient descent, or near it."""
    adapt: Callable[[base.Parameters, Tasks], Any]
    """Fast and meta-parameters, and support rows, to what changes; zero rates or steps change nothing."""
    logits: Callable[[base.Parameters, Any, base.MetaInput], torch.Tensor]
    """Logits (T, Q, O) of padded queries (T, Q, O, .) under what changes."""


class Given(NamedTuple):
    """What an algorithm is built from."""

    settings: config.MetaLearning
    tower: Tower
    plan: losses.Plan

    @property
    def keep(self) -> float:
        """What a step leaves of the change so far: decay towards the shared parameters, decoupled from the rule's rates."""
        return max(0.0, 1.0 - self.settings.inner_rate * self.settings.inner_decay)


def without_parameters(views: Mapping[str, torch.Tensor], generator: torch.Generator) -> None:
    """`start` of an algorithm whose meta-parameters start at zero, or that has none."""


def tower_of(model: base.Model) -> Tower:
    """The tower of a model; one without has a hidden layer of no width."""
    inputs, width = model.shapes.get("tower.weight", (0, 0))
    return Tower(inputs, width, model.objectives)
