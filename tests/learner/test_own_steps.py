"""What scenarios own moves with their own rows only, and as fast as those rows say."""

from typing import Any

import numpy as np
import pytest

from learner import optimizers, step
from models import registry, scenario_slots
from state import config
from tests import minibatches

RULES = ("adam", "adagrad")


def settings(name: str, rule: str) -> config.Config:
    return minibatches.settings(
        2, model={"name": name, "own_towers": True}, optimizer={"dense": rule, "weight_decay": 0.1, "average": 0.9}
    )


def owning() -> list[str]:
    return [name for name in sorted(registry.MODELS) if scenario_slots.owned(registry.build(settings(name, "adam")).shapes, 3)]


def own(trainer: step.Trainer, scenario: int) -> dict[str, bytes]:
    """Trained and published numbers of what a scenario owns, and its moments."""
    slot = int(trainer.slots.find(np.array([scenario], np.uint64))[0])
    assert slot
    arrays = trainer.arrays()
    spans = scenario_slots.owned(trainer.shapes, trainer.settings.scenarios.slots)
    return {
        name: b"".join(arrays[name][s.start + slot * s.each : s.start + (slot + 1) * s.each].tobytes() for s in spans)
        for name in ("dense", "dense.trained", "adam.mean", "adam.square")
    }


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", owning())
def test_rows_of_one_scenario_leave_every_bit_of_what_another_owns(name: str, rule: str) -> None:
    trainer = step.Trainer(settings(name, rule))
    for i in range(4):
        assert not trainer.step(minibatches.minibatch(trainer.settings, i), i).skipped
    before = {scenario: own(trainer, scenario) for scenario in (0, 1)}
    for i in range(3):
        assert not trainer.step(minibatches.minibatch(trainer.settings, 10 + i, scenario=0), 10 + i).skipped
    after = {scenario: own(trainer, scenario) for scenario in (0, 1)}
    assert after[1] == before[1]
    assert all(after[0][part] != before[0][part] for part in ("dense", "dense.trained"))


def sequence(seed: int, steps: int, size: int) -> "np.ndarray[Any, np.dtype[np.float32]]":
    return np.random.default_rng(seed).standard_normal((steps, size)).astype(np.float32)


def optimizer(rule: str) -> config.Optimizer:
    chosen = {"dense": rule, "weight_decay": 0.1, "average": 0.5, "max_gradient_norm": 1e9}
    return minibatches.settings(optimizer=chosen).optimizer


@pytest.mark.parametrize("rule", RULES)
def test_a_slot_that_is_there_now_and_then_takes_the_steps_that_it_would_take_alone(rule: str) -> None:
    """Two shared numbers, three slots of a parameter of two numbers, one more shared number, three slots of one number."""
    spans = [scenario_slots.Span(2, 2), scenario_slots.Span(9, 1)]
    values = np.linspace(-1, 1, 12, dtype=np.float32)
    whole = optimizers.Dense(12, optimizer(rule), owned=optimizers.Owned(spans, 3))
    whole.average[:] = values
    mine = {None: [0, 1, 8], 0: [2, 3, 9], 1: [4, 5, 10], 2: [6, 7, 11]}
    alone = {slot: optimizers.Dense(3, optimizer(rule)) for slot in mine}
    wanted = {slot: values[at] for slot, at in mine.items()}
    for slot, at in mine.items():
        alone[slot].average[:] = values[at]
    present = [[1], [1, 1, 2], [2, 1], [1], [0, 2], [2]]
    for gradient, slots in zip(sequence(3, 6, 12), present, strict=True):
        for slot, at in mine.items():
            if slot is None or slot in slots:
                alone[slot].descend(wanted[slot], gradient[at], 1.0)
            else:
                gradient[at] = 0
        whole.descend(values, gradient, 1.0, np.array(slots))
    for slot, at in mine.items():
        assert values[at].tobytes() == wanted[slot].tobytes()
        assert whole.average[at].tobytes() == alone[slot].average.tobytes()
    assert whole.arrays()["adam.slot_steps"].tolist() == [1, 4, 4]


def test_a_snapshot_from_before_slots_had_steps_of_their_own_goes_on() -> None:
    trainer = step.Trainer(settings("mmoe", "adam"))
    for i in range(4):
        trainer.step(minibatches.minibatch(trainer.settings, i), i)
    arrays = {name: array.copy() for name, array in trainer.arrays().items() if name != "adam.slot_steps"}
    again = step.Trainer(trainer.settings)
    again.load(arrays)
    assert again.arrays()["adam.slot_steps"].tolist() == [4, 4, 4, 4]
    assert not again.step(minibatches.minibatch(trainer.settings, 9), 9).skipped


def test_a_model_that_scenarios_own_nothing_of_has_no_steps_of_slots() -> None:
    assert "adam.slot_steps" not in step.Trainer(minibatches.settings()).arrays()
