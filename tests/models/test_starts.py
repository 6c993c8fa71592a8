import math

import numpy as np
import pytest

from models import losses, starts
from state import config

KINDS = """
[optimizer]
start_rows = 40
[[objectives]]
name = "click"
action = "click"
[[objectives]]
name = "stars"
action = "rate"
kind = "multiclass"
classes = 3
[[objectives]]
name = "spent"
action = "pay"
kind = "regression"
transform = "log1p"
scale = 2.0
[[objectives]]
name = "order"
action = "buy"
kind = "ranking"
"""


def counting(text: str = KINDS) -> tuple[starts.Starts, np.ndarray]:
    settings = config.parse(text)
    plan = losses.plan(settings.objectives)
    bias = np.zeros(plan.outputs, np.float32)
    return starts.Starts(settings, plan, bias), bias


def rows(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    label = np.stack([random.random(n) < 0.1, random.integers(0, 3, n), 9 * random.random(n), random.random(n) < 0.1], 1)
    return label.astype(np.float32), np.ones((n, 4), np.float32)


def test_biases_say_what_the_labels_so_far_say_by_kind_of_objective() -> None:
    own, bias = counting()
    label, weight = rows(30)
    for part in (slice(7), slice(7, 30)):
        own.count(label[part], weight[part])
    clicks, classes = label[:, 0].sum(), np.bincount(label[:, 1].astype(int), minlength=3) + 0.5
    assert bias[0] == pytest.approx(math.log((clicks + 0.5) / (30 - clicks + 0.5)), abs=1e-5)
    assert np.exp(bias[1:4]) / np.exp(bias[1:4]).sum() == pytest.approx(classes / classes.sum(), abs=1e-5)
    assert bias[4] == pytest.approx(np.log1p(label[:, 2]).mean() / 2, abs=1e-5)
    assert bias[5] == 0


def test_rows_weigh_as_they_do_in_the_loss() -> None:
    own, bias = counting()
    label, weight = rows(30)
    label[:3, 0] = 1
    weight[label[:, 0] == 0, 0] = 4
    own.count(label, 3 * weight)
    clicks = label[:, 0].sum()
    rate = clicks / (clicks + 4 * (30 - clicks))
    assert bias[0] == pytest.approx(math.log((30 * rate + 0.5) / (30 * (1 - rate) + 0.5)), abs=1e-5)


def test_after_enough_labelled_rows_they_are_left_to_the_optimiser() -> None:
    own, bias = counting()
    for seed in range(2):
        assert own.begins(rows(20)[0]) == (seed == 0)
        own.count(*rows(20, seed))
    told = bias.copy()
    bias += 1
    own.count(*rows(20, 5))
    assert (bias == told + 1).all()


def test_an_objective_that_nobody_told_of_begins_with_its_own_first_label() -> None:
    own, bias = counting()
    label, weight = rows(20)
    label[:, 2] = np.nan
    own.count(label, weight)
    assert bias[0] != 0
    assert bias[4] == 0
    assert not own.begins(label)
    label[4, 2] = 3.0
    assert own.begins(label)
    was = bias.copy()
    own.count(label, weight)
    assert bias[4] == pytest.approx(math.log1p(3.0) / 2)
    own.restore([*own.copies()[:1], was])
    assert bias[4] == 0


def test_counts_go_on_from_a_snapshot_and_those_of_a_further_objective_begin() -> None:
    own, bias = counting()
    own.count(*rows(20))
    fewer, _ = counting(KINDS[: KINDS.rindex("[[")])
    before, again = fewer.arrays(), own.arrays()
    fewer.count(rows(20)[0][:, :3], rows(20)[1][:, :3])
    other, copied = counting()
    copied[:] = bias
    other.load({name: array.copy() for name, array in again.items()})
    for one in (own, other):
        one.count(*rows(20, 1))
    assert copied.tolist() == bias.tolist()
    other.load(before)
    assert other.seen[:5].tolist() == fewer.seen.tolist()
    assert not other.seen[5].any()


@pytest.mark.parametrize("text", [KINDS[: KINDS.index("[[", 50)], KINDS.replace("start_rows = 40", "start_rows = 0")])
def test_one_objective_or_no_rows_to_count_leave_the_outputs_at_0_for_good(text: str) -> None:
    own, bias = counting(text)
    label, weight = rows(20)
    assert not own.begins(label[:, : len(own.plan.parts)])
    own.count(label[:, : len(own.plan.parts)], weight[:, : len(own.plan.parts)])
    assert not bias.any()
    further, more = counting()
    further.load(own.arrays())
    assert further.begins(label) == (len(own.plan.parts) == 1)
    further.count(label, weight)
    assert more[0] == 0


def test_outputs_of_an_older_snapshot_have_begun_long_ago() -> None:
    own, bias = counting()
    own.load(starts.complete({}, 6))
    bias += 2
    assert not own.begins(rows(20)[0])
    own.count(*rows(20))
    assert (bias == 2).all()
