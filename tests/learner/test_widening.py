"""A learner with more scenario slots goes on from a snapshot with fewer: old slots as if nothing had been, new ones afresh."""

from typing import Any

import numpy as np
import pytest

from learner import step
from models import base, scenario_slots
from state import config
from tests import minibatches

MODELS = ("pepnet", "single", "mmoe", "ple", "star", "trs", "hamur", "sass", "sar_net")
CALM = {"max_gradient_norm": 1e9}
"""Clipping sums over the whole gradient, in another order where it is longer: that differs in the last bit."""


def settings(slots: int, name: str, **optimizer: Any) -> config.Config:
    return minibatches.settings(
        scenarios={"slots": slots}, model={"name": name, "own_towers": True, "moments": "scenario"}, optimizer=CALM | optimizer
    )


def trained(declared: config.Config, first: int, last: int, trainer: step.Trainer | None = None) -> step.Trainer:
    trainer = trainer or step.Trainer(declared)
    for i in range(first, last):
        assert not trainer.step(minibatches.minibatch(declared, i), 1000 * i).skipped
    return trainer


def copied(trainer: step.Trainer) -> dict[str, Any]:
    return {name: array.copy() for name, array in trainer.arrays().items()}


def slotted(trainer: step.Trainer, flat: Any) -> tuple[Any, list[Any]]:
    """The shared numbers of a flat vector, and those of each slot by parameter: (slots + 1, each)."""
    slots = trainer.settings.scenarios.slots + 1
    shared, own = np.ones(len(flat), bool), []
    for start, each in scenario_slots.owned(trainer.shapes, slots - 1):
        shared[start : start + slots * each] = False
        own.append(flat[start : start + slots * each].reshape(slots, each))
    return flat[shared], own


@pytest.mark.parametrize("rule", ["adam", "adagrad"])
@pytest.mark.parametrize("name", MODELS)
def test_old_slots_go_on_bit_by_bit_and_new_ones_start_as_in_a_fresh_learner(name: str, rule: str) -> None:
    few, more = settings(3, name, dense=rule), settings(5, name, dense=rule)
    narrow = trained(few, 0, 4)
    wide, fresh = step.Trainer(more), step.Trainer(more)
    wide.load(copied(narrow))
    for array in ("dense", "dense.trained", "adam.mean", "adam.square"):
        shared, own = slotted(narrow, narrow.arrays()[array])
        now, now_own = slotted(wide, wide.arrays()[array])
        assert now.tobytes() == shared.tobytes()
        for before, after, start in zip(own, now_own, slotted(fresh, fresh.arrays()[array])[1], strict=True):
            assert after.tobytes() == np.concatenate([before, start[4:]]).tobytes()
    trained(few, 4, 8, narrow), trained(few, 4, 8, wide)
    for array in ("dense", "dense.trained"):
        (shared, own), (now, now_own) = (slotted(t, t.arrays()[array]) for t in (narrow, wide))
        assert now.tobytes() == shared.tobytes()
        assert all(after[:4].tobytes() == before.tobytes() for before, after in zip(own, now_own, strict=True))
    for array in ("gains.value", "gains.sum", "moments.observed", "slots.rows", "slots.keys"):
        old = narrow.arrays()[array]
        assert wide.arrays()[array][: len(old)].tobytes() == old.tobytes()
    batch = minibatches.minibatch(few, 50)
    assert wide.score(batch).adapted.tobytes() == narrow.score(batch).adapted.tobytes()


def test_a_scenario_that_found_no_slot_gets_one_after_the_number_was_raised() -> None:
    crowded = trained(settings(1, "shared_bottom"), 0, 3)
    assert crowded.room.rows_without == crowded.slots.rows[0] > 0
    assert crowded.room[:2] == (1, 1)
    wide = step.Trainer(settings(4, "shared_bottom"))
    wide.load(copied(crowded))
    before = wide.room.rows_without
    trained(wide.settings, 3, 9, wide)
    assert wide.room == (4, 3, before)
    assert wide.without_slot(np.arange(3, dtype=np.uint64)).tolist() == []
    assert crowded.without_slot(np.arange(3, dtype=np.uint64)).size == 2


def test_fewer_slots_than_the_snapshot_has_are_refused_with_the_reason() -> None:
    arrays = copied(trained(settings(3, "shared_bottom"), 0, 1))
    with pytest.raises(ValueError, match=r"room for 3 scenarios .* scenarios\.slots is 2; set it to 3 or more"):
        step.Trainer(settings(2, "shared_bottom")).load(arrays)


def test_another_network_is_still_refused_by_the_name_of_the_array() -> None:
    arrays = copied(trained(settings(3, "shared_bottom"), 0, 1))
    other = minibatches.settings(scenarios={"slots": 5}, model={"name": "shared_bottom", "own_towers": True, "hidden": (6, 4)})
    with pytest.raises(ValueError, match='"dense": found'):
        step.Trainer(other).load(arrays)


def test_no_row_is_without_a_slot_where_rows_do_not_say_their_scenario() -> None:
    declared = minibatches.settings(scenarios={"slots": 1})
    kept = tuple(c for c in declared.features.categories if c.source != "scenario")
    model = {"scenario_features": ("price",)}
    declared = minibatches.settings(scenarios={"slots": 1}, features={"categories": kept}, model=model)
    assert base.geometry(declared).scenario < 0
    trainer = step.Trainer(declared)
    batch = minibatches.minibatch(minibatches.settings(), 0)
    batch = batch._replace(ids=np.delete(batch.ids, 2, 1), s_ids=np.delete(batch.s_ids, 2, 1))
    trainer.step(batch, 0)
    assert trainer.slots.rows[0] == len(batch.ids)
    assert trainer.room == (1, 0, 0)
    assert trainer.without_slot(batch.scenario).size == 0
