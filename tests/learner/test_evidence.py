"""The sequential test: how often it raises a false alarm, that it finds a gain, and what a gain is."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from learner import evidence

ALPHA = 0.05


@hypothesis_settings(max_examples=40)
@given(
    st.lists(st.tuples(st.floats(0.05, evidence.BOUND), st.floats(0.05, evidence.BOUND)), min_size=7, max_size=7),
    st.floats(0.1, 0.9),
)
def test_on_every_path_of_a_null_stream_together_an_alarm_is_no_likelier_than_stated(
    steps: list[tuple[float, float]], alpha: float
) -> None:
    threshold, chance = -math.log(alpha), 0.0
    for path in itertools.product((True, False), repeat=len(steps)):
        likelihood = math.prod(
            loss / (gain + loss) if up else gain / (gain + loss) for up, (gain, loss) in zip(path, steps, strict=True)
        )
        moves = np.array([gain if up else -loss for up, (gain, loss) in zip(path, steps, strict=True)])
        chance += likelihood * evidence.told(evidence.fresh(), moves, threshold)[1]
    assert chance <= alpha + 1e-9


@hypothesis_settings(max_examples=6)
@given(st.integers(0, 2**32 - 1), st.floats(0.02, 0.5), st.floats(0.0, 0.97), st.sampled_from([0.05, 0.5, 3.0]))
def test_false_alarms_of_null_streams_of_any_shape_stay_below_the_stated_rate(
    seed: int, chance: float, memory: float, scale: float
) -> None:
    """Skewed, of changing scale (also by what has happened so far), 200 streams of 1,500 lists each."""
    rng, streams, lists = np.random.default_rng(seed), 200, 1500
    sign = np.where(rng.random((streams, lists)) < chance, 1 - chance, -chance)
    size = np.ones((streams, lists))
    for t in range(1, lists):
        size[:, t] = memory * size[:, t - 1] + (1 - memory) * np.where(sign[:, t - 1] > 0, 2.0, 0.3)
    differences = np.clip(scale * size * sign, -evidence.BOUND, evidence.BOUND)
    alarms = sum(evidence.told(evidence.fresh(), row, -math.log(ALPHA))[1] for row in differences)
    assert alarms <= streams * ALPHA + 4 * math.sqrt(streams * ALPHA)


def test_a_small_gain_is_found_in_the_time_that_its_size_over_its_noise_asks_for() -> None:
    rng, found = np.random.default_rng(5), []
    for _ in range(8):
        seen, alarm = evidence.told(evidence.fresh(), rng.normal(0.005, 0.2, 40_000).clip(-8, 8), -math.log(0.01))
        assert alarm
        found.append(seen.told_of)
    assert np.median(found) < 1.2 * 2 * math.log(1000) * (0.2 / 0.005) ** 2


@given(st.lists(st.floats(-8, 8), min_size=1, max_size=30), st.data())
def test_what_is_known_does_not_depend_on_how_the_stream_was_cut(stream: list[float], data: st.DataObject) -> None:
    d, threshold = np.array(stream), math.log(3)
    whole, alarm = evidence.told(evidence.fresh(), d, threshold)
    cut = data.draw(st.integers(0, len(d)))
    first, early = evidence.told(evidence.fresh(), d[:cut], threshold)
    parts, late = (first, early) if early else evidence.told(first, d[cut:], threshold)
    assert (parts.told_of, early or late) == (whole.told_of, alarm)
    np.testing.assert_array_equal(parts.wealth, whole.wealth)


def gains(
    adapted: list[float], unadapted: list[float], label: list[float], weight: list[float], n_items: list[int]
) -> list[float]:
    column = [np.array(part, np.float32).reshape(-1, 1) for part in (label, weight, adapted, unadapted)]
    return [float(g) for g in evidence.gains(np.array(n_items), *column)]


def test_a_gain_is_the_mean_logloss_that_a_list_saves_by_weight() -> None:
    first, second = gains([0.8, 0.5, 0.3], [0.5, 0.5, 0.6], [1, 0, 0], [1, 3, 1], [2, 1])
    assert first == pytest.approx(math.log(0.8 / 0.5) / 4, rel=1e-5)
    assert second == pytest.approx(math.log(0.7 / 0.4), rel=1e-5)


def test_a_list_that_nobody_predicts_differently_or_that_has_no_weight_is_not_judged() -> None:
    judged = gains(
        [0.5, 0.9, 0.9, math.nan, 0.4], [0.5, 0.5, 0.5, 0.5, 0.5], [1, 1, math.nan, 1, 0], [1, 0, 0, 1, 1], [1, 1, 1, 1, 0, 1]
    )
    assert [math.isnan(g) for g in judged] == [True, True, True, True, True, False]


def test_a_prediction_that_is_surely_wrong_costs_no_more_than_the_bound() -> None:
    assert gains([0.0, 1.0], [1.0, 0.0], [1, 1], [1, 1], [1, 1]) == pytest.approx([-evidence.BOUND, evidence.BOUND])
