"""Slots of the tests: 0 is nobody's, 1 and 2 are scenarios'."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner import step
from models import base, own_gains, scorer
from state import config
from tests import minibatches


def gains(**optimizer: float) -> own_gains.Gains:
    return own_gains.Gains(minibatches.settings(optimizer=optimizer))


def rows(seed: int, n: int = 6) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    geometry = base.geometry(minibatches.settings())
    return np.random.default_rng(seed).standard_normal((n, geometry.row)).astype(np.float32)


def slots(*values: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(values, np.int64)


def test_without_evidence_everybody_reads_what_is_shared() -> None:
    own, x, slot = gains(), rows(0, 3), slots(0, 1, 2)
    assert own.apply(x, slot) is x
    gradient = rows(1, 3)
    assert own.descend(x, slot, gradient).tobytes() == gradient.tobytes()


def test_gradients_that_contradict_one_another_change_nothing() -> None:
    own, x, gradient = gains(), rows(0), rows(1)
    for sign in (1, -1, 1, -1):
        own.descend(x, slots(1, 1, 1, 1, 1, 1), np.float32(sign) * gradient)
        if sign < 0:
            assert not own.value.any()


def test_a_gain_of_one_scenario_is_untouched_by_the_rows_of_others() -> None:
    alone, mixed, x, gradient = gains(), gains(), rows(0), rows(1)
    slot = slots(1, 2, 0, 1, 2, 0)
    mine = slot == 1
    for _ in range(5):
        alone.descend(x[mine], slot[mine], gradient[mine])
        mixed.descend(x, slot, gradient)
    assert mixed.value[1].any()
    assert mixed.value[2].any()
    assert alone.value[1].tobytes() == mixed.value[1].tobytes()
    assert not alone.value[2].any()
    assert not mixed.value[0].any()


def test_a_scenario_reverses_what_is_shared_when_its_gradients_agree() -> None:
    own, x = gains(), np.abs(rows(0))
    slot = slots(1, 1, 1, 1, 1, 1)
    for _ in range(20):
        own.descend(x, slot, x)
    categories = len(base.geometry(minibatches.settings()).categories)
    assert (own.value[1] < -1).all()
    read = own.apply(x, slot)
    first = x.shape[1] - categories
    assert (read[:, : own.value.shape[1] - categories] < 0).all()
    assert (read[:, first:] < 0).all()
    assert read[:, own.value.shape[1] - categories : first].tobytes() == x[:, own.value.shape[1] - categories : first].tobytes()


@given(st.integers(0, 10_000), st.lists(st.integers(0, 2), min_size=1, max_size=8))
def test_both_gradients_are_those_of_the_product(seed: int, where: list[int]) -> None:
    own, slot, random = gains(), slots(*where), np.random.default_rng(seed)
    own.value[1:] = random.standard_normal(own.value[1:].shape)
    before, x, gradient = own.value.copy(), rows(seed, len(where)), rows(seed + 1, len(where))
    geometry = base.geometry(minibatches.settings())
    learned = np.r_[: geometry.embedded, geometry.row - len(geometry.categories) : geometry.row]
    factor = np.ones_like(x)
    factor[:, learned] += before[slot]
    assert own.apply(x, slot) == pytest.approx(x * factor)
    assert own.descend(x, slot, gradient) == pytest.approx(gradient * factor)
    wanted = np.zeros_like(before)
    np.add.at(wanted, slot, (gradient * x)[:, learned])
    wanted[0] = 0
    assert own.square - own_gains.START == pytest.approx(wanted * wanted, rel=1e-4, abs=1e-5)


def test_a_rate_of_zero_and_the_floors_leave_them_out() -> None:
    floor = own_gains.Gains(minibatches.settings(model={"name": "fm"}))
    x, slot = np.abs(rows(0)), slots(1, 1, 1, 1, 1, 1)
    for own in (gains(gain_rate=0.0), floor):
        own.descend(x, slot, x)
        own.descend(x, slot, x)
        assert not own.value.any()


@pytest.mark.parametrize("native", [True, False])
def test_training_and_serving_read_the_same_and_a_restart_goes_on(native: bool) -> None:
    settings = minibatches.settings(meta={"mode": "off"})
    trainer, again = step.Trainer(settings, native), step.Trainer(settings, native)
    batches = [minibatches.minibatch(settings, i, scenario=1 + i % 2) for i in range(12)]
    for i, batch in enumerate(batches[:10]):
        trainer.step(batch, i)
    assert np.abs(trainer.gains.value[1:3]).max() > 0.01
    again.load({name: array.copy() for name, array in trainer.arrays().items()})
    for i, batch in enumerate(batches[10:]):
        assert trainer.step(batch, 10 + i).adapted.tobytes() == again.step(batch, 10 + i).adapted.tobytes()
    assert trainer.gains.value.tobytes() == again.gains.value.tobytes()
    served = scorer.Scorer(settings, {name: array.copy() for name, array in trainer.arrays().items()}, native)
    for batch, scenario in zip(batches[10:], (1, 2), strict=True):
        assert served.score(batch.ids, batch.x, scenario, None).plain == pytest.approx(trainer.score(batch).unadapted, abs=1e-6)


def test_a_snapshot_of_more_slots_is_refused() -> None:
    settings = minibatches.settings()
    other = minibatches.settings(scenarios={"slots": 5})
    with pytest.raises(ValueError, match=r"scenarios\.slots"):
        step.Trainer(settings).load(step.Trainer(other).arrays())


def test_a_negative_rate_is_refused() -> None:
    with pytest.raises(config.ConfigError, match="gain_rate"):
        config.parse("[optimizer]\ngain_rate = -1\n")
