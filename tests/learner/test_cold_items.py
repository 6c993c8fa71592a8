from typing import Any

import msgspec
import numpy as np
import pytest

from learner import cold_items, step
from models import base, cold, scorer
from state import config, ids
from tests import minibatches

ITEM = 1


def settings(**sections: dict[str, Any]) -> config.Config:
    """The small configuration with the generator on; genres and year are attributes of the item."""
    return minibatches.settings(1, embedding={"cold": "meta", "cold_rate": 0.05}, **sections)


def learned(given: config.Config, steps: int = 20) -> step.Trainer:
    trainer = step.Trainer(given)
    for i in range(steps):
        trainer.step(minibatches.minibatch(given, i), i)
    return trainer


def unseen(batch: base.Batch, like: int = 0) -> base.Batch:
    """All rows with one item that nobody has seen, and the attributes of row `like`."""
    found = np.array(batch.ids)
    found[:, ITEM] = 10**9
    found[:, 3:] = found[like, 3:]
    return batch._replace(ids=found)


def test_without_the_generator_nothing_is_there() -> None:
    given = minibatches.settings()
    trainer = step.Trainer(given)
    assert cold.layout(given) is None
    assert not [name for name in trainer.arrays() if name.startswith("cold.")]


def test_a_new_items_row_begins_as_its_attributes_say() -> None:
    given = settings(optimizer={"embedding_rate": 1e-9})
    trainer = learned(settings())
    assert trainer.cold is not None
    assert np.abs(trainer.cold.weight).max() > 0
    slow = step.Trainer(given)
    slow.load(trainer.arrays())
    batch = unseen(minibatches.minibatch(given, 99))
    rows = slow.table.map.find(batch.ids)
    inputs = np.empty((len(rows), slow.table.row), np.float32)
    slow.table.gather(rows, batch.x, np.zeros(len(rows), np.int64), inputs)
    said = cold.read(trainer.cold.layout, inputs[:1]) @ trainer.cold.weight
    slow.step(batch, 100)
    own = slow.table.map.find(batch.ids)[0, ITEM]
    assert own >= slow.table.map.fields
    assert slow.table.table[own] == pytest.approx(said[0], abs=1e-6)


@pytest.mark.parametrize("native", [True, False])
def test_serving_reads_an_unseen_item_as_the_trainer_does_and_unlike_the_shared_row(native: bool) -> None:
    given = settings()
    trainer = learned(given)
    batch = unseen(minibatches.minibatch(given, 99))
    batch = batch._replace(
        n_support=np.zeros_like(batch.n_support), s_ids=batch.s_ids[:0], s_x=batch.s_x[:0], s_label=batch.s_label[:0]
    )
    arrays = {name: trainer.arrays()[name] for name in trainer.serving_names}
    served, expected = scorer.Scorer(given, arrays, native), trainer.score(batch).unadapted
    at = 0
    for scenario, n in zip(batch.scenario.tolist(), batch.n_items.tolist(), strict=True):
        said = served.score(batch.ids[at : at + n], batch.x[at : at + n], scenario, None)
        assert said.plain == pytest.approx(expected[at : at + n], abs=1e-6)
        at += n
    arrays[cold.WEIGHT] = np.zeros_like(arrays[cold.WEIGHT])
    other = scorer.Scorer(given, arrays, native).score(batch.ids[:9], batch.x[:9], int(batch.scenario[0]), None)
    first = served.score(batch.ids[:9], batch.x[:9], int(batch.scenario[0]), None)
    assert np.abs(other.plain - first.plain).max() > 1e-5


def test_an_absent_item_is_not_generated() -> None:
    given = settings()
    trainer = learned(given)
    batch = minibatches.minibatch(given, 99)
    found = np.array(batch.ids)
    found[:, ITEM] = ids.PAD
    rows = trainer.table.map.find(found)
    inputs = np.zeros((len(rows), trainer.table.row), np.float32)
    trainer.table.gather(rows, batch.x, np.zeros(len(rows), np.int64), inputs)
    before = inputs.copy()
    assert trainer.cold is not None
    trainer.cold.fill(rows, inputs)
    assert inputs.tolist() == before.tolist()


def test_a_snapshot_continues_bit_for_bit_and_one_without_the_generator_is_refused() -> None:
    given = settings()
    whole, first, second = learned(given, 20), learned(given, 11), step.Trainer(given)
    second.load({name: array.copy() for name, array in first.arrays().items()})
    for i in range(11, 20):
        second.step(minibatches.minibatch(given, i), i)
    for name, array in whole.arrays().items():
        assert array.tobytes() == second.arrays()[name].tobytes(), name
    plain = {name: array for name, array in first.arrays().items() if not name.startswith("cold.")}
    with pytest.raises(ValueError, match=r"cold\.weight"):
        second.load(plain)
    with pytest.raises(ValueError, match=r"cold\.weight"):
        scorer.Scorer(given, plain)


def test_the_gradient_is_that_of_both_losses_by_finite_differences() -> None:
    given = settings(model={"hidden": [6, 4]}, optimizer={"gain_rate": 0.0})
    trainer = learned(given, 30)
    assert trainer.cold is not None
    generator, network = trainer.cold, trainer._network()
    batch = minibatches.minibatch(given, 50)
    slot = trainer.slots.find(batch.ids[:, 2])
    now = cold_items.Rows(np.array(batch.ids), np.array(batch.x), np.array(batch.label), np.array(batch.weight), slot)
    place = generator.seen.newest(ITEM, now.ids[:, ITEM])
    later = np.flatnonzero(place >= 0)
    assert len(later) > 3
    pair = generator.seen.rows.take(place[later]), now.take(later)
    gradient = generator._gradient(network, *pair)
    at = np.unravel_index(np.argmax(np.abs(gradient)), gradient.shape)
    kept, values = generator.weight.copy(), []
    for shift in (1e-3, -1e-3):
        generator.weight[:] = kept
        generator.weight[at] += shift
        values.append(generator.loss(network, *pair)[0].item())
    generator.weight[:] = kept
    assert (values[0] - values[1]) / 2e-3 == pytest.approx(gradient[at], rel=0.05)


def test_learning_makes_unseen_items_predictable_from_their_attributes() -> None:
    """Items of one genre are clicked, of the other not; a third of the rows are items that were never there before."""
    given = settings(optimizer={"embedding_rate": 0.05}, meta={"mode": "off"})
    generator, trainers = (
        np.random.default_rng(3),
        [step.Trainer(given), step.Trainer(minibatches.settings(meta={"mode": "off"}))],
    )
    losses = np.zeros(2)
    for i in range(240):
        batch = minibatches.minibatch(given, i)
        found, n = np.array(batch.ids), len(batch.ids)
        liked = generator.random(n) < 0.5
        found[:, 3:] = ids.PAD
        found[:, 3] = np.where(liked, 7, 8)
        found[:, ITEM] = np.where(
            generator.random(n) < 0.3, 1000 * i + np.arange(n), 50 + liked * 5 + generator.integers(0, 5, n)
        )
        label = (generator.random(n) < np.where(liked, 0.9, 0.1)).astype(np.float32)[:, None]
        batch = batch._replace(ids=found, label=label)
        for k, trainer in enumerate(trainers):
            said = trainer.step(batch, i).unadapted[:, 0].clip(1e-4, 1 - 1e-4)
            new = found[:, ITEM] >= 1000
            if 40 <= i < 140:
                losses[k] -= np.log(np.where(label[:, 0] > 0, said, 1 - said))[new].sum()
    assert losses[0] < losses[1]


def test_kept_rows_are_the_newest_and_pairs_take_the_newest_of_an_item(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cold_items, "KEPT", 8)
    given = settings()
    seen = cold_items.Seen(given)
    assert seen.newest(ITEM, np.array([5], np.uint64)).tolist() == [-1]
    batch = minibatches.minibatch(given, 0)
    rows = cold_items.Rows(np.array(batch.ids), np.array(batch.x), batch.label, batch.weight, np.zeros(len(batch.ids), np.int64))
    rows = rows.take(np.arange(5))
    for items in ([1, 2, 3, 4, 1], [5, 6, 7, 8, 1]):
        rows.ids[:, ITEM] = items
        seen.add(rows)
    wanted = np.array([1, 2, 4, 8, 9], np.uint64)
    place = seen.newest(ITEM, wanted)
    assert (place >= 0).tolist() == [True, False, True, True, False]
    assert place[0] == 9 % 8


def test_an_item_without_id_or_attributes_is_refused() -> None:
    given = settings()
    bare = [c for c in given.features.categories if c.name != "genres"]
    features = msgspec.structs.replace(given.features, categories=tuple(bare), numbers=())
    with pytest.raises(config.ConfigError, match=r"embedding\.cold"):
        cold.layout(msgspec.structs.replace(given, features=features))
