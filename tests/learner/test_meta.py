"""The joint loss, its switch, and tasks in a minibatch."""

import numpy as np
import pytest
import torch

from learner import step
from models import base, modes, supports
from state import ids
from tests import minibatches


def trainer(native: bool = True, **meta: object) -> step.Trainer:
    out = step.Trainer(minibatches.settings(meta={"inner_rate": 0.5, **meta}), native=native)
    for i in range(4):
        out.step(minibatches.minibatch(out.settings, i), i)
    return out


def gradient(learner: step.Trainer, batch: base.Batch) -> list[float]:
    learner.step(batch, 100)
    values: list[float] = learner.gradient.flat.tolist()
    return values


def cross_entropy(p: step.F32, batch: base.Batch) -> float:
    q = p.astype(np.float64)
    return float((-(batch.label * np.log(q) + (1 - batch.label) * np.log(1 - q)) * batch.weight).sum() / len(q))


@pytest.mark.parametrize("native", [True, False])
def test_the_loss_is_the_original_plus_the_weighted_meta_loss(native: bool) -> None:
    learner = trainer(native, weight=0.7)
    batch = minibatches.minibatch(learner.settings, 20)
    said = learner.score(batch)
    assert said.loss == pytest.approx(cross_entropy(said.unadapted, batch) + 0.7 * cross_entropy(said.adapted, batch), rel=1e-5)
    assert np.abs(said.adapted - said.unadapted).max() > 1e-3


@pytest.mark.parametrize("native", [True, False])
def test_a_scenario_that_is_off_is_not_adapted_and_adds_nothing_to_the_meta_loss(native: bool) -> None:
    off, batch = trainer(native), minibatches.minibatch(minibatches.settings(), 20, support=5)
    off.modes.set(1, "off")
    said = off.score(batch)
    mine = np.repeat(batch.scenario == 1, batch.n_items)
    assert mine.any()
    assert not mine.all()
    assert said.adapted[mine].tolist() == said.unadapted[mine].tolist()
    assert (said.adapted[~mine] != said.unadapted[~mine]).any()
    meta = batch._replace(weight=batch.weight * ~mine[:, None])
    assert said.loss == pytest.approx(cross_entropy(said.unadapted, batch) + 0.5 * cross_entropy(said.adapted, meta), rel=1e-5)


@pytest.mark.parametrize("native", [True, False])
def test_fine_tune_only_adapts_and_trains_as_if_off(native: bool) -> None:
    batch = minibatches.minibatch(minibatches.settings(), 20, support=5)
    tuned, off, on = trainer(native), trainer(native), trainer(native)
    tuned.set_meta(None, "fine_tune_only")
    off.set_meta(None, "off")
    assert tuned.score(batch).adapted.tolist() == on.score(batch).adapted.tolist()
    assert off.score(batch).adapted.tolist() == off.score(batch).unadapted.tolist()
    assert tuned.score(batch).loss == pytest.approx(off.score(batch).loss)
    plain = gradient(off, batch)
    # Torch's sigmoid of a row may differ in the last place with the rows beside it, here the support rows.
    assert gradient(tuned, batch) == pytest.approx(plain, rel=1e-5, abs=1e-8)
    assert gradient(on, batch) != pytest.approx(plain, rel=1e-2, abs=1e-5)


def test_a_switch_made_while_running_survives_a_snapshot() -> None:
    first = trainer()
    first.set_meta("young", "off")
    first.set_meta(None, "fine_tune_only")
    second = step.Trainer(first.settings)
    second.load(first.arrays())
    assert second.modes.code(ids.of("young")) == modes.OFF
    assert second.modes.code(ids.of("other")) == modes.FINE_TUNE_ONLY
    assert {"meta.default", "meta.scenarios", "meta.modes"} <= set(first.serving_names)


def test_a_configuration_that_changed_since_the_snapshot_wins_over_its_switches() -> None:
    first = trainer()
    first.set_meta(None, "off")
    second = step.Trainer(minibatches.settings(meta={"inner_rate": 0.5, "scenarios": {"young": "off"}}))
    second.load(first.arrays())
    assert second.modes.code(ids.of("young")) == modes.OFF
    assert second.modes.code(ids.of("other")) == modes.ON


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="allowed: off, on, fine_tune_only, auto"):
        trainer().set_meta(None, "sometimes")  # type: ignore[arg-type]


def test_a_task_below_the_least_support_keeps_exactly_the_plain_score() -> None:
    learner = trainer(min_support=6)
    batch = minibatches.minibatch(learner.settings, 20)
    said, few = learner.score(batch), np.repeat(batch.n_support < 6, batch.n_items)
    assert few.any()
    assert said.adapted[few].tolist() == said.unadapted[few].tolist()
    assert (said.adapted[~few] != said.unadapted[~few]).all()


def test_two_lists_of_one_task_are_adapted_each_by_its_own_support() -> None:
    learner = trainer()
    one, other = (
        minibatches.minibatch(learner.settings, 30, 1, support=4),
        minibatches.minibatch(learner.settings, 31, 1, support=9),
    )
    ids_ = other.ids.copy()
    ids_[:, 0] = one.ids[0, 0]
    other = other._replace(ids=ids_)
    both = base.Batch(*(np.concatenate([a, b]) for a, b in zip(one, other, strict=True)))
    together = learner.score(both).adapted
    apart = np.concatenate([learner.score(one).adapted, learner.score(other).adapted])
    assert together == pytest.approx(apart, abs=1e-6)


def test_only_the_newest_support_rows_are_used() -> None:
    learner = trainer(support_rows=3)
    batch = minibatches.minibatch(learner.settings, 20, support=8)
    old = batch.s_label.reshape(-1, 8, 1).copy()
    old[:, :5] = 1 - old[:, :5]
    assert learner.score(batch._replace(s_label=old.reshape(-1, 1))).adapted.tolist() == learner.score(batch).adapted.tolist()
    old[:, 7] = 1 - old[:, 7]
    assert learner.score(batch._replace(s_label=old.reshape(-1, 1))).adapted.tolist() != learner.score(batch).adapted.tolist()


def test_shared_support_rows_are_computed_once_and_change_no_score() -> None:
    learner = trainer()
    batch = minibatches.minibatch(learner.settings, 20, 4, support=6)
    shared = batch._replace(
        s_ids=np.tile(batch.s_ids[:6], (4, 1)), s_x=np.tile(batch.s_x[:6], (4, 1)), s_label=np.tile(batch.s_label[:6], (4, 1))
    )
    codes = learner.modes.codes(shared.scenario)
    found = supports.distinct(shared, codes, 1, 16)
    assert found.rows.tolist() == [0, 1, 2, 3, 4, 5]
    assert found.place[:, :6].tolist() == [[0, 1, 2, 3, 4, 5]] * 4
    said = learner.score(shared).adapted
    alone = np.concatenate([learner.score(minibatches.alone(shared, [i])).adapted for i in range(4)])
    assert said == pytest.approx(alone, abs=1e-6)


def test_support_rows_that_differ_in_one_label_are_two() -> None:
    batch = minibatches.minibatch(minibatches.settings(), 20, 1, support=1)
    twice = batch._replace(
        s_ids=np.tile(batch.s_ids, (2, 1)), s_x=np.tile(batch.s_x, (2, 1)), s_label=np.array([[0], [1]], np.float32),
        n_support=np.array([2]),
    )  # fmt: skip
    assert len(supports.distinct(twice, np.array([modes.ON]), 1, 16).rows) == 2


def known_in_the_minibatch() -> base.Batch:
    """Two lists of one user; the second's support is the first list's rows and one older, which comes twice."""
    batch = minibatches.minibatch(minibatches.settings(), 20, 2, support=2, scenario=1)
    first, older = int(batch.n_items[0]), 2
    rows = [*range(first)]
    return batch._replace(
        s_ids=np.concatenate([batch.s_ids[:older], batch.ids[rows], batch.s_ids[[0, 0]]]),
        s_x=np.concatenate([batch.s_x[:older], batch.x[rows], batch.s_x[[0, 0]]]),
        s_label=np.concatenate([batch.s_label[:older], batch.label[rows], batch.s_label[[0, 0]]]),
        n_support=np.array([older, first + 2]),
    )


def test_support_rows_that_are_rows_of_the_minibatch_are_not_computed_again_and_change_no_score() -> None:
    learner, batch = trainer(), known_in_the_minibatch()
    found = supports.distinct(batch, learner.modes.codes(batch.scenario), 1, 16)
    first, rows = int(batch.n_items[0]), len(batch.ids)
    assert found.extra.tolist() == [0, 1]
    assert found.at.tolist() == [rows, rows + 1, *range(first)]
    said = learner.score(batch).adapted
    alone = np.concatenate([learner.score(minibatches.alone(batch, [i])).adapted for i in range(2)])
    assert said == pytest.approx(alone, abs=1e-6)


@pytest.mark.parametrize("inner_steps", [1, 3])
@pytest.mark.parametrize("native", [True, False])
def test_a_support_row_that_comes_twice_counts_twice_on_every_path(inner_steps: int, native: bool) -> None:
    batch, settings = known_in_the_minibatch(), minibatches.settings(meta={"inner_rate": 0.5, "inner_steps": inner_steps})
    quick, reference = step.Trainer(settings, native), step.Trainer(settings, native=False, compiled=False)
    for i in range(3):
        quick.step(minibatches.minibatch(settings, i), i)
    reference.load(quick.arrays())
    a, b = quick.step(batch, 100), reference.step(batch, 100)
    assert a.adapted == pytest.approx(b.adapted, abs=1e-5)
    assert quick.gradient.flat.tolist() == pytest.approx(reference.gradient.flat.tolist(), abs=1e-5)


@pytest.mark.parametrize("algorithm", ["maml", "film", "ridge"])
def test_the_trunk_learns_nothing_from_support_rows_even_if_they_are_rows_of_the_minibatch(algorithm: str) -> None:
    settings, batch = minibatches.settings(meta={"algorithm": algorithm, "inner_rate": 0.5}), known_in_the_minibatch()
    learner = step.Trainer(settings, native=False, compiled=False)
    for i in range(3):
        learner.step(minibatches.minibatch(settings, i), i)
    rows, at = len(batch.ids), learner.table.admit(batch.ids, 9)
    inside = learner._work(batch, at, batch.x, learner._slots(batch.ids, admit=True))
    assert (inside.found.at < rows).any()
    every = np.r_[np.arange(rows), inside.found.at]
    beside = inside._replace(
        inputs=inside.inputs[every], slot=inside.slot[every], earned=inside.earned[every],
        found=inside.found._replace(at=rows + np.arange(len(inside.found.at))),
    )  # fmt: skip
    learner.engine.run(inside, train=True)
    one = learner.gradient.flat.clone()
    learner.engine.run(beside, train=True)
    assert torch.allclose(one, learner.gradient.flat, atol=1e-6)
    assert one.abs().max() > 1e-3
