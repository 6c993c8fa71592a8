"""A change of the stream is noticed, in its own scenario only."""

import numpy as np

from learner.drift import Drift


def test_a_jump_of_the_loss_is_counted_in_its_scenario_only() -> None:
    rng = np.random.default_rng(0)
    detector = Drift()
    before, after = rng.normal(0.5, 0.1, 2000), rng.normal(0.9, 0.1, 500)
    assert detector.update(["a", "b"] * 2000, np.repeat(before, 2).tolist()) == {}
    found = detector.update(["a", "b"] * 500, np.stack([after, before[:500]], 1).reshape(-1).tolist())
    assert found["a"] >= 1
    assert "b" not in found


def test_a_list_without_a_loss_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0.5, 0.1, 1000), rng.normal(0.9, 0.1, 300)]).tolist()
    with_gaps = [v for value in values for v in (value, float("nan"))]
    plain, gappy = Drift(), Drift()
    assert plain.update(["a"] * len(values), values) == gappy.update(["a"] * len(with_gaps), with_gaps) != {}
