"""The wide part: beside the network, each objective's logit gets scaled sums that need no hidden layer.

"product" adds the first-order weights of the ids and the user . item product; "fm" adds a whole factorisation machine (Rendle
2010): first-order weights of ids and numbers, and the inner products of all pairs, where a number has a vector that its
value scales. Written twice, for autograd and by hand for the native trunk; the tests hold the two together.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.autograd.function import once_differentiable

from models import base
from models.matrices import product
from models.vectors import add, row_address, squares
from state import config
from state.kernels import Plain, kernel

F32 = npt.NDArray[np.float32]
OFF, PRODUCT, FM = range(3)
KINDS = {"off": OFF, "product": PRODUCT, "fm": FM}
NAMES = ("wide.scale", "wide.first", "wide.numbers")
NUMBERS_START = 0.01


class Plan(NamedTuple):
    """Geometry for the kernels: kind, categories C, embedding width E, numbers D, user and item categories or -1, objectives."""

    kind: int
    categories: int
    width: int
    numbers: int
    user: int
    item: int
    objectives: int


class Arrays(NamedTuple):
    """Parameters, or their gradients: scales (2 x O) of the sum and of the products; a number's weight (D,) and vector (D, E)."""

    scale: F32
    first: F32
    numbers: F32


def plan(settings: config.Config) -> Plan:
    """The geometry that a configuration declares."""
    g = base.geometry(settings)
    kind = KINDS[settings.model.wide]
    return Plan(kind, len(g.categories), g.width, len(g.numbers) if kind == FM else 0, g.user, g.item, g.objectives)


def shapes(plan: Plan) -> base.Shapes:
    """The parameters of the wide part."""
    if plan.kind == OFF:
        return {}
    found: base.Shapes = {"wide.scale": (plan.objectives * 2,)}
    if plan.kind == FM:
        found |= {"wide.first": (plan.numbers,), "wide.numbers": (plan.numbers, plan.width)}
    return found


def start(views: dict[str, torch.Tensor]) -> None:
    """Set drawn parameters to what they start from: scales of one, first-order weights of zero, vectors near zero."""
    if "wide.scale" in views:
        views["wide.scale"].fill_(1.0)
    if "wide.numbers" in views:
        views["wide.numbers"].mul_(NUMBERS_START * max(len(views["wide.numbers"]), 1) ** 0.5)


def logits(parameters: base.Parameters, x: torch.Tensor, plan: Plan) -> torch.Tensor:
    """The wide part (n, O) of gathered input rows (n, row).

    Float32 on a processor goes through the kernels, whose gradient has no gradient of its own.
    """
    if plan.kind == OFF:
        return x.new_zeros(len(x), plan.objectives)
    own = [parameters[name] for name in NAMES if name in parameters]
    if all(t.dtype == torch.float32 and t.device.type == "cpu" for t in (x, *own)):
        found: torch.Tensor = _Wide.apply(plan, x.contiguous(), *own)  # type: ignore[no-untyped-call]
        return found
    return by_torch(parameters, x, plan)


def by_torch(parameters: base.Parameters, x: torch.Tensor, plan: Plan) -> torch.Tensor:
    """The same in torch's operations, on any device."""
    embedded = plan.categories * plan.width
    scale = parameters["wide.scale"].view(plan.objectives, 2)
    first = x[:, len(x[0]) - plan.categories :].sum(1, keepdim=True) if len(x) else x.new_zeros(0, 1)
    vectors = x[:, :embedded].view(-1, plan.categories, plan.width)
    if plan.kind == FM:
        numbers = x[:, embedded : embedded + plan.numbers]
        first = first + (numbers * parameters["wide.first"]).sum(1, keepdim=True)
        total = vectors.sum(1) + numbers @ parameters["wide.numbers"]
        squares = (vectors * vectors).sum((1, 2)) + (numbers * numbers) @ parameters["wide.numbers"].square().sum(1)
        products = 0.5 * (total.square().sum(1) - squares).unsqueeze(1)
    elif min(plan.user, plan.item) >= 0:
        products = (vectors[:, plan.user] * vectors[:, plan.item]).sum(1, keepdim=True)
    else:
        return first * scale[:, 0]
    return first * scale[:, 0] + products * scale[:, 1]


class Sums(NamedTuple):
    """Of every row: first-order sum (n, 1), products (n, 1), sum of all vectors (n, E), which only "fm" has."""

    first: F32
    products: F32
    total: F32


@kernel
def cut(flat: F32, at: int, plan: Plan) -> Arrays:
    """The parameters, or their gradients, in the flat vector from `at`; those that the plan does not have are empty."""
    first = at + 2 * plan.objectives
    numbers = first + plan.numbers
    if plan.kind == OFF:
        return Arrays(flat[:0], flat[:0], flat[:0].reshape(0, plan.width))
    return Arrays(
        flat[at:first], flat[first:numbers], flat[numbers : numbers + plan.numbers * plan.width].reshape(-1, plan.width)
    )


@kernel
def _pairs(x: F32, plan: Plan, own: Arrays, sums: Sums) -> None:
    """Fill the sums of a row's vectors and the inner products of all pairs of them, and add numbers to the first-order sums.

    Those of numbers are one matrix product, and their squares are squares of numbers by the squared lengths of their vectors.
    """
    n, width, embedded = len(x), plan.width, plan.categories * plan.width
    numbers = x[:, embedded : embedded + plan.numbers]
    lengths, squared = np.empty((plan.numbers, 1), np.float32), np.empty((n, plan.numbers), np.float32)
    for j in range(plan.numbers):
        lengths[j, 0] = squares(row_address(own.numbers, j), width)
    product(numbers, own.numbers, sums.total, False)
    product(numbers, own.first.reshape(plan.numbers, 1), sums.first, True)
    for i in range(n):
        row, total = row_address(x, i), row_address(sums.total, i)
        for c in range(plan.categories):
            add(total, row + 4 * c * width, np.float32(1), width)
        sums.products[i, 0] = squares(row, embedded)
        for j in range(plan.numbers):
            squared[i, j] = numbers[i, j] * numbers[i, j]
    product(squared, lengths, sums.products, True)
    for i in range(n):
        sums.products[i, 0] = np.float32(0.5) * (squares(row_address(sums.total, i), width) - sums.products[i, 0])


@kernel
def terms(x: F32, plan: Plan, own: Arrays) -> Sums:
    """What the wide part sums of rows (n, row)."""
    n, ones = len(x), np.ones((plan.categories, 1), np.float32)
    sums = Sums(np.zeros((n, 1), np.float32), np.zeros((n, 1), np.float32), np.empty((n, plan.width), np.float32))
    if plan.kind == OFF:
        return sums
    product(x[:, x.shape[1] - plan.categories :], ones, sums.first, True)
    if plan.kind == FM:
        _pairs(x, plan, own, sums)
    elif plan.user >= 0 and plan.item >= 0:
        for i in range(n):
            for d in range(plan.width):
                sums.products[i, 0] += x[i, plan.user * plan.width + d] * x[i, plan.item * plan.width + d]
    return sums


@kernel
def forward(x: F32, plan: Plan, own: Arrays, offset: F32) -> Sums:
    """Fill `offset` (n, O) with the wide part of gathered rows (n, row); returns what `backward` needs."""
    sums = terms(x, plan, own)
    for i in range(len(x)):
        for o in range(plan.objectives):
            if plan.kind == OFF:
                offset[i, o] = 0
            else:
                offset[i, o] = sums.first[i, 0] * own.scale[2 * o] + sums.products[i, 0] * own.scale[2 * o + 1]
    return sums


@kernel
def backward(x: F32, plan: Plan, own: Arrays, sums: Sums, doffset: F32, slope: Arrays, dx: F32) -> None:
    """Fill `slope` and add to `dx` (R, row) from the gradient of the first R rows' wide part (R, O)."""
    if plan.kind == OFF:
        return
    n = len(dx)
    up_first, up = np.zeros((n, 1), np.float32), np.zeros((n, 1), np.float32)
    slope.scale[:] = 0
    for i in range(n):
        for o in range(plan.objectives):
            slope.scale[2 * o] += doffset[i, o] * sums.first[i, 0]
            slope.scale[2 * o + 1] += doffset[i, o] * sums.products[i, 0]
            up_first[i, 0] += doffset[i, o] * own.scale[2 * o]
            up[i, 0] += doffset[i, o] * own.scale[2 * o + 1]
        for j in range(dx.shape[1] - plan.categories, dx.shape[1]):
            dx[i, j] += up_first[i, 0]
    if plan.kind == FM:
        _pairs_back(x, plan, own, sums.total, up_first, up, slope, dx)
    elif plan.user >= 0 and plan.item >= 0:
        for i in range(n):
            for d in range(plan.width):
                dx[i, plan.user * plan.width + d] += up[i, 0] * x[i, plan.item * plan.width + d]
                dx[i, plan.item * plan.width + d] += up[i, 0] * x[i, plan.user * plan.width + d]


@kernel
def _added(x: F32, plan: Plain, own: Plain, offset: F32) -> None:
    """`forward` from python."""
    forward(x, Plan(*plan), Arrays(*own), offset)


@kernel
def _again(
    x: F32, plan: Plain, own: Plain, doffset: F32, slope: Plain, dx: F32
) -> None:  # fmt: skip
    """`backward` from python, where nothing was kept of the forward pass."""
    geometry, parameters = Plan(*plan), Arrays(*own)
    backward(x, geometry, parameters, terms(x, geometry, parameters), doffset, Arrays(*slope), dx)


@kernel
def _pairs_back(x: F32, plan: Plan, own: Arrays, total: F32, up_first: F32, up: F32, slope: Arrays, dx: F32) -> None:
    """Backward of `_pairs` and of the numbers' weights, from the gradients (R, 1) of the first-order sum and of the products."""
    width, embedded, n = plan.width, plan.categories * plan.width, len(dx)
    numbers, scaled, least = (
        x[:n, embedded : embedded + plan.numbers],
        np.empty((n, plan.numbers), np.float32),
        np.zeros(plan.numbers, np.float32),
    )
    for i in range(n):
        row, into, by = row_address(x, i), row_address(dx, i), up[i, 0]
        for c in range(plan.categories):
            add(into + 4 * c * width, row_address(total, i), by, width)
        add(into, row, -by, embedded)
        for j in range(plan.numbers):
            scaled[i, j] = by * numbers[i, j]
            least[j] += scaled[i, j] * numbers[i, j]
    product(numbers.T, up_first, slope.first.reshape(plan.numbers, 1), False)
    product(scaled.T, total[:n], slope.numbers, False)
    for j in range(plan.numbers):
        for d in range(width):
            slope.numbers[j, d] -= least[j] * own.numbers[j, d]


def arrays(own: Sequence[torch.Tensor], plan: Plan) -> Plain:
    """Parameters or gradients in the order of `NAMES` as the kernels see them; those that the plan does not have are empty."""
    nothing = np.zeros(0, np.float32)
    found = [*(part.detach().numpy() for part in own), *(nothing, nothing, nothing.reshape(0, plan.width))[len(own) :]]
    return found[0], found[1], found[2]


def added(own: Sequence[torch.Tensor], x: torch.Tensor, plan: Plan) -> torch.Tensor:
    """The wide part (n, O) of gathered rows (n, row) by the kernels, outside autograd; `own` in the order of `NAMES`."""
    out = torch.empty(len(x), plan.objectives)
    if plan.kind == OFF:
        return out.zero_()
    _added(x.detach().numpy(), tuple(plan), arrays(own, plan), out.numpy())
    return out


def add_back(
    own: Sequence[torch.Tensor], x: torch.Tensor, plan: Plan, doffset: torch.Tensor, slope: Sequence[torch.Tensor],
    dx: torch.Tensor,
) -> None:  # fmt: skip
    """Fill the gradients `slope` of `own` and add to `dx` (n, row), from the gradient (n, O) of `added`."""
    if plan.kind != OFF:
        gradient = doffset.contiguous().numpy()
        _again(x.detach().numpy(), tuple(plan), arrays(own, plan), gradient, arrays(slope, plan), dx.numpy())


class _Wide(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: Plan, x: torch.Tensor, *own: torch.Tensor) -> torch.Tensor:
        ctx.plan = plan
        ctx.save_for_backward(x, *own)
        return added(own, x, plan)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, doffset: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, *own = ctx.saved_tensors
        dx, slope = torch.zeros_like(x), [torch.empty_like(part) for part in own]
        add_back(own, x, ctx.plan, doffset, slope, dx)
        return None, dx, *slope
