"""The mode `auto`: when a scenario goes on, when it goes off, and that both can be repeated."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from learner import policy
from state import config

HOME = 7
META = config.MetaLearning(mode="auto")


def feed(decider: policy.Policy, gains: policy.F64, scenario: int = HOME) -> policy.Scenario:
    decider.update(np.full(len(gains), scenario, np.uint64), np.asarray(gains, np.float64), {HOME: "home"})
    return decider.scenarios[scenario]


def noise(mean: float, lists: int, seed: int = 0) -> policy.F64:
    return np.random.default_rng(seed).normal(mean, 0.15, lists).clip(-8, 8)


def test_a_gain_turns_a_scenario_on_and_keeps_it_on() -> None:
    state = feed(policy.Policy(META), noise(0.02, 60_000))
    assert (state.on, state.changes, state.name) == (True, 1, "home")


@pytest.mark.parametrize(("afterwards", "lists"), [(0.0, 40_000), (-0.05, 2_000)])
def test_a_gain_that_ends_turns_it_off_within_its_patience_and_harm_does_so_sooner(afterwards: float, lists: int) -> None:
    decider = policy.Policy(META)
    assert feed(decider, noise(0.02, 20_000)).on
    assert not feed(decider, noise(afterwards, lists, 1)).on


def test_one_bad_stretch_shorter_than_its_patience_does_not_turn_it_off() -> None:
    decider = policy.Policy(META)
    took = feed(decider, noise(0.02, 20_000)).took
    assert took > 0
    assert feed(decider, noise(0.0, took, 2)).on


@hypothesis_settings(max_examples=2)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, -0.01]))
def test_scenarios_without_a_gain_are_ever_turned_on_no_more_often_than_stated(seed: int, mean: float) -> None:
    decider = policy.Policy(config.MetaLearning(mode="auto", auto_alarm_rate=0.1))
    rng = np.random.default_rng(seed)
    for scenario in range(60):
        feed(decider, (mean + rng.choice([-1.0, 1.0], 12_000) * rng.exponential(0.1, 12_000)).clip(-8, 8), scenario)
    turned = sum(state.changes > 0 for state in decider.scenarios.values())
    assert turned <= 60 * 0.1 + 4 * math.sqrt(6.0)


def test_a_gain_that_comes_late_waits_no_longer_than_the_time_before_it_and_what_it_takes() -> None:
    decider = policy.Policy(META)
    assert feed(decider, noise(0.0, 50_000)).changes == 0
    assert feed(decider, noise(0.03, 50_000, 3)).on


@hypothesis_settings(max_examples=10)
@given(st.lists(st.integers(1, 1300), max_size=4), st.booleans())
def test_decisions_do_not_depend_on_fetches_and_outlive_a_snapshot(cuts: list[int], through: bool) -> None:
    stream = np.concatenate([noise(0.3, 700), noise(-0.3, 700, 1)])
    stream[::7] = np.nan
    whole, parts = policy.Policy(META), policy.Policy(META)
    feed(whole, stream)
    for part in np.split(stream, sorted(c for c in set(cuts))):
        feed(parts, part)
        if through:
            again = policy.Policy(META)
            again.load(parts.arrays())
            parts = again
    assert whole.scenarios[HOME].changes >= 2
    for name, array in whole.arrays().items():
        np.testing.assert_array_equal(parts.arrays()[name], array)


def test_a_scenario_that_is_no_longer_automatic_is_forgotten() -> None:
    decider = policy.Policy(META)
    feed(decider, noise(0.1, 2000), 3)
    feed(decider, noise(0.1, 2000), 4)
    assert [key for key, _ in decider.differing(set())] == [3, 4]
    assert decider.differing({3, 4}) == []
    decider.keep(lambda scenario: scenario == 4)
    assert list(decider.scenarios) == [4]


def test_metrics_are_told_how_much_evidence_there_is_and_how_much_it_takes() -> None:
    decider = policy.Policy(META)
    feed(decider, noise(0.0, 300))
    judged = decider.judged()["home"]
    assert (judged.on, judged.changes) == (False, 0)
    assert judged.wanted == pytest.approx(math.log10(200))
    assert -5 < judged.evidence < judged.wanted
