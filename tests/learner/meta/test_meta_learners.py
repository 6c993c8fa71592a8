"""The contract of every meta-learning algorithm, over the table."""

import copy
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch.nn import functional

from learner import step
from learner.meta import outer
from learner.meta.registry import META_LEARNERS
from models import adaptation, base, losses, modes, scorer, supports
from models.meta import adapters
from models.meta import registry as meta
from state import config
from tests import minibatches

ALGORITHMS = sorted(META_LEARNERS)
FIRST_ORDER = ("fomaml", "reptile")
DIFFERENTIATED = [name for name in ALGORITHMS if name not in FIRST_ORDER]
H1, H2 = 5, 4


def numbers(generator: torch.Generator, *shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


class Case:
    """An algorithm on a tower with every parameter drawn, and tasks of given sizes for it."""

    def __init__(
        self, name: str, seed: int = 0, objectives: int = 2, dtype: torch.dtype = torch.float32, width: int = H2, **settings: Any
    ) -> None:
        self.generator, self.dtype, self.objectives, self.width = torch.Generator().manual_seed(seed), dtype, objectives, width
        given = {"algorithm": name, "inner_rate": 0.3, "inner_steps": 2, "context": 3, "rank": 2} | settings
        self.settings = msgspec.structs.replace(config.MetaLearning(), **given)
        tower = adapters.Tower(H1 if width else 0, width, objectives)
        self.given = adapters.Given(self.settings, tower, losses.BINARY)
        self.adapter = META_LEARNERS[name].adapter(self.given)
        shapes = {"tower.weight": (H1, width), "tower.bias": (width,), "output.weight": (objectives, width)} if width else {}
        self.fast = {n: self.numbers(*s) for n, s in {**shapes, "output.bias": (objectives,)}.items()}
        views = {n: torch.zeros(s) for n, s in self.adapter.shapes.items()}
        self.adapter.start(views, self.generator)
        self.fast |= {n: v.to(dtype) for n, v in views.items()}

    def numbers(self, *shape: int) -> torch.Tensor:
        return numbers(self.generator, *shape, dtype=self.dtype)

    def drawn(self) -> "Case":
        """With meta-parameters as training may leave them, not as they start."""
        for name in self.adapter.shapes:
            self.fast[name] = self.fast[name] + 0.2 * self.numbers(*self.fast[name].shape)
        return self

    def meta(self, *shape: int) -> base.MetaInput:
        inputs = H1 if self.width else 0
        return base.MetaInput(
            self.numbers(*shape, self.objectives, inputs),
            self.numbers(*shape, self.objectives, self.width).abs(),
            self.numbers(*shape, self.objectives),
            self.numbers(*shape, self.objectives, self.width or 1),
        )

    def tasks(self, sizes: list[int], most: int | None = None) -> adapters.Tasks:
        most = max(sizes) if most is None else most
        weight = torch.tensor([[1 / n if k < n else 0.0 for k in range(most)] for n in sizes], dtype=self.dtype)
        label = (self.numbers(len(sizes), most, self.objectives) > 0).to(self.dtype)
        return adapters.Tasks(self.meta(len(sizes), most), label, weight)

    def logits(self, tasks: adapters.Tasks, query: base.MetaInput) -> torch.Tensor:
        return self.adapter.logits(self.fast, self.adapter.adapt(self.fast, tasks), query)

    def plain(self, query: base.MetaInput) -> torch.Tensor:
        return base.tower(adaptation.with_tower(self.fast), query)


def part(tasks: adapters.Tasks, chosen: slice, rows: int) -> adapters.Tasks:
    """Some tasks with their first rows."""
    support = base.MetaInput(*(p[chosen, :rows] for p in tasks.support))
    return adapters.Tasks(support, tasks.label[chosen, :rows], tasks.weight[chosen, :rows])


def support_loss(case: Case, tasks: adapters.Tasks) -> float:
    logit = case.logits(tasks, tasks.support)
    every = functional.binary_cross_entropy_with_logits(logit, tasks.label, reduction="none")
    return float((every * tasks.weight.unsqueeze(-1)).sum())


@pytest.mark.parametrize("width", [H2, 0])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_adapting_lowers_the_support_loss_with_every_step_at_a_small_rate(name: str, width: int) -> None:
    told = []
    for steps in range(4):
        case = Case(name, seed=2, width=width, inner_rate=0.03, inner_steps=steps)
        told.append(support_loss(case, case.tasks([8, 3])))
    assert told == sorted(told, reverse=True)
    assert told[-1] < told[0] - 1e-3


@pytest.mark.parametrize("name", ALGORITHMS)
def test_adapting_mutates_nothing(name: str) -> None:
    case = Case(name).drawn()
    tasks, query = case.tasks([4, 2]), case.meta(2, 3)
    before = copy.deepcopy((case.fast, tasks, query))
    first = case.logits(tasks, query)
    assert torch.equal(first, case.logits(tasks, query))
    for was, now in zip(before[0].items(), case.fast.items(), strict=True):
        assert was[0] == now[0]
        assert torch.equal(was[1], now[1])
    were = (*before[1].support, *before[1][1:], *before[2])
    for was_part, now_part in zip(were, (*tasks.support, *tasks[1:], *query), strict=True):
        assert torch.equal(was_part, now_part)


@pytest.mark.parametrize(("rate", "steps", "rows"), [(0.0, 2, 3), (0.3, 0, 3), (0.3, 2, 0)])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_zero_rate_zero_steps_or_no_rows_change_nothing(name: str, rate: float, steps: int, rows: int) -> None:
    case = Case(name, inner_rate=rate, inner_steps=steps).drawn()
    tasks, query = case.tasks([3]), case.meta(1, 4)
    if not rows:
        tasks = tasks._replace(weight=torch.zeros_like(tasks.weight))
    assert torch.allclose(case.logits(tasks, query), case.plain(query), atol=1e-6)
    assert not torch.allclose(Case(name).drawn().logits(case.tasks([3]), query), case.plain(query), atol=1e-3)


@pytest.mark.parametrize("name", ALGORITHMS)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=6), st.integers(0, 3), st.integers(0, 99), st.data())
@hypothesis_settings(max_examples=12, deadline=None)
def test_tasks_in_any_merge_get_what_each_gets_alone(
    name: str, sizes: list[int], pad: int, seed: int, data: st.DataObject
) -> None:
    # In double precision, where rounding cannot hide a dependence; single precision is next.
    case = Case(name, seed, dtype=torch.float64).drawn()
    tasks, query = case.tasks(sizes, max(sizes) + pad), case.meta(len(sizes), 3)
    together = case.logits(tasks, query)
    cut = data.draw(st.integers(0, len(sizes)))
    for chosen in (slice(0, cut), slice(cut, len(sizes))):
        if chosen.start < chosen.stop:
            some = case.logits(part(tasks, chosen, max(sizes) + pad), base.MetaInput(*(p[chosen] for p in query)))
            assert torch.allclose(together[chosen], some, atol=1e-10)
    for t, n in enumerate(sizes):
        one = slice(t, t + 1)
        alone = case.logits(part(tasks, one, n), base.MetaInput(*(p[one] for p in query)))
        assert torch.allclose(together[one], alone, atol=1e-10)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_predictions_of_merged_tasks_in_single_precision_are_within_a_millionth(name: str) -> None:
    learner = trained(name)
    batch = minibatches.minibatch(learner.settings, 70, lists=12)
    together, at = learner.score(batch).adapted, np.cumsum(np.r_[0, batch.n_items])
    for some in ([0], [3, 4, 9], [11, 5]):
        apart = learner.score(minibatches.alone(batch, sorted(some))).adapted
        rows = np.concatenate([np.arange(at[i], at[i + 1]) for i in sorted(some)])
        assert together[rows] == pytest.approx(apart, abs=1e-6)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_what_stands_in_padding_changes_nothing_not_even_where_labels_may_be_missing(name: str) -> None:
    kinds = (config.Objective(name="a", action="a"), config.Objective(name="b", action="b", scenarios=("x",)))
    case = Case(name).drawn()
    case.adapter = META_LEARNERS[name].adapter(case.given._replace(plan=losses.plan(kinds)))
    tasks, query = case.tasks([2, 5]), case.meta(2, 3)
    label = tasks.label.clone()
    label[1, :2, 1] = torch.nan
    tasks = tasks._replace(label=label)
    wrong = base.MetaInput(*(p.clone() for p in tasks.support))
    for p in wrong:
        p[0, 2:] = 7.0
    label = label.clone()
    label[0, 2:] = torch.nan
    other = adapters.Tasks(wrong, label, tasks.weight)
    assert torch.allclose(case.logits(tasks, query), case.logits(other, query), atol=1e-6)
    assert torch.isfinite(case.logits(other, query)).all()


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_outer_gradients_of_the_tower_and_of_meta_parameters_agree_with_finite_differences(name: str, steps: int) -> None:
    case = Case(name, seed=5, dtype=torch.float64, inner_steps=steps, inner_decay=0.4).drawn()
    tasks, query = case.tasks([3, 6]), case.meta(2, 4)
    target = case.numbers(2, 4, case.objectives)
    leaves = {n: v.clone().requires_grad_() for n, v in case.fast.items()}
    value = (case.adapter.logits(leaves, case.adapter.adapt(leaves, tasks), query) * target).sum()
    slopes = dict(zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True))
    for n, slope in slopes.items():
        direction = case.numbers(*slope.shape)
        moved = []
        for sign in (1, -1):
            case_fast = case.fast | {n: case.fast[n] + sign * 1e-6 * direction}
            moved.append(float((case.adapter.logits(case_fast, case.adapter.adapt(case_fast, tasks), query) * target).sum()))
        expected = (moved[0] - moved[1]) / 2e-6
        assert float((slope * direction).sum()) == pytest.approx(expected, rel=1e-5, abs=1e-6), n


def plainly(
    fast: dict[str, torch.Tensor], support: base.MetaInput, label: torch.Tensor, weight: torch.Tensor, adapted: list[str],
    case: Case, order: int,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """One task's tower after inner steps by autograd on copied weights."""
    own = dict(fast)
    keep = 1 - case.settings.inner_rate * case.settings.inner_decay
    for _ in range(case.settings.inner_steps):
        every = functional.binary_cross_entropy_with_logits(base.tower(own, support), label, reduction="none")
        slopes = torch.autograd.grad((every * weight.unsqueeze(-1)).sum(), [own[n] for n in adapted], create_graph=order > 1)
        for n, slope in zip(adapted, slopes, strict=True):
            change = (own[n] - fast[n]) * keep - case.settings.inner_rate * slope
            own[n] = fast[n] + (change if order > 1 else change.detach())
    return own


@pytest.mark.parametrize("decay", [0.0, 0.7])
@pytest.mark.parametrize(
    ("name", "adapted", "order"),
    [
        ("fomaml", list(base.FAST), 1), ("reptile", list(base.FAST), 1), ("maml", list(base.FAST), 2),
        ("meta_sgd", list(base.FAST), 2), ("paml", list(base.FAST), 2), ("learned_update", list(base.FAST), 2),
        ("anil", ["output.weight", "output.bias"], 2), ("bias", ["output.bias"], 2),
    ],
)  # fmt: skip
def test_scores_and_gradients_equal_a_plain_loop_with_autograd(name: str, adapted: list[str], order: int, decay: float) -> None:
    case = Case(name, seed=3, inner_steps=3, inner_decay=decay)
    sizes = [2, 6]
    tasks, query = case.tasks(sizes), case.meta(2, 4)
    leaves = {n: v.clone().requires_grad_() for n, v in case.fast.items()}
    case.fast = leaves
    one = case.logits(tasks, query)
    other = []
    for t, n in enumerate(sizes):
        own = part(tasks, slice(t, t + 1), n)
        found = plainly(leaves, base.MetaInput(*(p[0] for p in own.support)), own.label[0], own.weight[0], adapted, case, order)
        other.append(base.tower(found, base.MetaInput(*(p[t] for p in query))))
    assert torch.allclose(one, torch.stack(other), atol=1e-5)
    target, tower = case.numbers(2, 4, case.objectives), [leaves[n] for n in base.FAST]
    slopes = (torch.autograd.grad((said * target).sum(), tower, retain_graph=True) for said in (one, torch.stack(other)))
    for a, b in zip(*slopes, strict=True):
        assert torch.allclose(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("decay", [0.0, 0.7])
def test_reptile_moves_the_tower_towards_where_all_rows_of_the_tasks_lead_it(decay: float) -> None:
    case = Case("reptile", seed=4, inner_steps=3, inner_decay=decay)
    tasks, query = case.tasks([2, 5]), case.meta(2, 3)
    asked = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    label = (case.numbers(2, 3, 2) > 0).float()
    leaves = {n: v.clone().requires_grad_() for n, v in case.fast.items()}
    rows = 9
    wanted = losses.Targets(torch.ones(rows, 2), torch.ones(rows, 2), torch.tensor(rows), ())
    minibatch = outer.Outer(losses.BINARY, leaves, wanted, torch.zeros(rows, 2), outer.Adapted(tasks, query, label, asked))
    value = META_LEARNERS["reptile"].outer(case.settings)(minibatch)
    assert float(value.detach()) == pytest.approx(float(outer.query(minibatch)))
    slopes = torch.autograd.grad(value, list(leaves.values()))
    expected = {n: torch.zeros_like(v) for n, v in leaves.items()}
    for t, (known, here) in enumerate([(2, 1), (5, 3)]):
        support = base.MetaInput(*(torch.cat([p[t, :known], q[t, :here]]) for p, q in zip(tasks.support, query, strict=True)))
        whole = torch.cat([tasks.label[t, :known], label[t, :here]])
        own = plainly(leaves, support, whole, torch.full((known + here,), 1 / (known + here)), list(base.FAST), case, 1)
        for n in expected:
            expected[n] -= (own[n] - leaves[n]).detach() * here / rows / (case.settings.inner_rate * 3)
    for n, slope in zip(leaves, slopes, strict=True):
        assert torch.allclose(slope, expected[n], atol=1e-5, rtol=1e-5), n


def trained(name: str, steps: int = 6, **changed: Any) -> step.Trainer:
    settings = minibatches.settings(2, meta={"algorithm": name, "inner_rate": 0.3, "inner_steps": 2, "context": 3, **changed})
    learner = step.Trainer(settings)
    for i in range(steps):
        assert not learner.step(with_times(minibatches.minibatch(settings, i), i), i).skipped
    return learner


def with_times(batch: base.Batch, seed: int) -> base.Batch:
    """Support rows ten seconds apart on average, oldest first in a list."""
    generator = np.random.default_rng(seed)
    times = [np.sort(generator.integers(0, 200_000, n)) for n in batch.n_support.tolist()]
    return batch._replace(s_ts=np.concatenate([*times, np.zeros(0, np.int64)]))


@pytest.mark.parametrize("weighting", [{}, {"half_life_s": 30.0, "prior_rows": 3.0}])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_serving_says_what_the_trainer_says(name: str, weighting: dict[str, Any]) -> None:
    learner = trained(name, **weighting)
    batch = with_times(minibatches.minibatch(learner.settings, 50, support=9), 50)
    said = learner.score(batch)
    served = scorer.Scorer(learner.settings, {n: learner.arrays()[n] for n in learner.serving_names})
    at = np.cumsum(np.r_[0, batch.n_items])
    for i in range(len(batch.n_items)):
        rows, known = slice(at[i], at[i + 1]), slice(9 * i, 9 * i + 9)
        support = base.Support(batch.s_ids[known], batch.s_x[known], batch.s_label[known], batch.s_ts[known])
        found = served.score(batch.ids[rows], batch.x[rows], int(batch.scenario[i]), support)
        assert found.adapted_on == 9
        assert found.adapted == pytest.approx(said.adapted[rows], abs=1e-6)
        assert found.plain == pytest.approx(said.unadapted[rows], abs=1e-6)
    assert np.abs(said.adapted - said.unadapted).max() > 1e-3


@pytest.mark.parametrize("name", ALGORITHMS)
def test_switching_off_leaves_the_plain_tower(name: str) -> None:
    learner = trained(name)
    batch = minibatches.minibatch(learner.settings, 50)
    learner.set_meta(None, "off")
    said = learner.score(batch)
    assert said.adapted.tolist() == said.unadapted.tolist()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_rate_without_measure_is_taken_back_by_learner_and_serving_and_counted(name: str) -> None:
    calm = trained(name)
    wild = step.Trainer(minibatches.settings(2, meta={"algorithm": name, "inner_rate": 1e39, "context": 3}))
    wild.load(calm.arrays())
    served = scorer.Scorer(wild.settings, calm.arrays())
    batch = minibatches.minibatch(wild.settings, 50, support=1)
    said = wild.step(batch, 50)
    assert (said.skipped, said.diverged > 0) == ("", True)
    assert np.isfinite(said.adapted).all()
    assert np.isfinite(wild.dense).all()
    first = slice(0, int(batch.n_items[0]))
    support = base.Support(batch.s_ids[:1], batch.s_x[:1], batch.s_label[:1])
    found = served.score(batch.ids[first], batch.x[first], int(batch.scenario[0]), support)
    assert found.diverged
    assert np.isfinite(found.adapted).all()


@pytest.mark.parametrize(("rate", "label"), [(300.0, 1.0), (0.3, np.nan)])
@pytest.mark.parametrize("name", ["bias", "film", "fomaml"])
def test_where_adaptation_diverges_scoring_says_what_serving_says(name: str, rate: float, label: float) -> None:
    wild = step.Trainer(minibatches.settings(2, meta={"algorithm": name, "inner_rate": rate, "inner_steps": 2}), native=False)
    wild.load(trained(name).arrays())
    served, batch = scorer.Scorer(wild.settings, wild.arrays(), native=False), minibatches.minibatch(wild.settings, 50, support=9)
    batch.s_label[:9] = label
    said, at, diverged = wild.score(batch), np.cumsum(np.r_[0, batch.n_items]), 0
    for i in range(len(batch.n_items)):
        rows, known = slice(at[i], at[i + 1]), slice(9 * i, 9 * i + 9)
        support = base.Support(batch.s_ids[known], batch.s_x[known], batch.s_label[known])
        found = served.score(batch.ids[rows], batch.x[rows], int(batch.scenario[i]), support)
        assert said.adapted[rows] == pytest.approx(found.adapted, abs=1e-4)
        diverged += found.diverged
    assert said.diverged == diverged > 0


@pytest.mark.parametrize("label", [0.0, 1.0])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_support_of_one_class_moves_scores_towards_it(name: str, label: float) -> None:
    learner = trained(name)
    batch = minibatches.minibatch(learner.settings, 50, support=8)
    said = learner.score(batch._replace(s_label=np.full_like(batch.s_label, label)))
    moved = said.adapted - said.unadapted
    assert np.isfinite(said.adapted).all()
    assert (moved.mean() > 0) == bool(label)
    assert np.abs(moved).max() > 1e-4


@pytest.mark.parametrize("name", ALGORITHMS)
def test_meta_parameters_are_learned_and_come_back_from_a_snapshot(name: str) -> None:
    learner = trained(name)
    adapter = meta.build(learner.settings, learner.model)
    size = base.size(adapter.shapes)
    first = meta.initial(learner.model, adapter, learner.settings.learner.seed).numpy()
    assert len(learner.dense) == base.size(learner.model.shapes) + size
    views = {n: (v, w) for (n, v), w in zip(
        base.views(torch.from_numpy(learner.dense), learner.shapes).items(),
        base.views(torch.from_numpy(first), learner.shapes).values(), strict=True,
    )}  # fmt: skip
    assert all(not torch.equal(*views[n]) for n in adapter.shapes)
    again = step.Trainer(learner.settings)
    again.load({n: a.copy() for n, a in learner.arrays().items()})
    batch = minibatches.minibatch(learner.settings, 60)
    assert again.step(batch, 60).adapted.tolist() == learner.step(batch, 60).adapted.tolist()
    assert again.dense.tolist() == learner.dense.tolist()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_learning_from_tasks_lowers_their_joint_loss(name: str) -> None:
    learner = trained(name, 0)
    batch = minibatches.minibatch(learner.settings, 3, lists=20)
    told = [learner.step(batch, i).loss for i in range(40)]
    assert told[-1] < 0.7 * told[0]


def test_newer_rows_weigh_more_by_their_half_life_and_weights_sum_to_one() -> None:
    weight = supports.by_age(np.array([0, 30_000, 90_000, 90_000], np.int64), 30.0)
    assert weight.sum() == pytest.approx(1)
    assert (weight / weight[-1]).tolist() == pytest.approx([0.125, 0.25, 1, 1])


def test_few_rows_weigh_less_than_one_together_when_there_are_prior_rows() -> None:
    settings = minibatches.settings(meta={"prior_rows": 4.0}).meta
    for rows, total in ((1, 0.2), (4, 0.5), (12, 0.75)):
        assert supports.row_weights(settings, rows, base.NO_TIMES).tolist() == pytest.approx([total / rows] * rows)
    aged = msgspec.structs.replace(settings, half_life_s=10.0)
    assert supports.row_weights(aged, 2, np.array([0, 10_000], np.int64)).tolist() == pytest.approx([1 / 9, 2 / 9])


def test_lists_of_one_minibatch_weigh_shared_rows_each_by_its_own_newest() -> None:
    settings = minibatches.settings(meta={"half_life_s": 10.0, "support_rows": 3})
    batch = minibatches.minibatch(settings, 1, lists=2, support=4)
    batch = batch._replace(s_ts=np.array([0, 10, 20, 30, 0, 0, 10, 10], np.int64) * 1000)
    found = supports.of(settings.meta, batch, np.array([modes.ON, modes.ON]))
    assert found.share is not None
    assert found.share[0].tolist() == pytest.approx([1 / 7, 2 / 7, 4 / 7])
    assert found.share[1].tolist() == pytest.approx([0.2, 0.4, 0.4])
    assert supports.of(settings.meta, batch._replace(s_ts=base.NO_TIMES), np.array([modes.ON, modes.ON])).share is None


def test_an_objective_that_some_support_rows_lack_shares_its_weight_among_those_that_have_it() -> None:
    plan = losses.plan([config.Objective(name="a", action="a", scenarios=("x",))])
    label = torch.tensor([[[torch.nan], [1.0], [0.0]]])
    wanted = losses.task_targets(plan, label, torch.tensor([[0.5, 0.3, 0.2]]))
    assert wanted.weight[:, 0].tolist() == pytest.approx([0.0, 0.6, 0.4])


@pytest.mark.parametrize("steps", [1, 3])
def test_the_native_network_moves_few_rows_as_little_as_autograd_does(steps: int) -> None:
    settings = minibatches.settings(2, meta={"inner_rate": 0.8, "inner_steps": steps, "prior_rows": 5.0})
    one, other = (step.Trainer(settings, native=native) for native in (True, False))
    for i in range(4):
        batch = minibatches.minibatch(settings, i)
        said, expected = one.step(batch, i), other.step(batch, i)
        assert said.adapted == pytest.approx(expected.adapted, abs=1e-5)
        assert said.loss == pytest.approx(expected.loss, rel=1e-5)
        assert torch.allclose(one.gradient.flat, other.gradient.flat, atol=1e-5)
    assert np.abs(said.adapted - said.unadapted).max() > 1e-3


def test_every_algorithm_of_the_configuration_is_in_the_table() -> None:
    for name in ALGORITHMS:
        assert config.parse(f'[meta]\nalgorithm = "{name}"').meta.algorithm == name
    with pytest.raises(config.ConfigError, match="algorithm"):
        config.parse('[meta]\nalgorithm = "magic"')


def test_ridge_solves_a_regression_exactly_under_its_prior() -> None:
    generator = torch.Generator().manual_seed(4)
    objectives = (config.Objective(name="stars", action="rate", kind="regression"),)
    given = msgspec.structs.replace(config.MetaLearning(), algorithm="ridge", inner_rate=0.2)
    adapter = META_LEARNERS["ridge"].adapter(adapters.Given(given, adapters.Tower(H1, H2, 1), losses.plan(objectives)))
    shapes = {
        "tower.weight": (H1, H2),
        "tower.bias": (H2,),
        "output.weight": (1, H2),
        "output.bias": (1,),
        "meta.prior": (1, H2 + 1),
    }
    fast = {name: numbers(generator, *shape, dtype=torch.float64) for name, shape in shapes.items()}
    hidden, gate, offset, shift, label = (
        numbers(generator, 1, 7, *shape, dtype=torch.float64) for shape in ((1, H1), (1, H2), (1,), (1, H2), (1,))
    )
    support = base.MetaInput(hidden, gate, offset, shift)
    tasks = adapters.Tasks(support, label, torch.full((1, 7), 1 / 7, dtype=torch.float64))
    found = adapter.logits(fast, adapter.adapt(fast, tasks), support)[0, :, 0]
    active = torch.relu(hidden @ fast["tower.weight"] + fast["tower.bias"] + shift) * gate
    rows = torch.cat([active[0, :, 0], torch.ones(7, 1, dtype=torch.float64)], 1)
    plain = base.tower(fast, support)[0, :, 0]
    prior = torch.diag(torch.exp(fast["meta.prior"][0]) / 0.2)
    change = torch.linalg.solve(rows.T @ rows + prior, rows.T @ (label[0, :, 0] - plain))
    assert torch.allclose(found, plain + rows @ change)
