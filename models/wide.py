"""The wide part: beside the network, each objective's logit gets scaled sums that need no hidden layer.

"product" adds the first-order weights of the ids and the user . item product; "fm" adds a whole factorisation machine (Rendle
2010): first-order weights of ids and numbers, and the inner products of all pairs, where a number has a vector that its
value scales. Written twice, for autograd and by hand for the native trunk; the tests hold the two together.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from models import base
from state import config
from state.kernels import kernel

F32 = npt.NDArray[np.float32]
OFF, PRODUCT, FM = range(3)
KINDS = {"off": OFF, "product": PRODUCT, "fm": FM}
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
    """The wide part (n, O) of gathered input rows (n, row)."""
    if plan.kind == OFF:
        return x.new_zeros(len(x), plan.objectives)
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
def _terms(x: F32, i: int, plan: Plan, own: Arrays, total: F32) -> tuple[np.float32, np.float32]:
    """First-order sum and products of row i; row 0 of `total` (2, E) receives the sum of the vectors."""
    width, embedded = plan.width, plan.categories * plan.width
    first, products = np.float32(0), np.float32(0)
    for j in range(x.shape[1] - plan.categories, x.shape[1]):
        first += x[i, j]
    if plan.kind == PRODUCT:
        if plan.user >= 0 and plan.item >= 0:
            for d in range(width):
                products += x[i, plan.user * width + d] * x[i, plan.item * width + d]
        return first, products
    total[:] = 0
    for c in range(np.uintp(plan.categories)):
        for d in range(np.uintp(width)):
            value = x[i, c * np.uintp(width) + d]
            total[0, d] += value
            total[1, d] += value * value
    for j in range(plan.numbers):
        by = x[i, embedded + j]
        first += by * own.first[j]
        for d in range(width):
            value = by * own.numbers[j, d]
            total[0, d] += value
            total[1, d] += value * value
    for d in range(width):
        products += total[0, d] * total[0, d] - total[1, d]
    return first, products * np.float32(0.5)


@kernel
def forward(x: F32, plan: Plan, own: Arrays, offset: F32) -> None:
    """Fill `offset` (n, O) with the wide part of gathered rows (n, row)."""
    if plan.kind == OFF:
        offset[:] = 0
        return
    total = np.empty((2, plan.width), np.float32)
    for i in range(len(x)):
        first, products = _terms(x, i, plan, own, total)
        for o in range(plan.objectives):
            offset[i, o] = first * own.scale[2 * o] + products * own.scale[2 * o + 1]


@kernel
def backward(x: F32, plan: Plan, own: Arrays, doffset: F32, slope: Arrays, dx: F32) -> None:
    """Fill `slope` and add to `dx` (R, row) from the gradient of the first R rows' wide part (R, O)."""
    if plan.kind == OFF:
        return
    width, embedded = plan.width, plan.categories * plan.width
    total = np.empty((2, width), np.float32)
    slope.scale[:] = 0
    slope.first[:] = 0
    slope.numbers[:] = 0
    for i in range(len(dx)):
        first, products = _terms(x, i, plan, own, total)
        up_first, up = np.float32(0), np.float32(0)
        for o in range(plan.objectives):
            slope.scale[2 * o] += doffset[i, o] * first
            slope.scale[2 * o + 1] += doffset[i, o] * products
            up_first += doffset[i, o] * own.scale[2 * o]
            up += doffset[i, o] * own.scale[2 * o + 1]
        for j in range(dx.shape[1] - plan.categories, dx.shape[1]):
            dx[i, j] += up_first
        if plan.kind == PRODUCT:
            if plan.user >= 0 and plan.item >= 0:
                for d in range(width):
                    dx[i, plan.user * width + d] += up * x[i, plan.item * width + d]
                    dx[i, plan.item * width + d] += up * x[i, plan.user * width + d]
            continue
        for c in range(np.uintp(plan.categories)):
            for d in range(np.uintp(width)):
                dx[i, c * np.uintp(width) + d] += up * (total[0, d] - x[i, c * np.uintp(width) + d])
        for j in range(plan.numbers):
            by = x[i, embedded + j]
            slope.first[j] += up_first * by
            for d in range(width):
                slope.numbers[j, d] += up * by * (total[0, d] - own.numbers[j, d] * by)
