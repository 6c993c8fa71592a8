import numpy as np
import pytest

from learner import descent, optimizers, step
from tests import minibatches

KEPT = ("dense", "dense.trained", "table", "accumulator", "moments", "moments.observed", "adam.step", "gains.sum", "slots.rows")


def trained(trainer: step.Trainer) -> descent.Rows:
    """A minibatch with a gradient of its inputs; that of the dense parameters is filled too."""
    batch, generator = minibatches.minibatch(trainer.settings, 4), np.random.default_rng(0)
    rows, slot = trainer.table.admit(batch.ids, 9), trainer.slots.find(batch.ids[:, 2])
    shared = np.empty((len(rows), trainer.table.row), np.float32)
    trainer.table.gather(rows, batch.x, slot, shared)
    trainer.gradient.numbers[:] = generator.standard_normal(len(trainer.dense)) * 0.01
    slope = (generator.standard_normal(shared.shape) * 0.01).astype(np.float32)
    return descent.Rows(rows, batch.x, slot, shared, slope, np.ones(len(rows)))


def learner(dense: str) -> step.Trainer:
    out = step.Trainer(minibatches.settings(model={"wide": "fm"}, optimizer={"dense": dense}))
    for i in range(2):
        out.step(minibatches.minibatch(out.settings, i), i)
    return out


@pytest.mark.parametrize("dense", ["adam", "adagrad"])
def test_one_call_changes_what_each_part_changes_by_itself(dense: str) -> None:
    one, other = learner(dense), learner(dense)
    assert one._held.descend(trained(one))
    rows = trained(other)
    other.table.descend(rows.rows, other.gains.descend(rows.shared, rows.slot, rows.slope))
    other.adam.descend(other.dense, other.gradient.numbers, optimizers.norm(other.gradient.numbers), rows.slot)
    other.table.observe(rows.x, rows.slot, rows.weight)
    other.slots.observe(rows.slot)
    wanted = other.arrays()
    assert all(array.tobytes() == wanted[name].tobytes() for name, array in one.arrays().items())
    assert one.table.mean.tolist() == other.table.mean.tolist()


@pytest.mark.parametrize("which", ["dense", "inputs"])
def test_a_gradient_that_is_not_finite_changes_nothing(which: str) -> None:
    trainer = learner("adam")
    rows = trained(trainer)
    (trainer.gradient.numbers if which == "dense" else rows.slope[0])[3] = np.inf
    before = {name: trainer.arrays()[name].tobytes() for name in KEPT}
    assert not trainer._held.descend(rows)
    assert {name: trainer.arrays()[name].tobytes() for name in KEPT} == before


def test_the_native_call_repeated_with_the_same_arguments_is_a_second_step() -> None:
    one, other = learner("adam"), learner("adam")
    rows = trained(one)
    for _ in range(2):
        assert one._held.descend(rows)
    rows, held = trained(other), other._held
    learning = tuple(other.table.learning(rows.rows))
    for _ in range(2):
        assert descent._descend(*held._dense, learning, held._gains, held._seen, tuple(rows))
    wanted = one.arrays()
    assert all(array.tobytes() == wanted[name].tobytes() for name, array in other.arrays().items())
