"""Losses by kind: the slope is autograd's, rows without an objective change nothing, and predictions mean what they say."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import adaptation, base, losses
from state.config import Objective

H1, H2, RATE = 5, 4, 0.3
NO = float("nan")
EVERY = (
    Objective(name="click", action="click", scenarios=("home",)),
    Objective(name="power", action="buy", kind="multiclass", classes=7),
    Objective(name="time", action="watch", kind="regression", transform="log1p", scale=2.0),
    Objective(name="price", action="buy", kind="regression"),
    Objective(name="order", action="click", kind="ranking", weights={"buy": 5.0}),
)
PLAN = losses.plan(EVERY)
ONE = [(o,) for o in EVERY] + [EVERY]


def drawn(random: np.random.Generator, objectives: tuple[Objective, ...], *shape: int, absent: float = 0.3) -> torch.Tensor:
    """Labels (*shape, O) as the wire has them."""
    columns = []
    for o in objectives:
        if o.kind == "binary":
            column = random.integers(0, 2, shape).astype(float)
        elif o.kind == "multiclass":
            column = random.integers(0, o.classes, shape).astype(float)
        elif o.kind == "regression":
            column = random.exponential(3.0, shape)
        else:
            column = random.choice([0.0, 0.0, 1.0, 5.0], shape)
        columns.append(np.where(random.random(shape) < absent, NO, column))
    return torch.from_numpy(np.stack(columns, -1).astype(np.float32))


def cut(random: np.random.Generator, rows: int) -> torch.Tensor:
    """Rows of lists that together have so many."""
    ends = np.unique(np.r_[random.integers(0, rows + 1, 4), rows, 0])
    return torch.from_numpy(np.diff(ends))


@pytest.mark.parametrize("objectives", ONE, ids=lambda os: "+".join(o.kind for o in os))
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 12))
def test_the_slope_is_the_gradient_of_the_weighted_losses(objectives: tuple[Objective, ...], seed: int, rows: int) -> None:
    random, plan = np.random.default_rng(seed), losses.plan(objectives)
    label, weight = drawn(random, objectives, rows), torch.from_numpy(random.random((rows, len(objectives))).astype(np.float32))
    logit = torch.from_numpy(random.normal(0, 2, (rows, plan.outputs)).astype(np.float32)).requires_grad_()
    wanted = losses.targets(plan, label, weight, cut(random, rows))
    (autograd,) = torch.autograd.grad((losses.row_losses(plan, wanted, logit) * wanted.weight).sum(), logit)
    assert torch.isfinite(autograd).all()
    assert torch.allclose(losses.slope(plan, wanted, logit.detach()), autograd, atol=1e-6, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 10), more=st.integers(1, 10))
def test_lists_without_an_objective_change_neither_its_loss_nor_its_gradient(seed: int, rows: int, more: int) -> None:
    random = np.random.default_rng(seed)
    label = drawn(random, EVERY, rows + more)
    label[rows:] = NO
    weight = torch.from_numpy(random.random((rows + more, len(EVERY))).astype(np.float32))
    logit = torch.from_numpy(random.normal(0, 2, (rows + more, PLAN.outputs)).astype(np.float32)).requires_grad_()
    lists = cut(random, rows)
    alone = losses.loss(PLAN, losses.targets(PLAN, label[:rows], weight[:rows], lists), logit[:rows])
    beside = losses.loss(PLAN, losses.targets(PLAN, label, weight, torch.cat([lists, torch.tensor([more])])), logit)
    assert torch.allclose(alone, beside)
    one, other = (torch.autograd.grad(value, logit)[0] for value in (alone, beside))
    assert torch.allclose(one[:rows], other[:rows])
    assert not other[rows:].any()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 10))
def test_what_stands_where_there_is_no_label_or_no_weight_does_not_matter(seed: int, rows: int) -> None:
    random = np.random.default_rng(seed)
    label = drawn(random, EVERY[:4], rows, absent=0.0)
    weight = torch.from_numpy((random.random((rows, 4)) < 0.5).astype(np.float32))
    plan, lists = losses.plan(EVERY[:4]), torch.tensor([rows])
    logit = torch.from_numpy(random.normal(0, 2, (rows, plan.outputs)).astype(np.float32))
    other = torch.where(weight > 0, label, drawn(random, EVERY[:4], rows, absent=0.0))
    one, two = (losses.loss(plan, losses.targets(plan, given, weight, lists), logit) for given in (label, other))
    assert torch.equal(one, two)


def test_the_plain_loss_is_what_the_general_one_says_of_binary_objectives() -> None:
    random = np.random.default_rng(3)
    binary = (EVERY[0], Objective(name="buy", action="buy"))
    general = losses.plan(binary)
    plain = losses.plan((Objective(name="click", action="click"), binary[1]))
    assert (general.plain, plain.plain) == (False, True)
    label, weight = drawn(random, binary, 9, absent=0.0), torch.from_numpy(random.random((9, 2)).astype(np.float32))
    logit, lists = torch.from_numpy(random.normal(size=(9, 2)).astype(np.float32)), torch.tensor([4, 5])
    ours, theirs = (losses.targets(p, label, weight, lists) for p in (plain, general))
    assert torch.allclose(losses.loss(plain, ours, logit), losses.loss(general, theirs, logit))
    assert torch.allclose(losses.slope(plain, ours, logit), losses.slope(general, theirs, logit))
    assert torch.equal(losses.predictions(plain, logit), losses.predictions(general, logit))


def test_ranking_looks_within_a_list_only_and_a_purchase_pulls_five_times_as_hard() -> None:
    plan = losses.plan((EVERY[4],))
    label = torch.tensor([[0.0], [1.0], [0.0], [5.0], [0.0], [0.0], [1.0]])
    lists, weight = torch.tensor([2, 2, 3]), torch.ones(7, 1)
    wanted = losses.targets(plan, label, weight, lists)
    slope = losses.slope(plan, wanted, torch.zeros(7, 1))[:, 0]
    assert slope.tolist() == [0.5, -0.5, 2.5, -2.5, 0.25, 0.25, -0.5]
    shifted = torch.tensor([3.0, 3.0, -8.0, -8.0, 1.0, 1.0, 1.0]).unsqueeze(1)
    assert torch.allclose(losses.slope(plan, wanted, shifted)[:, 0], slope), "a list's own level is free"


def test_a_perfect_logit_predicts_the_label_of_each_kind() -> None:
    logit = torch.tensor([[40.0, 0, 0, 30.0, 0, 0, 0, 0, float(np.log1p(11.0)) / 2, -2.5, 1.0]])
    click, *power, time, price, order = losses.predictions(PLAN, logit)[0].tolist()
    assert click == pytest.approx(1.0)
    assert int(np.argmax(power)) == 2
    assert sum(power) == pytest.approx(1.0)
    assert (time, price) == (pytest.approx(11.0, rel=1e-5), -2.5)
    assert 0.5 < order < 1.0
    label = torch.tensor([[1.0, 2.0, 11.0, -2.5, NO]])
    assert float(losses.loss(PLAN, losses.targets(PLAN, label, torch.ones(1, 5), torch.tensor([1])), logit)) < 1e-6


def test_a_prediction_of_a_logarithm_stays_finite_however_wild_the_logit() -> None:
    plan = losses.plan((EVERY[2],))
    assert torch.isfinite(losses.predictions(plan, torch.tensor([[1e6], [-1e6]]))).all()


def meta(generator: torch.Generator, *shape: int, outputs: int) -> base.MetaInput:
    return base.MetaInput(
        torch.randn(*shape, outputs, H1, generator=generator),
        torch.rand(*shape, outputs, H2, generator=generator) * 2,
        torch.randn(*shape, outputs, generator=generator),
        torch.randn(*shape, outputs, H2, generator=generator),
    )


@pytest.mark.parametrize("objectives", ONE, ids=lambda os: "+".join(o.kind for o in os))
@pytest.mark.parametrize("steps", [1, 3])
def test_adaptation_equals_a_loop_over_tasks_with_autograd_for_every_kind(objectives: tuple[Objective, ...], steps: int) -> None:
    generator, random = torch.Generator().manual_seed(steps), np.random.default_rng(steps)
    plan = losses.plan(objectives)
    shapes = {"tower.weight": (H1, H2), "tower.bias": (H2,), "output.weight": (plan.outputs, H2), "output.bias": (plan.outputs,)}
    fast = {name: torch.randn(shape, generator=generator).requires_grad_() for name, shape in shapes.items()}
    sizes, most = [1, 4, 7], 7
    support, query = meta(generator, 3, most, outputs=plan.outputs), meta(generator, 3, 6, outputs=plan.outputs)
    label = drawn(random, objectives, 3, most)
    weight = torch.tensor([[1 / n if k < n else 0 for k in range(most)] for n in sizes])
    change = adaptation.adapt(fast, support, label, weight, 0.1, steps, plan)
    together = adaptation.logits(fast, change, query)
    for t, n in enumerate(sizes):
        own, known = dict(fast), base.MetaInput(*(part[t, :n] for part in support))
        wanted = losses.targets(plan, label[t, :n], torch.ones(n, len(objectives)), torch.tensor([n]))
        for _ in range(steps):
            loss = losses.loss(plan, wanted, base.tower(own, known))
            slopes = torch.autograd.grad(loss, list(own.values()), retain_graph=True)
            own = {name: value - 0.1 * slope for (name, value), slope in zip(own.items(), slopes, strict=True)}
        plainly = base.tower(own, base.MetaInput(*(part[t] for part in query)))
        assert torch.allclose(together[t], plainly, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("objectives", ONE, ids=lambda os: "+".join(o.kind for o in os))
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 6))
def test_the_curvature_bounds_the_second_derivative(objectives: tuple[Objective, ...], seed: int, rows: int) -> None:
    random, plan = np.random.default_rng(seed), losses.plan(objectives)
    label, weight = drawn(random, objectives, rows), torch.from_numpy(random.random((rows, len(objectives))))
    wanted = losses.targets(plan, label.double(), weight, cut(random, rows))
    logit = torch.from_numpy(random.normal(0, 2, (rows, plan.outputs))).requires_grad_()
    total = (losses.row_losses(plan, wanted, logit) * wanted.weight).sum()
    slope = torch.autograd.grad(total, logit, create_graph=True)[0].reshape(-1)
    hessian = torch.stack([torch.autograd.grad(s, logit, retain_graph=True)[0].reshape(-1) for s in slope])
    bound = torch.diag(losses.curvature(plan, wanted, logit.detach()).reshape(-1))
    assert torch.linalg.eigvalsh(bound - hessian).min() > -1e-9
