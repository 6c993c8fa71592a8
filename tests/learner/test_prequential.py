"""Prequential figures agree with the definitions, whatever the order, the weights and the restarts."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner import prequential
from learner.prequential import ALL, OTHER, Prequential, Quality
from models import losses
from state import ids
from state.config import Objective

HOME, FEED = ids.of("home"), ids.of("feed")


class Stream(NamedTuple):
    scenario: npt.NDArray[np.uint64]
    user: npt.NDArray[np.uint64]
    n_items: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]
    label: npt.NDArray[np.float32]
    weight: npt.NDArray[np.float32]


def stream(lists: int, seed: int, objectives: int = 1) -> Stream:
    rng = np.random.default_rng(seed)
    n_items = rng.integers(0, 5, lists).astype(np.int32)
    rows = int(n_items.sum())
    # Scores in the middle of a bucket, so that the histogram's AUC is the exact one; few of them, so that there are ties.
    scores = ((rng.integers(0, 25, (3, rows, objectives)) * 40 + 0.5) / 1000).astype(np.float32)
    scores[2, rng.random(rows) < 0.2] = np.nan
    label = (rng.random((rows, objectives)) < scores[0]).astype(np.float32)
    weight = rng.integers(0, 3, (rows, objectives)).astype(np.float32)
    scenario = np.where(rng.random(lists) < 0.5, np.uint64(HOME), np.uint64(FEED))
    return Stream(scenario, rng.integers(0, 6, lists).astype(np.uint64), n_items, scores, label, weight)


def figures(objectives: tuple[str, ...] = ("click",), **settings: Any) -> Prequential:
    given: dict[str, Any] = {"known": ("home", "feed"), "max_shown": 8, "window_rows": 100} | settings
    return Prequential(objectives, **given)


def feed_in(target: Prequential, s: Stream, first: int = 0, last: int | None = None) -> npt.NDArray[np.float64]:
    ends = np.concatenate([[0], np.cumsum(s.n_items)])
    last = len(s.user) if last is None else last
    a, b = ends[first], ends[last]
    part = slice(first, last)
    return target.update(
        s.scenario[part], s.user[part], s.n_items[part], np.ascontiguousarray(s.scores[:, a:b]), s.label[a:b], s.weight[a:b],
        {HOME: "home", FEED: "feed"},
    )  # fmt: skip


def exact_auc(p: npt.NDArray[Any], y: npt.NDArray[Any], w: npt.NDArray[Any]) -> float:
    p, mass = p.astype(float), np.outer(w * y, w * (1 - y))
    won = (p[:, None] > p[None, :]) + (p[:, None] == p[None, :]) / 2
    return float((won * mass).sum() / mass.sum()) if mass.sum() else float("nan")


def expected(s: Stream, scenario: int, v: int, o: int, last_rows: int | None = None) -> tuple[float, float, float, float]:
    rows = slice(None if last_rows is None else -last_rows, None)
    user, where = np.repeat(s.user, s.n_items)[rows], np.repeat(s.scenario, s.n_items)[rows]
    p, y, w = (a[rows] for a in (s.scores[v, :, o], s.label[:, o], s.weight[:, o]))
    mine = (where == scenario) & ~np.isnan(p) & (w > 0)
    user, p, y, w = user[mine], p[mine].astype(float), y[mine].astype(float), w[mine].astype(float)
    groups = [(exact_auc(p[user == u], y[user == u], w[user == u]), w[user == u].sum()) for u in np.unique(user)]
    both = [(a, mass) for a, mass in groups if not np.isnan(a)]
    gauc = sum(a * mass for a, mass in both) / sum(mass for _, mass in both) if both else float("nan")
    logloss = -(w * (y * np.log(p) + (1 - y) * np.log(1 - p))).sum() / w.sum() if len(w) else float("nan")
    positive = (w * y).sum()
    return exact_auc(p, y, w), gauc, float(logloss), float((w * p).sum() / positive) if positive else float("nan")


def found(qualities: list[Quality], scenario: str, v: int, objective: str = "click") -> Quality:
    (one,) = [q for q in qualities if (q.scenario, q.objective, q.variant) == (scenario, objective, prequential.VARIANTS[v])]
    return one


@pytest.mark.parametrize("seed", range(5))
def test_figures_are_those_of_the_definitions(seed: int) -> None:
    s, ours = stream(300, seed, objectives=2), figures(("click", "like"))
    feed_in(ours, s)
    for window, last_rows in (("cumulative", None), ("recent", 100)):
        report = ours.report(window)
        for name, scenario in (("home", HOME), ("feed", FEED)):
            for v in range(3):
                for o, objective in enumerate(("click", "like")):
                    q = found(report, name, v, objective)
                    np.testing.assert_allclose(q[5:9], expected(s, scenario, v, o, last_rows), rtol=1e-5)


@given(st.integers(0, 2**31), st.lists(st.integers(0, 60), max_size=4))
def test_the_cut_into_updates_and_restarts_change_nothing(seed: int, cuts: list[int]) -> None:
    s, straight, ours = stream(60, seed), figures(), figures()
    losses = feed_in(straight, s)
    parts = []
    for first, last in zip([0, *sorted(cuts)], [*sorted(cuts), 60], strict=True):
        parts.append(feed_in(ours, s, first, last))
        saved = {name: array.copy() for name, array in ours.arrays().items()}
        ours = figures()
        ours.load(saved)
    np.testing.assert_array_equal(np.concatenate(parts), losses)
    for window in ("cumulative", "recent"):
        np.testing.assert_array_equal([q[4:] for q in ours.report(window)], [q[4:] for q in straight.report(window)])


def test_the_windows_ring_wraps_around() -> None:
    s, ours = stream(400, 3), figures(gauc_rows=130)
    for first in range(0, 400, 7):
        feed_in(ours, s, first, min(first + 7, 400))
    q = found(ours.report("recent"), "home", 0)
    np.testing.assert_allclose(q[5:9], expected(s, HOME, 0, 0, 100), rtol=1e-5)
    np.testing.assert_allclose(found(ours.report(), "home", 0).gauc, expected(s, HOME, 0, 0, 130)[1], rtol=1e-5)


def test_a_list_loss_is_the_weighted_mean_of_its_rows() -> None:
    scores = np.full((3, 3, 1), 0.5, np.float32)
    scores[0, :, 0] = [0.9, 0.2, 0.5]
    label, weight = np.array([[1], [0], [1]], np.float32), np.array([[3], [1], [0]], np.float32)
    ours = figures()
    scenario, user = np.array([HOME, FEED], np.uint64), np.array([1, 2], np.uint64)
    losses = ours.update(scenario, user, np.array([2, 1]), scores, label, weight, {})
    np.testing.assert_allclose(losses[0], -(3 * np.log(0.9) + np.log(0.8)) / 4, rtol=1e-6)
    assert np.isnan(losses[1]), "its only row has no weight"


def test_scenarios_beyond_the_limit_share_one_name() -> None:
    ours = figures(known=(), max_shown=2)
    names = {7: "seven", 9: "nine"}
    scenario, ones = np.array([7, 8, 9, 10], np.uint64), np.ones((4, 1), np.float32)
    ours.update(scenario, scenario, np.ones(4, np.int32), np.full((3, 4, 1), 0.5, np.float32), ones, ones, names)
    assert ours.rows_by_scenario() == {"seven": 1, "0000000000000008": 1, OTHER: 2}
    assert [ours.name_of(s) for s in (7, 9, 11)] == ["seven", OTHER, OTHER]


def test_all_scenarios_together_are_shown_last() -> None:
    s, ours = stream(200, 1), figures()
    feed_in(ours, s)
    q = found(ours.report(), ALL, 0)
    one = s._replace(scenario=np.full_like(s.scenario, HOME))
    auc, _, logloss, calibration = expected(one, HOME, 0, 0)
    np.testing.assert_allclose((q.auc, q.logloss, q.calibration), (auc, logloss, calibration), rtol=1e-5)


def test_the_gain_of_adaptation_is_paired_and_its_error_takes_lists_as_units() -> None:
    s, ours = stream(500, 2), figures()
    feed_in(ours, s)
    gain = ours.gains()[-1]
    p, y, w = s.scores[:, :, 0].astype(float), s.label[:, 0], s.weight[:, 0]
    loss = -(y * np.log(p) + (1 - y) * np.log(1 - p))
    difference, owner = w * (loss[1] - loss[0]), np.repeat(np.arange(500), s.n_items)
    d, n = np.bincount(owner, difference, 500), np.bincount(owner, w, 500)
    mean = d.sum() / n.sum()
    np.testing.assert_allclose(gain.logloss, mean, rtol=1e-6)
    np.testing.assert_allclose(gain.stderr, np.sqrt(((d - mean * n) ** 2).sum()) / n.sum(), rtol=1e-6)
    report = ours.report()
    np.testing.assert_allclose(gain.auc, found(report, ALL, 0).auc - found(report, ALL, 1).auc)


@pytest.mark.parametrize("bad", [float("nan"), -0.1, 1.1, float("inf")])
def test_a_score_that_is_no_probability_does_not_count(bad: float) -> None:
    ours, one = figures(), np.ones((1, 1), np.float32)
    scores = np.array([bad, 0.5, 0.5], np.float32).reshape(3, 1, 1)
    losses = ours.update(np.array([HOME], np.uint64), np.array([1], np.uint64), np.array([1]), scores, one, one, {})
    assert np.isnan(losses[0])
    assert [found(ours.report(), "home", v).rows for v in range(3)] == [0, 1, 1]


def test_a_certain_and_wrong_score_costs_much_but_not_everything() -> None:
    ours, one = figures(), np.ones((1, 1), np.float32)
    scores = np.zeros((3, 1, 1), np.float32)
    losses = ours.update(np.array([HOME], np.uint64), np.array([1], np.uint64), np.array([1]), scores, one, one, {})
    np.testing.assert_allclose(losses, -np.log(1e-7))


def test_a_state_of_other_objectives_is_refused() -> None:
    with pytest.raises(ValueError, match="objectives"):
        figures(("click", "like")).load(figures().arrays())


def test_a_state_with_another_window_keeps_the_cumulative_figures() -> None:
    s, ours = stream(300, 4), figures(gauc_rows=150)
    feed_in(ours, s)
    other = figures(gauc_rows=500)
    other.load(ours.arrays())
    assert found(other.report(), "home", 0).auc == found(ours.report(), "home", 0).auc
    assert np.isnan(found(other.report("recent"), "home", 0).auc)


KINDS = (
    Objective(name="click", action="click", scenarios=("home",)),
    Objective(name="power", action="buy", kind="multiclass", classes=3),
    Objective(name="time", action="watch", kind="regression"),
    Objective(name="order", action="click", kind="ranking", weights={"buy": 5.0}),
)


def of_kinds(lists: int, seed: int) -> Stream:
    """Predictions (3, R, 6) and labels (R, 4), NaN where there is none."""
    rng, base = np.random.default_rng(seed), stream(lists, seed)
    rows = len(base.label)
    power = rng.dirichlet(np.ones(3), (3, rows))
    columns: list[npt.NDArray[Any]] = [base.scores, power, rng.normal(3, 1, (3, rows, 1)), rng.integers(0, 9, (3, rows, 1)) / 9]
    label = np.column_stack([base.label[:, 0], rng.integers(0, 3, rows), rng.normal(3, 1, rows), rng.choice([0, 0, 1, 5], rows)])
    label[rng.random(label.shape) < 0.2] = np.nan
    label[np.repeat(base.scenario == FEED, base.n_items), 0] = np.nan
    weight = np.where(np.isnan(label), 0, rng.integers(0, 3, label.shape))
    scores = np.concatenate(columns, 2).astype(np.float32)
    return base._replace(scores=scores, label=label.astype(np.float32), weight=weight.astype(np.float32))


@pytest.mark.parametrize("seed", range(3))
def test_each_kind_has_its_own_figures_over_the_rows_that_have_it(seed: int) -> None:
    s = of_kinds(300, seed)
    ours = figures(tuple(o.name for o in KINDS), parts=losses.plan(KINDS).parts)
    feed_in(ours, s)
    of_list = np.repeat(np.arange(len(s.user)), s.n_items)
    where = np.repeat(s.scenario, s.n_items)
    for window, last in (("cumulative", None), ("recent", 100)):
        rows = np.arange(len(where))[slice(None if last is None else -last, None)]
        rows = rows[where[rows] == FEED]
        click, power, time, order = (found(ours.report(window), "feed", 1, o.name) for o in KINDS)
        assert click.rows == 0
        mine = rows[s.weight[rows, 1] > 0]
        w, p, y = s.weight[mine, 1].astype(float), s.scores[1, mine, 1:4].astype(float), s.label[mine, 1].astype(int)
        assert power.rows == len(mine)
        assert power.accuracy == pytest.approx(np.average(p.argmax(1) == y, weights=w))
        assert power.logloss == pytest.approx(np.average(-np.log(p[np.arange(len(y)), y]), weights=w), rel=1e-5)
        mine = rows[s.weight[rows, 2] > 0]
        w, p, y = s.weight[mine, 2].astype(float), s.scores[1, mine, 4].astype(float), s.label[mine, 2].astype(float)
        assert time.rmse == pytest.approx(np.sqrt(np.average((p - y) ** 2, weights=w)), rel=1e-5)
        assert time.calibration == pytest.approx((w * p).sum() / (w * y).sum(), rel=1e-5)
        areas, masses = [], []
        for i in np.unique(of_list[rows]):
            own = rows[(of_list[rows] == i) & (s.weight[rows, 3] > 0)]
            w, p, y = s.weight[own, 3].astype(float), s.scores[1, own, 5], s.label[own, 3].astype(float)
            pairs = np.maximum(y[:, None] - y[None, :], 0) * np.outer(w, w)
            if pairs.sum():
                won = (p[:, None] > p[None, :]) + (p[:, None] == p[None, :]) / 2
                areas.append((pairs * won).sum() / pairs.sum())
                masses.append(w.sum())
        assert order.gauc == pytest.approx(np.average(areas, weights=masses), rel=1e-5)
        assert np.isnan([power.auc, power.gauc, power.calibration, power.rmse, time.logloss, time.auc, order.auc]).all()
        assert np.isnan([order.logloss, order.calibration, order.accuracy, time.accuracy]).all()


@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 40))
def test_rows_without_an_objective_change_none_of_its_figures(seed: int, lists: int, more: int) -> None:
    s, t = of_kinds(lists, seed), of_kinds(more, seed + 1)
    without = t._replace(label=np.full_like(t.label, np.nan), weight=np.zeros_like(t.weight))
    names, parts = tuple(o.name for o in KINDS), losses.plan(KINDS).parts
    alone, beside = figures(names, parts=parts), figures(names, parts=parts)
    feed_in(alone, s)
    assert np.isnan(feed_in(beside, without)).all()
    feed_in(beside, s)
    np.testing.assert_array_equal([q[4:] for q in alone.report()], [q[4:] for q in beside.report()])


def test_a_list_without_the_first_objective_has_the_loss_of_the_next_that_it_has() -> None:
    s = of_kinds(1, 0)._replace(scenario=np.array([FEED], np.uint64), n_items=np.array([2], np.int32))
    label, weight = np.array([[np.nan, np.nan, 3.0, 1.0]] * 2, np.float32), np.array([[0, 0, 1, 1]] * 2, np.float32)
    scores = np.full((3, 2, 6), 0.5, np.float32)
    scores[0, :, 4] = [1.0, 4.0]
    ours = figures(tuple(o.name for o in KINDS), parts=losses.plan(KINDS).parts)
    assert feed_in(ours, s._replace(label=label, weight=weight, scores=scores)).tolist() == [2.5]


def test_figures_of_other_kinds_are_not_taken_over() -> None:
    binary = figures(tuple(o.name for o in KINDS))
    with pytest.raises(ValueError, match="other kinds"):
        figures(tuple(o.name for o in KINDS), parts=losses.plan(KINDS).parts).load(binary.arrays())
