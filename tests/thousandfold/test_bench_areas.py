import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thousandfold.bench import areas, figures
from thousandfold.bench.models import seesaw

USERS = 150


def made(seed: int, users: int = USERS, steps: float = 0.2) -> tuple[areas.Rows, list[areas.Column]]:
    """Rows of users with an effect of their own, and scores of two models that know it to different degrees, with ties."""
    random = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), random.integers(1, 30, users))
    own, noise = random.normal(size=users)[user], random.normal(size=(3, len(user)))
    label = (own + noise[0] + random.logistic(size=len(user)) > 0).astype(np.float32)
    scores = [own + noise[0] + noise[1], 0.3 * own + noise[0] + noise[2]]
    return areas.Rows(label, user, user, users), [np.round(s / steps) * steps for s in scores]


def both(rows: areas.Rows, score: areas.Column, part: areas.Column) -> tuple[areas.Area, areas.Area]:
    by_score, by_group = areas.ascending(score), areas.grouped(rows.group, score)
    return areas.auc(rows, score, by_score[part[by_score]]), areas.gauc(rows, score, by_group[part[by_group]])


@given(st.integers(0, 10_000), st.integers(1, 12), st.sampled_from([0.01, 0.5, 4.0]))
def test_areas_are_those_of_the_figures_and_influences_sum_to_zero(seed: int, users: int, steps: float) -> None:
    rows, (score, _) = made(seed, users, steps)
    part = np.random.default_rng(seed).random(len(score)) < 0.7
    expected = figures.figures(rows.group[part], rows.label[part], score[part])
    for area, value in zip(both(rows, score, part), (expected.auc, expected.gauc), strict=True):
        assert area.value == pytest.approx(value, nan_ok=True)
        assert area.influence.sum() == pytest.approx(0, abs=1e-9)


def test_the_error_of_a_paired_difference_is_that_of_drawing_users_again() -> None:
    rows, scores = made(0)
    every = np.ones(len(rows.label), np.bool_)
    weight = seesaw.weights(USERS, 1, 1500)
    drawn = [seesaw.area(rows.label, [s.astype(np.float32)], rows.user.astype(np.int32), weight) for s in scores]
    expected = seesaw.difference(*drawn)
    found = areas.difference(*([both(rows, s, every)[0]] for s in scores))
    assert found.value == pytest.approx(expected.value)
    assert found.stderr == pytest.approx(expected.stderr, rel=0.1)


def test_the_error_of_a_gauc_difference_is_that_of_drawing_users_again() -> None:
    rows, scores = made(1)
    every, random = np.ones(len(rows.label), np.bool_), np.random.default_rng(2)
    of_user = [np.flatnonzero(rows.user == u) for u in range(USERS)]
    own = np.array([[figures.auc(rows.label[r], s[r]) for s in scores] for r in of_user])
    size, known = np.array([len(r) for r in of_user]), np.isfinite(own[:, 0])
    differences = []
    for drawn in random.integers(0, USERS, (1500, USERS)):
        chosen = drawn[known[drawn]]
        differences.append(np.average(own[chosen, 0] - own[chosen, 1], weights=size[chosen]))
    found = areas.difference(*([both(rows, s, every)[1]] for s in scores))
    assert found.stderr == pytest.approx(float(np.std(differences)), rel=0.1)


def test_runs_are_paired_and_their_spread_adds_to_the_error() -> None:
    rows, (score, other) = made(3)
    every = np.ones(len(rows.label), np.bool_)
    one, two = both(rows, score, every)[0], both(rows, other, every)[0]
    alone = areas.difference([one], [two])
    assert areas.difference([one], [two, two]) == alone
    moved = areas.Area(one.value + 0.02, one.influence)
    several = areas.difference([one, moved], [two, two])
    assert several.value == pytest.approx(alone.value + 0.01)
    assert several.stderr == pytest.approx(np.hypot(alone.stderr, 0.01))
    assert areas.difference([one], [one]) == (0.0, 0.0)
    assert np.isnan(areas.difference([one], [areas.Area(float("nan"), one.influence)]).stderr)
