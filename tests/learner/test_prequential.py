"""Prequential figures agree with the definitions, whatever the order, the weights and the restarts."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner import prequential
from learner.prequential import ALL, OTHER, Prequential, Quality
from state import ids

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
                    np.testing.assert_allclose(q[5:], expected(s, scenario, v, o, last_rows), rtol=1e-5)


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
    np.testing.assert_allclose(q[5:], expected(s, HOME, 0, 0, 100), rtol=1e-5)
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
