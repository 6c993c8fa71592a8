"""Adam or AdaGrad over the flat vector of dense parameters, behind a guard on its gradient; embeddings have their own rule.

What scenarios own moves with rows of theirs only: a slot that a minibatch lacks keeps its numbers, moments and average, and
counts its own steps ("lazy" Adam), or momentum and decay would move what nobody has said anything about. The wide part's weights
and vectors of numbers are what embeddings are for ids, and follow AdaGrad as those do, per number; so do its scales by objective,
which must be able to change their sign soon: an objective that others contradict reads what they share the other way round.
What is published is an average of the parameters over the last steps (Polyak and Juditsky 1992): small minibatches leave noise in
the newest ones, which training on does not mind and ranking does.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models import base, kernels, scenario_slots
from state import config
from state.kernels import Plain, kernel

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
SUMMED = ("wide.first", "wide.numbers")
"""Parameters that always follow AdaGrad, at `optimizer.wide_rate`."""
SCALES = ("wide.scale",)
"""Parameters that follow AdaGrad at `optimizer.scale_rate` where there are several objectives, unless that is 0."""
AVERAGE_START = 9.0
ADAM, ADAGRAD, WIDE, SCALE = range(4)
NOBODY: I64 = np.zeros(0, np.int64)
CHUNK = 1024
"""Numbers that stay in the cache from the step to the average."""


class Rules(NamedTuple):
    """Settings of the rules `ADAM`, `ADAGRAD`, `WIDE` and `SCALE`, of the guard and of the average, for the kernel."""

    dense_rate: float
    wide_rate: float
    scale_rate: float
    beta1: float
    beta2: float
    decay: float
    most: float
    """Norm that a gradient is scaled down to."""
    average: float
    dense: int
    """Of the rules, that of what scenarios own."""


class State(NamedTuple):
    """What `descend` changes and goes by: moments, steps of all and by slot, spans (from, to, rule), owned (start, numbers)."""

    mean: F32
    square: F32
    average: F32
    step: I64
    slot_steps: I64
    spans: I64
    owned: I64


class Owned(NamedTuple):
    """Parameters that scenarios own, and slots (nobody's among them) whose numbers each holds one after the other."""

    spans: Sequence[scenario_slots.Span] = ()
    slots: int = 0


NONE_OWNED = Owned()


class Dense:
    """State of `optimizer.dense` for one flat float32 vector, updated in place.

    In the spans `wide` and `scales` (from, to) it is always AdaGrad, each at its own rate.

    What is `owned` is updated slot by slot, where a minibatch has rows of the slot. AdaGrad's sum of squares stands where Adam
    has its second moment.
    """

    def __init__(
        self, size: int, settings: config.Optimizer, wide: Sequence[tuple[int, int]] = (), owned: Owned = NONE_OWNED,
        scales: Sequence[tuple[int, int]] = (),
    ) -> None:  # fmt: skip
        self.settings = settings
        self.mean, self.square = np.zeros(size, np.float32), np.zeros(size, np.float32)
        self.step = np.zeros(1, np.int64)
        self.slot_steps = np.zeros(owned.slots if owned.spans else 0, np.int64)
        ruled = [*((a, z, WIDE) for a, z in wide), *((a, z, SCALE) for a, z in scales)]
        apart = [*((a, z) for a, z, _ in ruled), *((span.start, span.start + span.each * owned.slots) for span in owned.spans)]
        bounds = [0, *(at for span in sorted(apart) for at in span), size]
        others = [(a, z) for a, z in zip(bounds[::2], bounds[1::2], strict=True) if a < z]
        self.average = np.zeros(size, np.float32)
        rule = ADAGRAD if settings.dense == "adagrad" else ADAM
        spans = np.array([*((a, z, rule) for a, z in others), *ruled], np.int64).reshape(-1, 3)
        for a, z, kind in spans.tolist():
            if kind != ADAM:
                self.square[a:z] = settings.embedding_accumulator
        if rule != ADAM:
            for start, each in owned.spans:
                self.square[start : start + each * owned.slots] = settings.embedding_accumulator
        s = settings
        self.rules = Rules(
            s.dense_rate, s.wide_rate, s.scale_rate, s.beta1, s.beta2, s.weight_decay, s.max_gradient_norm, s.average, rule
        )  # fmt: skip
        own = np.array(owned.spans, np.int64).reshape(-1, 2)
        self.state = State(self.mean, self.square, self.average, self.step, self.slot_steps, spans, own)

    def descend(self, values: F32, gradient: F32, norm: float, slot: I64 = NOBODY) -> None:
        """One step by rows of these slots (n,); a gradient of a norm above `max_gradient_norm` is scaled down to it."""
        _descend(values, gradient, tuple(self.state), tuple(self.rules), norm, slot)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Moments and steps as views."""
        own = {"adam.slot_steps": self.slot_steps} if len(self.slot_steps) else {}
        return {"adam.mean": self.mean, "adam.square": self.square, "adam.step": self.step, **own}

    def complete(self, arrays: Mapping[str, npt.NDArray[Any]]) -> Mapping[str, npt.NDArray[Any]]:
        """Arrays from before slots counted their steps: then each took every step."""
        if "adam.slot_steps" in arrays or not {"adam.step", "slots.rows"} <= arrays.keys():
            return arrays
        return {**arrays, "adam.slot_steps": np.repeat(arrays["adam.step"], len(arrays["slots.rows"]))}


def spans(shapes: base.Shapes, names: Collection[str] = SUMMED) -> list[tuple[int, int]]:
    """Where parameters of these names stand in the flat vector, neighbours as one span."""
    found: list[tuple[int, int]] = []
    at = 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        if name in names and size:
            joined = bool(found) and found[-1][1] == at
            found[-1:] = [(found[-1][0], at + size)] if joined else [*found[-1:], (at, at + size)]
        at += size
    return found


@kernel
def _descend(values: F32, gradient: F32, state: Plain, rules: Plain, norm: float, slot: I64) -> None:
    descend(values, gradient, State(*state), Rules(*rules), norm, slot)


@kernel
def descend(values: F32, gradient: F32, state: State, rules: Rules, norm: float, slot: I64) -> None:
    """A step of every span, and of the average towards it, see `Dense.descend`."""
    scale = min(1.0, rules.most / norm) if norm > 0 else 1.0
    state.step[0] += 1
    for k in range(len(state.spans)):
        first, last, rule = state.spans[k]
        _part(values, gradient, state, first, last, rule, rules, scale, state.step[0])
    if len(state.slot_steps):
        _descend_own(values, gradient, state, slot, rules, scale)


@kernel
def _descend_own(values: F32, gradient: F32, state: State, slot: I64, rules: Rules, scale: float) -> None:
    """The same for every slot that is there, of what each parameter (start, numbers of a slot) holds of it."""
    steps, owned = state.slot_steps, state.owned
    there = np.zeros(len(steps), np.bool_)
    for s in slot:
        there[s] = True
    for s in range(len(steps)):
        if not there[s]:
            continue
        steps[s] += 1
        for k in range(len(owned)):
            start = owned[k, 0] + s * owned[k, 1]
            _part(values, gradient, state, start, start + owned[k, 1], rules.dense, rules, scale, steps[s])


@kernel
def _part(
    values: F32, gradient: F32, state: State, first: int, last: int, rule: int, rules: Rules, scale: float, step: int
) -> None:
    """The `step`th step of the numbers from `first` to `last`, and of their average."""
    # The early steps, whose parameters are soon outdated, weigh less than in a plain mean.
    share = max(1.0 - rules.average, AVERAGE_START / (AVERAGE_START + step))
    mean, square, average = state.mean, state.square, state.average
    for start in range(first, last if rule == ADAM else first, CHUNK):
        part = slice(start, min(start + CHUNK, last))
        kernels.adam(
            values[part], mean[part], square[part], gradient[part], scale, step, rules.dense_rate, rules.beta1, rules.beta2,
            rules.decay,
        )  # fmt: skip
        _approach(average[part], values[part], share)
    if rule != ADAM:
        rate, decay = (rules.dense_rate, rules.decay) if rule == ADAGRAD else (rules.wide_rate, 0.0)
        rate = rules.scale_rate if rule == SCALE else rate
        own = slice(first, last)
        _adagrad(values[own], square[own], average[own], gradient[own], scale, rate, decay, share)


@kernel
def _adagrad(
    values: F32, square: F32, average: F32, gradient: F32, scale: float, rate: float, decay: float, share: float
) -> None:  # fmt: skip
    """AdaGrad (Duchi et al. 2011), an accumulator for each number, with decoupled weight decay; `scale` is of gradients.

    Then a step of the average by `share`.
    """
    by, s, keep, near = np.float32(rate), np.float32(scale), np.float32(1.0 - rate * decay), np.float32(share)
    for i in range(len(values)):
        g = gradient[i] * s
        total, mean = square[i] + g * g, average[i]
        value = values[i] * keep - by * g / (np.sqrt(total) + np.float32(1e-8))
        square[i], values[i] = total, value
        average[i] = mean + near * (value - mean)


@kernel
def _approach(average: F32, values: F32, share: float) -> None:
    by = np.float32(share)
    for i in range(len(values)):
        average[i] += by * (values[i] - average[i])


def norm(gradient: F32) -> float:
    """Euclidean norm; not finite if any number is not."""
    return math.sqrt(total) if math.isfinite(total := kernels.squares(gradient)) else math.nan
