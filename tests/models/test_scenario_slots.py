import numpy as np
import pytest

from learner import step
from models import scenario_slots, scorer
from state import config
from tests import minibatches


def slots(room: int = 4, prior: float = 100.0) -> scenario_slots.Slots:
    return scenario_slots.Slots(config.Scenarios(slots=room, prior_rows=prior))


def hashes(*values: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return np.array(values, np.uint64)


def test_an_unseen_scenario_has_no_slot_until_it_is_trained_on() -> None:
    own = slots()
    assert own.find(hashes(7, 8)).tolist() == [0, 0]
    assert own.admit(hashes(8, 7, 8)).tolist() == [2, 1, 2]
    assert own.find(hashes(7, 9, 8)).tolist() == [1, 0, 2]


def test_a_scenario_beyond_the_room_stays_shared_and_is_counted() -> None:
    own = slots(room=1)
    found = own.admit(hashes(1, 2, 2))
    own.observe(found)
    assert found.tolist() == [1, 0, 0]
    assert own.rows.tolist() == [2, 1]


def test_own_parameters_count_as_far_as_rows_have_earned_it() -> None:
    own = slots(prior=100.0)
    place = own.admit(hashes(1, 2))
    own.observe(np.repeat(place, [100, 300]))
    assert own.earned(np.array([0, 1, 2])).tolist() == pytest.approx([0.0, 0.5, 0.75])


def test_the_hash_zero_is_a_scenario_like_any_other() -> None:
    own = slots()
    assert own.admit(hashes(0)).tolist() == [1]
    assert own.find(hashes(0, 1)).tolist() == [1, 0]


def test_a_restart_finds_the_same_slots_and_goes_on() -> None:
    own, again = slots(), slots()
    own.observe(own.admit(hashes(5, 6, 6)))
    again.load({name: array.copy() for name, array in own.arrays().items()})
    assert again.admit(hashes(9, 6, 5)).tolist() == own.admit(hashes(9, 6, 5)).tolist()
    assert again.earned(np.arange(4)).tolist() == own.earned(np.arange(4)).tolist()


def test_training_hands_out_slots_and_serving_reads_them_from_the_snapshot() -> None:
    settings = minibatches.settings()
    trainer = step.Trainer(settings)
    trainer.step(minibatches.minibatch(settings, scenario=1), 0)
    batch = minibatches.minibatch(settings, 1, scenario=2)
    trainer.score(batch)
    assert trainer.slots.find(hashes(1, 2)).tolist() == [1, 0]
    rows = int(trainer.slots.rows.sum())
    trainer.step(batch, 1)
    assert trainer.slots.find(hashes(1, 2)).tolist() == [1, 2]
    assert int(trainer.slots.rows.sum()) == rows + len(batch.ids)
    arrays = {name: array.copy() for name, array in trainer.arrays().items() if name in trainer.serving_names}
    assert scorer.Scorer(settings, arrays).score(batch.ids, batch.x, 2, None).plain.shape == (len(batch.ids), 1)


def test_a_parameter_is_a_scenarios_own_by_a_whole_part_of_its_name() -> None:
    shapes = {"down.weight": (8, 2), "own.tower.bias": (4, 3), "bottom.own.0.weight": (8, 5, 2), "own.nothing": (4, 0)}
    assert scenario_slots.owned(shapes, 3) == [(16, 3), (28, 20)]


@pytest.mark.parametrize("served", [2, 3, 5])
def test_serving_has_as_many_slots_as_the_snapshot_whatever_its_configuration_says(served: int) -> None:
    model = {"name": "shared_bottom", "own_towers": True, "moments": "scenario"}
    settings = minibatches.settings(model=model)
    trainer = step.Trainer(settings)
    for i in range(6):
        trainer.step(minibatches.minibatch(settings, i), i)
    arrays = {name: array.copy() for name, array in trainer.arrays().items() if name in trainer.serving_names}
    batch = minibatches.minibatch(settings, 9, scenario=2)
    elsewhere = minibatches.settings(model=model, scenarios={"slots": served})
    found = scorer.Scorer(elsewhere, arrays).score(batch.ids, batch.x, 2, None).plain
    assert np.allclose(found, trainer.score(batch).unadapted, atol=1e-6)
