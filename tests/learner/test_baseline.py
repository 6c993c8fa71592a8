"""The baseline is river's own, survives a restart, and never touches users outside its share."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from river import linear_model, optim, preprocessing

from learner.baseline import Baseline
from state import ids, spec

SPEC = spec.Features(
    categories=(spec.Category(name="user", source="user_id"), spec.Category(name="tags", source="item.tags", max_values=2)),
    numbers=(spec.Number(name="price", source="item.price"), spec.Number(name="size", source="item.size")),
)


def rows(n: int, seed: int = 0) -> tuple[npt.NDArray[Any], ...]:
    rng = np.random.default_rng(seed)
    users = rng.integers(0, 9, n).astype(np.uint64)
    columns = np.stack([users, *rng.integers(0, 4, (2, n)).astype(np.uint64)], 1)
    columns[rng.random(n) < 0.3, 2] = ids.PAD
    x = rng.standard_normal((n, 2)).astype(np.float32)
    x[rng.random(n) < 0.1, 1] = np.nan
    label = (rng.random((n, 1)) < 1 / (1 + np.exp(-2 * x[:, :1]))).astype(np.float32)
    return users, columns, x, label, np.ones((n, 1), np.float32)


def test_predictions_are_those_of_river_used_by_hand() -> None:
    users, columns, x, label, weight = rows(200)
    scaler, model = preprocessing.StandardScaler(), linear_model.LogisticRegression(optimizer=optim.SGD(0.01))
    expected = []
    for i in range(len(users)):
        numbers = {n: v for n, v in zip(("price", "size"), x[i].tolist(), strict=True) if not np.isnan(v)}
        scaler.learn_one(numbers)
        features = scaler.transform_one(numbers)
        features |= {(min(f, 1), v): 1.0 for f, v in enumerate(columns[i].tolist()) if v != ids.PAD}
        expected.append(model.predict_proba_one(features)[True])
        model.learn_one(features, bool(label[i, 0]))
    np.testing.assert_allclose(Baseline(SPEC, 1).update(users, columns, x, label, weight)[:, 0], expected, rtol=1e-5)


def test_a_restart_in_between_changes_no_prediction() -> None:
    data = rows(400)
    straight = Baseline(SPEC, 1)
    expected = straight.update(*data)
    first = Baseline(SPEC, 1)
    first.update(*(column[:150] for column in data))
    resumed = Baseline(SPEC, 1)
    resumed.load({name: array.copy() for name, array in first.arrays().items()})
    np.testing.assert_array_equal(resumed.update(*(column[150:] for column in data)), expected[150:])


def test_a_share_leaves_whole_users_out() -> None:
    users = np.arange(4000, dtype=np.uint64)
    half = Baseline(SPEC, 1, share=0.5)
    assert 0.45 < half.chosen(users).mean() < 0.55
    data = rows(300)
    scores = half.update(*data)
    np.testing.assert_array_equal(np.isnan(scores[:, 0]), ~half.chosen(data[0]))
    assert not Baseline(SPEC, 1, share=0.0).chosen(users).any()


def test_a_row_without_weight_is_scored_and_not_learned() -> None:
    users, columns, x, label, _ = rows(50)
    one = Baseline(SPEC, 1)
    scores = one.update(users, columns, x, label, np.zeros((50, 1), np.float32))
    np.testing.assert_array_equal(scores, np.full((50, 1), 0.5, np.float32))


def test_each_objective_has_a_model_of_its_own() -> None:
    users, columns, x, label, weight = rows(300)
    both = Baseline(SPEC, 2).update(users, columns, x, np.hstack([label, 1 - label]), np.hstack([weight, weight]))
    assert np.corrcoef(both[100:, 0], both[100:, 1])[0, 1] < -0.9


def test_a_state_of_another_spec_is_refused() -> None:
    other = Baseline(spec.Features(numbers=SPEC.numbers[:1]), 1)
    with pytest.raises(ValueError, match="other numbers"):
        Baseline(SPEC, 1).load(other.arrays())
    with pytest.raises(ValueError, match="objectives"):
        Baseline(SPEC, 1).load(Baseline(SPEC, 2).arrays())


def test_no_row_of_a_minibatch_is_learned_before_all_of_it_is_predicted() -> None:
    features = spec.Features(categories=(spec.Category(name="user", source="user_id"),))
    n = 6
    users, row_ids = np.full(n, 7, np.uint64), np.full((n, 1), 7, np.uint64)
    x, ones = np.zeros((n, 0), np.float32), np.ones((n, 1), np.float32)
    whole = Baseline(features, 1)
    scores = whole.update(users, row_ids, x, ones, ones, stops=[4, 6])[:, 0]
    assert scores[0] == scores[1] == scores[2] == scores[3]
    assert scores[4] == scores[5] > scores[0]
    apart = Baseline(features, 1)
    first = apart.update(users[:4], row_ids[:4], x[:4], ones[:4], ones[:4], stops=[4])
    second = apart.update(users[4:], row_ids[4:], x[4:], ones[4:], ones[4:], stops=[2])
    np.testing.assert_array_equal(np.concatenate([first, second])[:, 0], scores)
