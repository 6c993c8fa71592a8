"""What a model is: a trunk that turns gathered inputs into meta inputs, and a tower that turns those into logits.

A gathered input row is `[C x E pooled embeddings | D standardised numbers | C first-order weights]` (see `Geometry`); for models
that read behaviour sequences, before the weights, U x E embeddings of single places and U marks of which there are. The
tower is a rectified, gated linear layer and an output per objective; its parameters are the fast ones, which are adapted per
task in closed form (`models.adaptation`). Dense parameters are named views of one flat vector.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from models import pages, plugins, towers
from state import columns, config, spec

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
NO_TIMES: I64 = np.zeros(0, np.int64)
NO_FACTORS: F32 = np.zeros(0, np.float32)
Shapes = dict[str, tuple[int, ...]]
Parameters = Mapping[str, torch.Tensor]
SEQUENTIAL = frozenset({"dupn"})
"""Models that read the user's last actions one by one; the others read them pooled."""
FAST = ("tower.weight", "tower.bias", "output.weight", "output.bias")


class Batch(NamedTuple):
    """Whole shown lists with their support, named as on the wire; R rows, L lists, S support rows (oldest first in a list)."""

    ids: U64
    """(R, F) hashes, `PAD` where absent."""
    x: F32
    """(R, D) raw numbers; NaN means absent."""
    label: F32
    """(R, O), NaN where a row has no such label (docs/architecture.md)."""
    weight: F32
    """(R, O) weight of a row's loss."""
    scenario: U64
    """(L,) hash of the scenario."""
    n_items: npt.NDArray[np.integer[Any]]
    """(L,) rows of each list."""
    n_support: npt.NDArray[np.integer[Any]]
    """(L,) support rows of each list."""
    s_ids: U64
    s_x: F32
    s_label: F32
    s_ts: I64 = NO_TIMES
    """(S,) impression times of the support rows in ms; empty: not known, so that none is older than another."""
    importance: F32 = NO_FACTORS
    """(R,) what the loss of each row is multiplied by, beside its weight, which is that of the row in traffic; empty: 1."""


def batch(packed: columns.Columns) -> Batch:
    """The learner's part of an `episodes` record, without a copy."""
    return Batch(**{name: packed[name] for name in Batch._fields if name in packed})


class Support(NamedTuple):
    """One task's support rows, oldest first: ids (k, F), raw numbers (k, D), labels (k, O), times (k,) in ms or none."""

    ids: U64
    x: F32
    label: F32
    ts: I64 = NO_TIMES


class Known(NamedTuple):
    """One task's support rows after the trunk, oldest first: see `MetaInput` with k rows; labels (k, O), times (k,) in ms."""

    hidden: F32
    gate: F32
    offset: F32
    shift: F32
    label: F32
    ts: I64 = NO_TIMES


class Geometry(NamedTuple):
    """Where everything stands in a gathered input row."""

    categories: tuple[str, ...]
    numbers: tuple[str, ...]
    width: int
    objectives: int
    """Logit columns O, what a model gives a tower output each: one per objective, of a multiclass one as many as classes."""
    user: int
    """Position of the category that holds the user id, -1 if none is declared."""
    item: int
    scenario: int
    """Position of the category that holds the scenario, -1 if none is declared."""
    sequences: tuple[str, ...] = ()
    """Categories of the user's last actions that the model reads one by one, beside their pooled embeddings."""
    places: int = 0
    """Id columns U of the sequences."""

    @property
    def embedded(self) -> int:
        """Numbers of the pooled embeddings, C x E."""
        return len(self.categories) * self.width

    @property
    def row(self) -> int:
        """Numbers of a gathered input row."""
        return self.dense + self.places * (self.width + 1) + len(self.categories)

    @property
    def dense(self) -> int:
        """Embeddings and numbers, what a network reads; after them come the places, then the first-order weights."""
        return self.embedded + len(self.numbers)

    def span(self, category: str) -> slice:
        """Columns of a category's embedding."""
        at = self.categories.index(category) * self.width
        return slice(at, at + self.width)


def geometry(settings: config.Config) -> Geometry:
    """The geometry that a configuration declares."""
    categories = settings.features.categories
    sources = [c.source for c in categories]
    reads = settings.model.name in SEQUENTIAL or plugins.sequential(settings.model.name)
    sequences = spec.sequences(settings.features) if reads else ()
    find = {s: i for i, s in reversed(list(enumerate(sources)))}
    return Geometry(
        tuple(c.name for c in categories),
        spec.number_names(settings.features),
        settings.model.embedding_width,
        sum(o.outputs for o in settings.objectives),
        find.get("user_id", -1),
        find.get("item_id", -1),
        find.get("scenario", -1),
        tuple(c.name for c in sequences),
        sum(c.max_values for c in sequences),
    )


class Inputs(NamedTuple):
    """What a trunk reads of n rows, each by itself."""

    x: torch.Tensor
    """Gathered input rows (n, row), see `Geometry`."""
    slot: torch.Tensor
    """(n,) whose parameters a row may use beside the shared ones (int64); 0: nobody's (`models.scenario_slots`)."""
    earned: torch.Tensor
    """(n,) how far the slot's own parameters count, 0 to 1."""


class MetaInput(NamedTuple):
    """What enters the tower, per row and objective. All but the tower's own weights is in here, so whatever differs between
    scenarios does too: own hidden weights as a shift, own output weights as a factor in the gate, own biases in the offset.
    """

    hidden: torch.Tensor
    """(..., O, H1)"""
    gate: torch.Tensor
    """(..., O, H2), times the rectified hidden layer."""
    offset: torch.Tensor
    """(..., O), added to the logit."""
    shift: torch.Tensor
    """(..., O, H2) or (..., O, 1), added to the hidden layer before it is rectified."""


class Gradient:
    """A flat gradient and its named views, for torch and for native kernels."""

    def __init__(self, shapes: Shapes) -> None:
        self.flat = torch.from_numpy(pages.zeros(size(shapes)))
        self.numbers: F32 = self.flat.numpy()
        self.views = views(self.flat, shapes)
        self.arrays: dict[str, F32] = {name: view.numpy() for name, view in self.views.items()}


class Pass(NamedTuple):
    """Probabilities (R, O) before the update, the joint loss, and the gradient of the inputs (R, row), None when only scoring."""

    unadapted: F32
    adapted: F32
    loss: float
    inputs: F32 | None
    broken: npt.NDArray[np.bool_] | None = None
    """(L,) lists whose adaptation diverged (`models.limits`), where the pass has looked; of none if no list did."""


class NativeTrunk(Protocol):
    """The whole network over one flat parameter vector, written by hand. Threads may share it for scoring."""

    def run(self, x: F32, lists: towers.Lists, gradient: Gradient | None) -> Pass:
        """Score R query rows, before V support rows in `x` (R + V, row); with `gradient`, fill it as well."""

    def meta(self, x: F32, found: towers.Meta) -> None:
        """Fill `found` with the meta inputs of the virtual rows of `x` (n, row), the tower's hidden layer entered."""


class Written(Protocol):
    """A trunk and the tower's hidden layer with their gradient, without autograd, over the views that it was built with."""

    def forward(self, inputs: Inputs) -> tuple[towers.Meta, Any]:
        """Meta inputs of n rows' virtual rows, the hidden layer entered, and what `backward` needs of them."""

    def backward(self, saved: Any, slopes: towers.Meta) -> F32:
        """Fill the gradient from that of the first R rows' meta inputs, overwritten; returns that (R, row) of their inputs.

        What `slopes.hidden` has is beside what comes through the hidden layer.
        """


class Model(Protocol):
    """A network as pure functions of its parameters. Rows never see one another: no statistics of a mixed batch."""

    shapes: Shapes
    """By dotted name. What scenarios own has a part `own` in its name and lies slot by slot (`models.scenario_slots.OWN`)."""
    objectives: int
    """Logit columns, as in `Geometry`."""

    def initial(self, seed: int) -> torch.Tensor:
        """The flat vector of initial parameters; the same seed gives the same bytes."""

    def trunk(self, parameters: Parameters, inputs: Inputs) -> MetaInput:
        """Meta inputs of n rows."""

    def tower(self, fast: Parameters, meta: MetaInput) -> torch.Tensor:
        """Meta inputs to logits (n, O)."""

    def fast_parameters(self) -> tuple[str, ...]:
        """Names of the parameters that are adapted per task."""

    def inspect(self, parameters: Parameters, inputs: Inputs) -> dict[str, torch.Tensor]:
        """What its gates say of n rows, by name: (n, ...) factors or shares, for people to read; empty without gates."""

    def written(self, parameters: Parameters, gradient: Parameters) -> Written | None:
        """The same trunk with its gradient written by hand, or None: autograd then does the work."""

    def native(self, flat: torch.Tensor) -> NativeTrunk | None:
        """The whole network as one native call over this flat vector, or None: torch then does the work."""


def tower(fast: Parameters, meta: MetaInput) -> torch.Tensor:
    """The tower that closed-form adaptation knows: relu(h W + b + shift) x gate, then an output per objective. Logits (n, O)."""
    hidden = torch.relu(meta.hidden @ fast["tower.weight"] + fast["tower.bias"] + meta.shift) * meta.gate
    return (hidden * fast["output.weight"]).sum(-1) + fast["output.bias"] + meta.offset


def without_hidden(offset: torch.Tensor) -> MetaInput:
    """Meta inputs of a model that has no tower: logits (n, O) but the bias, and hidden layers of no width."""
    nothing = offset.new_zeros(*offset.shape, 0)
    return MetaInput(nothing, nothing, offset, offset.new_zeros(*offset.shape, 1))


def size(shapes: Shapes) -> int:
    """Numbers in a flat vector of these shapes."""
    return sum(math.prod(s) for s in shapes.values())


def views(flat: torch.Tensor, shapes: Shapes) -> dict[str, torch.Tensor]:
    """Named views of a flat vector, in the order of declaration."""
    out, at = {}, 0
    for name, shape in shapes.items():
        n = math.prod(shape)
        out[name] = flat[at : at + n].view(shape)
        at += n
    return out


def fan_in_normal(shapes: Shapes, seed: int) -> torch.Tensor:
    """Weights (in, out) from a normal of variance 1 / in, everything one-dimensional zero."""
    generator = torch.Generator().manual_seed(seed)
    flat = torch.zeros(size(shapes))
    for view in views(flat, shapes).values():
        if view.dim() > 1:
            view.copy_(torch.randn(view.shape, generator=generator) / view.shape[-2] ** 0.5)
    return flat
