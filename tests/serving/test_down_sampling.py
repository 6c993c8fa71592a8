"""Probabilities of real traffic from a model of a stream without most of its negatives."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving import down_sampling
from state import config, ids

CLICK, SAVE = config.Objective(name="click", action="click"), config.Objective(name="save", action="save")


def correction(*objectives: config.Objective, **shares: float) -> down_sampling.Correction:
    known = tuple(name for name in shares if name != "others")
    sampling = {"*" if name == "others" else name: share for name, share in shares.items()}
    scenarios = msgspec.structs.replace(config.Config().scenarios, known=known, negative_sampling=sampling)
    return down_sampling.Correction(msgspec.structs.replace(config.Config(), objectives=objectives, scenarios=scenarios))


@given(st.floats(0.001, 0.999), st.floats(0.01, 1.0))
def test_the_rate_of_a_down_sampled_stream_becomes_that_of_the_traffic(rate: float, share: float) -> None:
    seen = rate / (rate + (1 - rate) * share)
    put_right = correction(CLICK, home=share).apply(np.array([[seen]], np.float32), ids.of("home"))
    assert put_right[0, 0] == pytest.approx(rate, rel=1e-4, abs=1e-6)


@given(st.floats(0.01, 0.9), st.floats(0.0, 1.0), st.floats(0.05, 1.0))
def test_a_second_objective_that_needs_the_first_is_put_right_exactly(clicks: float, saved: float, share: float) -> None:
    kept = clicks + (1 - clicks) * share
    seen = np.array([[clicks / kept, clicks * saved / kept]], np.float32)
    put_right = correction(CLICK, SAVE, home=share).apply(seen, ids.of("home"))
    np.testing.assert_allclose(put_right[0], [clicks, clicks * saved], rtol=1e-4, atol=1e-6)


def test_each_scenario_has_its_own_share_and_the_rest_that_of_the_others() -> None:
    asked, half = correction(CLICK, home=0.5, others=0.1), np.array([[0.5]], np.float32)
    found = [float(asked.apply(half, ids.of(name))[0, 0]) for name in ("home", "elsewhere")]
    assert found == pytest.approx([1 / 3, 1 / 11])


def test_what_was_not_sampled_keeps_its_bytes() -> None:
    scores = np.array([[0.3], [0.7]], np.float32)
    assert correction(CLICK, home=0.5).apply(scores, ids.of("elsewhere")) is scores
    assert correction(CLICK).apply(scores, ids.of("home")) is scores


def test_only_probabilities_of_objectives_that_the_scenario_has_are_changed() -> None:
    far = config.Objective(name="far", action="far", scenarios=("away",))
    time = config.Objective(name="time", action="watch", kind="regression")
    scores = np.array([[0.2, 0.9, 30.0]], np.float32)
    put_right = correction(CLICK, far, time, home=0.5).apply(scores, ids.of("home"))
    np.testing.assert_allclose(put_right[0], [0.2 / (0.2 + 0.8 / 0.5), 0.9, 30.0], rtol=1e-6)
