"""PEPNet's training step by hand, one native call: trunk and wide part, tower and adaptation, and every gradient.

The reference is `models.pepnet` under autograd; the tests hold the two together. Covers the usual form of the network (both
gates, stopped gradients, at least two hidden layers); other forms take the autograd path.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from models import base, limits, towers, wide
from models.matrices import Workspace, borrowed, product, rectify, room, sigmoid, turned, workspace
from models.pepnet_layers import (
    Plan,
    affine_at,
    affine_back,
    gate_logits,
    gate_logits_back,
    gated,
    gated_back,
    join,
    layer_of,
    rectify_back,
    sigmoid_back,
    split,
    virtual_of,
    weight_at,
    weight_back,
)
from state import config
from state.kernels import Plain, kernel

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
_NONE_BROKEN: Bools = np.zeros(0, np.bool_)


class Saved(NamedTuple):
    """A forward pass's activations. Layers and gates are blocks of `layer`, one after another."""

    seen: F32
    """EPNet's hidden layer (N, G)."""
    gate: F32
    """EPNet's gates (N, C x E)."""
    entry: F32
    """[gated embeddings | numbers | personal embeddings] (N, P)"""
    within: F32
    """Every PPNet gate's hidden layer (N, layers x O x G)."""
    gates: F32
    first: F32
    """First hidden layer before its gates (N, width)."""
    active: F32
    """Later hidden layers before their gates."""
    hidden: F32
    """Hidden layers behind their gates; the last enters the tower."""
    wide: wide.Sums


@kernel
def _forward(
    plan: Plan, flat: F32, x: F32, beside: wide.Plan, weights: wide.Arrays, space: Workspace
) -> tuple[towers.Meta, Saved]:  # fmt: skip
    """Meta inputs of gathered rows (N, row)."""
    n, objectives, hidden_in, layers = len(x), plan.objectives, plan.gate_hidden, len(plan.layers)
    seen, gate = room(space, n, hidden_in), room(space, n, plan.embedded)
    affine_at(x[:, : plan.dense], flat, plan.epnet_in, seen)
    rectify(seen)
    affine_at(seen, flat, plan.epnet_out, gate)
    sigmoid(gate, plan.gamma)
    entry = room(space, n, plan.dense + len(plan.personal) * plan.width)
    join(x, gate, plan, entry)
    within, gates = room(space, n, layers * objectives * hidden_in), room(space, 1, n * plan.starts[layers])
    affine_at(entry, flat, plan.ppnet_in, within)
    rectify(within)
    for i in range(layers):
        gate_logits(plan, flat, within, i, layer_of(gates[0], n, plan, i))
    sigmoid(gates, plan.gamma)
    first = room(space, n, plan.layers[0])
    affine_at(entry[:, : plan.dense], flat, plan.hidden[0], first)
    rectify(first)
    active, hidden = room(space, 1, n * plan.starts[layers - 1])[0], room(space, 1, n * plan.starts[layers - 1])[0]
    gated(first, layer_of(gates[0], n, plan, 0), layer_of(hidden, n, plan, 0))
    for i in range(1, layers - 1):
        own = layer_of(active, n, plan, i)
        affine_at(virtual_of(hidden, n, plan, i - 1), flat, plan.hidden[i], virtual_of(active, n, plan, i))
        rectify(own)
        gated(own, layer_of(gates[0], n, plan, i), layer_of(hidden, n, plan, i))
    entering = virtual_of(hidden, n, plan, layers - 2)
    z, offset = room(space, n * objectives, plan.layers[-1]), room(space, n, objectives)
    affine_at(entering, flat, plan.hidden[-1], z)
    sums = wide.forward(x, beside, weights, offset)
    meta = towers.Meta(entering, z, virtual_of(gates[0], n, plan, layers - 1), offset.reshape(n * objectives, 1))
    return meta, Saved(seen, gate, entry, within, gates[0], first, active, hidden, sums)


@kernel
def _backward(
    plan: Plan, flat: F32, x: F32, saved: Saved, dgates: F32, slopes: towers.Slopes, gradient: F32, dx: F32, space: Workspace
) -> None:
    """Fill `gradient` and the gradient `dx` (R, row) of the first R inputs from the tower's slopes, but for the wide part."""
    n, rows, objectives, layers = len(x), len(dx), plan.objectives, len(plan.layers)
    dhidden = slopes.hidden
    affine_back(virtual_of(saved.hidden, n, plan, layers - 2), slopes.z, flat, plan.hidden[-1], gradient, dhidden, True, space)
    last = virtual_of(dgates, rows, plan, layers - 1)
    sigmoid_back(last, virtual_of(saved.gates, n, plan, layers - 1), plan.gamma)
    for i in range(layers - 2, 0, -1):
        slope = dhidden.reshape(rows, objectives * plan.layers[i])
        gated_back(
            slope, layer_of(saved.active, n, plan, i), layer_of(saved.gates, n, plan, i), plan.gamma,
            layer_of(dgates, rows, plan, i), slope,
        )  # fmt: skip
        below = room(space, rows * objectives, plan.layers[i - 1])
        affine_back(virtual_of(saved.hidden, n, plan, i - 1), dhidden, flat, plan.hidden[i], gradient, below, False, space)
        dhidden = below
    dfirst, dwithin = room(space, rows, plan.layers[0]), room(space, rows, saved.within.shape[1])
    gated_back(
        dhidden.reshape(rows, objectives * plan.layers[0]), saved.first, layer_of(saved.gates, n, plan, 0), plan.gamma,
        layer_of(dgates, rows, plan, 0), dfirst,
    )  # fmt: skip
    for i in range(layers):
        gate_logits_back(plan, flat, saved.within, i, layer_of(dgates, rows, plan, i), gradient, dwithin, space)
    rectify_back(dwithin, saved.within)
    dentry, dpersonal = room(space, rows, plan.embedded), room(space, rows, saved.entry.shape[1] - plan.dense)
    weight_back(saved.entry[:, : plan.dense], dfirst, gradient, plan.hidden[0])
    weight_back(saved.entry, dwithin, gradient, plan.ppnet_in)
    product(dfirst, turned(weight_at(flat, plan.hidden[0], plan.embedded, dfirst.shape[1]), space), dentry, False)
    personal = plan.ppnet_in + plan.dense * dwithin.shape[1]
    product(dwithin, turned(weight_at(flat, personal, dpersonal.shape[1], dwithin.shape[1]), space), dpersonal, False)
    dgate, dseen = room(space, rows, plan.embedded), room(space, rows, plan.gate_hidden)
    split(x, saved.gate, dentry, dpersonal, plan, dgate, dx)
    affine_back(saved.seen, dgate, flat, plan.epnet_out, gradient, dseen, False, space)
    rectify_back(dseen, saved.seen)
    weight_back(x[:, : plan.dense], dseen, gradient, plan.epnet_in)
    for start in plan.scenario:
        own = weight_at(flat, plan.epnet_in + start * plan.gate_hidden, plan.width, plan.gate_hidden)
        product(dseen, turned(own, space), dx[:, start : start + plan.width], True)


@kernel
def _run(
    plan: Plan, beside: wide.Plan, flat: F32, x: F32, lists: towers.Lists, settings: towers.Settings, train: bool,
    unadapted: F32, fitted: F32, gradient: F32, dx: F32, space: Workspace,
) -> float:  # fmt: skip
    """Score; when training, also fill `gradient` and `dx`. Returns the joint loss."""
    space, plan, lists = borrowed(space), borrowed(plan), borrowed(lists)
    flat, x, gradient, dx = borrowed(flat), borrowed(x), borrowed(gradient), borrowed(dx)
    space.used[0] = 0
    rows, objectives, layers = len(lists.label), plan.objectives, len(plan.layers)
    width = plan.layers[-1]
    biases = plan.output + objectives * width
    own = wide.cut(flat, plan.wide, beside)
    meta, saved = _forward(plan, flat, x, beside, own, space)
    tower = towers.Tower(weight_at(flat, plan.output, objectives, width), flat[biases : biases + objectives])
    written = gradient if train else room(space, 1, len(flat))[0]
    dgates, virtual = room(space, 1, rows * plan.starts[layers])[0], rows * objectives
    slopes = towers.Slopes(
        room(space, virtual, plan.layers[layers - 2]), room(space, virtual, width), virtual_of(dgates, rows, plan, layers - 1),
        room(space, virtual, 1), weight_at(written, plan.output, objectives, width),
        written[biases : biases + objectives],
    )  # fmt: skip
    loss = towers.joint(meta, tower, lists, settings, unadapted, fitted, slopes, train, space)
    if train:
        _backward(plan, flat, x, saved, dgates, slopes, gradient, dx, space)
        doffset = slopes.offset.reshape(rows, objectives)
        slope = wide.cut(gradient, plan.wide, beside)
        wide.backward(x, beside, own, saved.wide, doffset, slope, dx)
    return loss


@kernel
def _enter(
    plan: Plain, beside: Plain, flat: F32, x: F32, lists: Plain, settings: Plain, train: bool,
    unadapted: F32, fitted: F32, gradient: F32, dx: F32, space: Plain, broken: Bools,
) -> tuple[float, bool]:  # fmt: skip
    """`_run`, and whether there are `broken` lists (L,), whose adaptation diverged."""
    asked = towers.Lists(*lists)
    loss = _run(
        Plan(*plan), wide.Plan(*beside), flat, x, asked, towers.Settings(*settings), train, unadapted, fitted, gradient, dx,
        Workspace(*space),
    )  # fmt: skip
    limits.find(unadapted, fitted, asked.n_items, asked.taken, broken)
    return loss, bool(broken.any())


@kernel
def _enter_trunk(plan: Plain, beside: Plain, flat: F32, x: F32, found: Plain, space: Plain) -> None:
    """Fill meta inputs, as `towers.Meta`, of gathered rows."""
    shape, wider, memory, out = Plan(*plan), wide.Plan(*beside), Workspace(*space), towers.Meta(*found)
    memory.used[0] = 0
    meta, _ = _forward(shape, flat, x, wider, wide.cut(flat, shape.wide, wider), memory)
    out.hidden[:], out.z[:], out.gate[:], out.offset[:] = meta.hidden, meta.z, meta.gate, meta.offset


def covers(settings: config.Config) -> bool:
    """Whether the configuration asks for the form of the network that is written out here."""
    model = settings.model
    return model.use_epnet and model.use_ppnet and model.stop_gradient and len(model.hidden) >= 2


def _plan(settings: config.Config, shapes: base.Shapes) -> Plan:
    geometry, model = base.geometry(settings), settings.model
    sizes = [base.size({name: shape}) for name, shape in shapes.items()]
    at = dict(zip(shapes, np.cumsum([0, *sizes]).tolist(), strict=False)) | {"end": sum(sizes)}
    layers = range(len(model.hidden))

    def columns(names: tuple[str, ...]) -> I64:
        return np.array([geometry.span(n).start for n in dict.fromkeys(names) if n in geometry.categories], np.int64)

    return Plan(
        geometry.embedded, geometry.dense, geometry.width, model.gamma, model.gate_hidden, geometry.objectives,
        np.array([geometry.span(n).start for n in model.personal_features if n in geometry.categories], np.int64),
        columns(model.scenario_features),
        np.array(model.hidden, np.int64),
        np.cumsum([0, *(geometry.objectives * width for width in model.hidden)]),
        at["epnet.in.weight"], at["epnet.out.weight"],
        np.array([at["tower.weight" if i == layers[-1] else f"hidden{i}.weight"] for i in layers], np.int64),
        at["ppnet.in.weight"], np.array([at[f"ppnet.out{i}.weight"] for i in layers], np.int64),
        at["output.weight"], at.get("wide.scale", at["end"]),
    )  # fmt: skip


class Network:
    """The whole network over one flat parameter vector; threads may share it."""

    def __init__(self, settings: config.Config, shapes: base.Shapes, flat: torch.Tensor) -> None:
        self.plan, self.flat, meta = _plan(settings, shapes), flat.numpy(), settings.meta
        self._geometry = tuple(self.plan), tuple(wide.plan(settings))
        self._settings = tuple(towers.Settings(meta.inner_rate, meta.inner_steps, meta.weight, meta.prior_rows))
        self._fixed, self._each, self._trained = _sizes(self.plan, len(self.flat))
        self._entry, self._last = int(self.plan.layers[-2]), int(self.plan.layers[-1])
        self._spare: list[Workspace] = []

    def run(self, x: F32, lists: towers.Lists, gradient: base.Gradient | None) -> base.Pass:
        """See `base.NativeModel`."""
        label, train = lists.label, gradient is not None
        unadapted, fitted = np.empty_like(label), np.empty_like(label)
        dx = np.empty((len(label) if train else 0, x.shape[1]), np.float32)
        space = self._space(len(x), lists)
        broken = np.zeros(len(lists.taken), np.bool_)
        loss, any_broken = _enter(
            *self._geometry, self.flat, x, tuple(lists), self._settings, train, unadapted, fitted,
            self.flat[:0] if gradient is None else gradient.numbers, dx, tuple(space), broken,
        )  # fmt: skip
        self._spare.append(space)
        return base.Pass(unadapted, fitted, loss, dx if train else None, broken if any_broken else _NONE_BROKEN)

    def meta(self, x: F32, found: towers.Meta) -> None:
        """See `base.NativeTrunk`."""
        space = self._taken(self._fixed + len(x) * self._each)
        _enter_trunk(*self._geometry, self.flat, x, tuple(found), tuple(space))
        self._spare.append(space)

    def _space(self, n: int, lists: towers.Lists) -> Workspace:
        """Memory for a call on n rows."""
        plan, rows = self.plan, len(lists.label)
        tower = towers.room_needed(rows, rows, len(lists.at), plan.objectives, self._entry, self._last)
        return self._taken(self._fixed + n * self._each + rows * self._trained + tower)

    def _taken(self, needed: int) -> Workspace:
        """Memory for so many numbers: what an earlier call left, if it is enough."""
        try:
            space = self._spare.pop()
        except IndexError:
            return workspace(needed)
        return space if len(space.numbers) >= needed else workspace(needed + needed // 4)


def _sizes(plan: Plan, parameters: int) -> tuple[int, int, int]:
    """Numbers that a pass takes from the workspace beside tower and wide part: always, for every row, for a row trained on."""
    gates, before, after = len(plan.layers) * plan.objectives * plan.gate_hidden, int(plan.starts[-2]), int(plan.starts[-1])
    entry, first = plan.dense + len(plan.personal) * plan.width, int(plan.layers[0])
    forward = plan.gate_hidden + plan.embedded + entry + gates + 2 * after + 2 * before + first + plan.objectives
    backward = 2 * after + before + plan.objectives + first + gates + entry + 2 * plan.embedded + plan.gate_hidden
    return 2 * parameters + 1024, forward, backward
