"""PEPNet's training step by hand, one native call: trunk and wide part, tower and adaptation, and every gradient.

The reference is `models.pepnet` under autograd; the tests hold the two together. Covers the usual form of the network (both
gates, stopped gradients, at least two hidden layers); other forms take the autograd path.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from models import base, limits, towers, wide
from models.matrices import Workspace, affine, borrowed, column_sums, part, product, room, sigmoid, turned, workspace
from models.matrices import flat as run_of
from state import config
from state.kernels import Plain, kernel

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
_NONE_BROKEN: Bools = np.zeros(0, np.bool_)


class Plan(NamedTuple):
    """Geometry for the kernels; offsets are places in the flat vector of parameters, where a bias follows its weight."""

    embedded: int
    """C x E"""
    dense: int
    """Embeddings and numbers, what the network reads."""
    width: int
    """E"""
    gamma: float
    gate_hidden: int
    objectives: int
    personal: I64
    """First columns of the personal embeddings."""
    scenario: I64
    """First columns of the embeddings that EPNet's gate changes."""
    layers: I64
    """Widths of the hidden layers; the last one is the tower's."""
    starts: I64
    """O x sum of the layers before each, and of all."""
    epnet_in: int
    epnet_out: int
    hidden: I64
    """Of every layer; the last is the tower's."""
    ppnet_in: int
    ppnet_out: I64
    """Of every layer's gates (O, G, width)."""
    output: int
    wide: int


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
def _weight(flat: F32, at: int, rows: int, columns: int) -> F32:
    return part(flat, at, rows, columns)


@kernel
def _affine(x: F32, flat: F32, at: int, out: F32) -> None:
    """Fill out = x W + b with the layer at `at`."""
    rows, columns = x.shape[1], out.shape[1]
    bias = at + rows * columns
    affine(x, _weight(flat, at, rows, columns), flat[bias : bias + columns], out)


@kernel
def _weight_back(x: F32, slope: F32, gradient: F32, at: int) -> None:
    """The gradient of the layer at `at` from that of its output (n, columns), whose inputs were the first n of `x`."""
    rows, columns = x.shape[1], slope.shape[1]
    bias = at + rows * columns
    product(x[: len(slope)].T, slope, _weight(gradient, at, rows, columns), False)
    column_sums(slope, gradient[bias : bias + columns])


@kernel
def _affine_back(x: F32, slope: F32, flat: F32, at: int, gradient: F32, dx: F32, add: bool, space: Workspace) -> None:
    """`_weight_back`, and the gradient `dx` of its inputs."""
    _weight_back(x, slope, gradient, at)
    product(slope, turned(_weight(flat, at, dx.shape[1], slope.shape[1]), space), dx, add)


@kernel
def _layer(blocks: F32, rows: int, plan: Plan, i: int) -> F32:
    """Block i of layers side by side (rows, O x width)."""
    return part(blocks, rows * plan.starts[i], rows, plan.starts[i + 1] - plan.starts[i])


@kernel
def _virtual(blocks: F32, rows: int, plan: Plan, i: int) -> F32:
    """The same block (rows x O, width)."""
    return part(blocks, rows * plan.starts[i], rows * plan.objectives, plan.layers[i])


@kernel
def _rectify(values: F32) -> None:
    numbers = run_of(values)
    for i in range(len(numbers)):
        value = numbers[i]
        numbers[i] = np.float32(0) if value < 0 else value


@kernel
def _rectify_back(slope: F32, active: F32) -> None:
    """Where the active row of the forward pass is not above zero, its gradient is zero."""
    for i in range(slope.shape[0]):
        for j in range(slope.shape[1]):
            slope[i, j] = slope[i, j] if active[i, j] > 0 else np.float32(0)


@kernel
def _sigmoid_back(slope: F32, value: F32, gamma: float) -> None:
    """From the gradient of gamma x sigmoid to that of its logit."""
    inverse = np.float32(1.0 / gamma)
    for i in range(slope.shape[0]):
        for j in range(slope.shape[1]):
            slope[i, j] *= value[i, j] * (np.float32(1) - value[i, j] * inverse)


@kernel
def _join(x: F32, gate: F32, plan: Plan, entry: F32) -> None:
    for i in range(x.shape[0]):
        for j in range(plan.embedded):
            entry[i, j] = x[i, j] * gate[i, j]
        for j in range(np.uintp(plan.embedded), np.uintp(plan.dense)):
            entry[i, j] = x[i, j]
        at = np.uintp(plan.dense)
        for start in plan.personal:
            for d in range(np.uintp(plan.width)):
                entry[i, at + d] = x[i, np.uintp(start) + d]
            at += np.uintp(plan.width)


@kernel
def _gated(active: F32, gate: F32, out: F32) -> None:
    """`out` (n, O x width) = active x gate; an active row of one width serves all objectives."""
    columns = np.uintp(active.shape[1])
    for i in range(len(out)):
        # Unsigned places: a sum that might be negative would be checked for it, and the loop not be vectorised.
        for at in range(np.uintp(0), np.uintp(out.shape[1]), columns):
            for j in range(columns):
                out[i, at + j] = active[i, j] * gate[i, at + j]


@kernel
def _gated_back(slope: F32, active: F32, gate: F32, gamma: float, dgate: F32, out: F32) -> None:
    """Backward of `_gated`, of the gate's gamma x sigmoid and of the rectifier; `out` may be `slope` where it is as wide."""
    columns, inverse, one = np.uintp(active.shape[1]), np.float32(1.0 / gamma), np.float32(1)
    for i in range(len(slope)):
        for at in range(np.uintp(0), np.uintp(slope.shape[1]), columns):
            for j in range(columns):
                by = gate[i, at + j]
                dgate[i, at + j] = slope[i, at + j] * active[i, j] * by * (one - by * inverse)
        for j in range(columns):
            out[i, j] = slope[i, j] * gate[i, j]
        for at in range(columns, np.uintp(slope.shape[1]), columns):
            for j in range(columns):
                out[i, j] += slope[i, at + j] * gate[i, at + j]
        for j in range(columns):
            out[i, j] = out[i, j] if active[i, j] > 0 else np.float32(0)


@kernel
def _split(x: F32, gate: F32, dentry: F32, dpersonal: F32, plan: Plan, dgate: F32, dx: F32) -> None:
    """Backward of `_join`: gradients of the gate's logit and of the inputs."""
    inverse = np.float32(1.0 / plan.gamma)
    for i in range(dx.shape[0]):
        for j in range(plan.embedded):
            g = gate[i, j]
            dgate[i, j] = dentry[i, j] * x[i, j] * g * (np.float32(1) - g * inverse)
        for j in range(plan.embedded):
            dx[i, j] = dentry[i, j] * gate[i, j]
        for j in range(np.uintp(plan.embedded), np.uintp(dx.shape[1])):
            dx[i, j] = 0
        at = np.uintp(0)
        for start in plan.personal:
            for d in range(np.uintp(plan.width)):
                dx[i, np.uintp(start) + d] += dpersonal[i, at + d]
            at += np.uintp(plan.width)


@kernel
def _forward(
    plan: Plan, flat: F32, x: F32, beside: wide.Plan, weights: wide.Arrays, space: Workspace
) -> tuple[towers.Meta, Saved]:  # fmt: skip
    """Meta inputs of gathered rows (N, row)."""
    n, objectives, hidden_in, layers = len(x), plan.objectives, plan.gate_hidden, len(plan.layers)
    seen, gate = room(space, n, hidden_in), room(space, n, plan.embedded)
    _affine(x[:, : plan.dense], flat, plan.epnet_in, seen)
    _rectify(seen)
    _affine(seen, flat, plan.epnet_out, gate)
    sigmoid(gate, plan.gamma)
    entry = room(space, n, plan.dense + len(plan.personal) * plan.width)
    _join(x, gate, plan, entry)
    within, gates = room(space, n, layers * objectives * hidden_in), room(space, 1, n * plan.starts[layers])
    _affine(entry, flat, plan.ppnet_in, within)
    _rectify(within)
    for i in range(layers):
        _gates(plan, flat, within, i, _layer(gates[0], n, plan, i))
    sigmoid(gates, plan.gamma)
    first = room(space, n, plan.layers[0])
    _affine(entry[:, : plan.dense], flat, plan.hidden[0], first)
    _rectify(first)
    active, hidden = room(space, 1, n * plan.starts[layers - 1])[0], room(space, 1, n * plan.starts[layers - 1])[0]
    _gated(first, _layer(gates[0], n, plan, 0), _layer(hidden, n, plan, 0))
    for i in range(1, layers - 1):
        own = _layer(active, n, plan, i)
        _affine(_virtual(hidden, n, plan, i - 1), flat, plan.hidden[i], _virtual(active, n, plan, i))
        _rectify(own)
        _gated(own, _layer(gates[0], n, plan, i), _layer(hidden, n, plan, i))
    entering = _virtual(hidden, n, plan, layers - 2)
    z, offset = room(space, n * objectives, plan.layers[-1]), room(space, n, objectives)
    _affine(entering, flat, plan.hidden[-1], z)
    sums = wide.forward(x, beside, weights, offset)
    meta = towers.Meta(entering, z, _virtual(gates[0], n, plan, layers - 1), offset.reshape(n * objectives, 1))
    return meta, Saved(seen, gate, entry, within, gates[0], first, active, hidden, sums)


@kernel
def _gates(plan: Plan, flat: F32, within: F32, i: int, out: F32) -> None:
    """Logits of layer i's gates (n, O x width)."""
    width, hidden = plan.layers[i], plan.gate_hidden
    biases = plan.ppnet_out[i] + plan.objectives * hidden * width
    bias = flat[biases : biases + plan.objectives * width]
    for o in range(plan.objectives):
        at = (i * plan.objectives + o) * hidden
        weight = _weight(flat, plan.ppnet_out[i] + o * hidden * width, hidden, width)
        affine(within[:, at : at + hidden], weight, bias[o * width : (o + 1) * width], out[:, o * width : (o + 1) * width])


@kernel
def _gates_back(
    plan: Plan, flat: F32, within: F32, i: int, dgate: F32, gradient: F32, dwithin: F32, space: Workspace
) -> None:  # fmt: skip
    """Backward of `_gates`: fills its part of `gradient` and of `dwithin`."""
    width, hidden = plan.layers[i], plan.gate_hidden
    biases = plan.ppnet_out[i] + plan.objectives * hidden * width
    column_sums(dgate, gradient[biases : biases + plan.objectives * width])
    for o in range(plan.objectives):
        first, at = (i * plan.objectives + o) * hidden, plan.ppnet_out[i] + o * hidden * width
        own = dgate[:, o * width : (o + 1) * width]
        product(within[: len(dgate), first : first + hidden].T, own, _weight(gradient, at, hidden, width), False)
        product(own, turned(_weight(flat, at, hidden, width), space), dwithin[:, first : first + hidden], False)


@kernel
def _backward(
    plan: Plan, flat: F32, x: F32, saved: Saved, dgates: F32, slopes: towers.Slopes, gradient: F32, dx: F32, space: Workspace
) -> None:
    """Fill `gradient` and the gradient `dx` (R, row) of the first R inputs from the tower's slopes, but for the wide part."""
    n, rows, objectives, layers = len(x), len(dx), plan.objectives, len(plan.layers)
    dhidden = slopes.hidden
    _affine_back(_virtual(saved.hidden, n, plan, layers - 2), slopes.z, flat, plan.hidden[-1], gradient, dhidden, True, space)
    last = _virtual(dgates, rows, plan, layers - 1)
    _sigmoid_back(last, _virtual(saved.gates, n, plan, layers - 1), plan.gamma)
    for i in range(layers - 2, 0, -1):
        slope = dhidden.reshape(rows, objectives * plan.layers[i])
        _gated_back(
            slope, _layer(saved.active, n, plan, i), _layer(saved.gates, n, plan, i), plan.gamma, _layer(dgates, rows, plan, i),
            slope,
        )  # fmt: skip
        below = room(space, rows * objectives, plan.layers[i - 1])
        _affine_back(_virtual(saved.hidden, n, plan, i - 1), dhidden, flat, plan.hidden[i], gradient, below, False, space)
        dhidden = below
    dfirst, dwithin = room(space, rows, plan.layers[0]), room(space, rows, saved.within.shape[1])
    _gated_back(
        dhidden.reshape(rows, objectives * plan.layers[0]), saved.first, _layer(saved.gates, n, plan, 0), plan.gamma,
        _layer(dgates, rows, plan, 0), dfirst,
    )  # fmt: skip
    for i in range(layers):
        _gates_back(plan, flat, saved.within, i, _layer(dgates, rows, plan, i), gradient, dwithin, space)
    _rectify_back(dwithin, saved.within)
    dentry, dpersonal = room(space, rows, plan.embedded), room(space, rows, saved.entry.shape[1] - plan.dense)
    _weight_back(saved.entry[:, : plan.dense], dfirst, gradient, plan.hidden[0])
    _weight_back(saved.entry, dwithin, gradient, plan.ppnet_in)
    product(dfirst, turned(_weight(flat, plan.hidden[0], plan.embedded, dfirst.shape[1]), space), dentry, False)
    personal = plan.ppnet_in + plan.dense * dwithin.shape[1]
    product(dwithin, turned(_weight(flat, personal, dpersonal.shape[1], dwithin.shape[1]), space), dpersonal, False)
    dgate, dseen = room(space, rows, plan.embedded), room(space, rows, plan.gate_hidden)
    _split(x, saved.gate, dentry, dpersonal, plan, dgate, dx)
    _affine_back(saved.seen, dgate, flat, plan.epnet_out, gradient, dseen, False, space)
    _rectify_back(dseen, saved.seen)
    _weight_back(x[:, : plan.dense], dseen, gradient, plan.epnet_in)
    for start in plan.scenario:
        own = _weight(flat, plan.epnet_in + start * plan.gate_hidden, plan.width, plan.gate_hidden)
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
    tower = towers.Tower(_weight(flat, plan.output, objectives, width), flat[biases : biases + objectives])
    written = gradient if train else room(space, 1, len(flat))[0]
    dgates, virtual = room(space, 1, rows * plan.starts[layers])[0], rows * objectives
    slopes = towers.Slopes(
        room(space, virtual, plan.layers[layers - 2]), room(space, virtual, width), _virtual(dgates, rows, plan, layers - 1),
        room(space, virtual, 1), _weight(written, plan.output, objectives, width),
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

    def _space(self, n: int, lists: towers.Lists) -> Workspace:
        """Memory for a call on n rows: what an earlier one left, if it is enough."""
        plan, rows = self.plan, len(lists.label)
        tower = towers.room_needed(rows, rows, len(lists.at), plan.objectives, self._entry, self._last)
        needed = self._fixed + n * self._each + rows * self._trained + tower
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
