"""What the learner knows of items: as last shown, the longest unseen forgotten first, and the queue of the newest actions."""

import msgspec
import numpy as np
import pytest

from learner import catalogue
from learner.catalogue import Catalogue
from models import base, items
from state import config, ids
from tests import minibatches

USER, ITEM, SCENARIO = 0, 1, 2


def declared(**retrieval: int | str) -> config.Config:
    wanted = config.Objective(name="like", action="like", kind="ranking")
    made = minibatches.settings(1, model={"name": "two_tower"}, retrieval={"loss": "softmax"} | retrieval)
    return msgspec.structs.replace(made, objectives=(wanted,))


def made(settings: config.Config) -> Catalogue:
    found = catalogue.of(settings)
    assert found is not None
    return found


def shown(*rows: tuple[int, int, float], price: float = 1.0, user: int = 9) -> base.Batch:
    """One list: (item, genre, label) by row."""
    found = np.full((len(rows), 6), ids.PAD, np.uint64)
    found[:, USER], found[:, SCENARIO] = user, 5
    found[:, ITEM], found[:, 3] = ([row[k] for row in rows] for k in range(2))
    label = np.array([[row[2]] for row in rows], np.float32)
    x = np.array([[price, np.nan]] * len(rows), np.float32)
    none = np.zeros((0, 1), np.float32)
    return base.Batch(
        found, x, label, np.ones_like(label), np.array([5], np.uint64), np.array([len(rows)]), np.zeros(1, np.int64),
        found[:0], x[:0], none, np.zeros(0, np.int64),
    )  # fmt: skip


def learn(known: Catalogue, batch: base.Batch, now_ms: int) -> None:
    known.see(batch, now_ms)
    known.put(batch)


def test_only_two_towers_with_an_id_of_items_have_a_catalogue() -> None:
    assert catalogue.of(minibatches.settings(1)) is None
    kept = minibatches.settings(1, model={"name": "two_tower"})
    features = msgspec.structs.replace(kept.features, categories=tuple(c for c in kept.features.categories if c.name != "item"))
    assert catalogue.of(msgspec.structs.replace(kept, features=features)) is None


def test_an_item_is_what_it_was_when_it_was_last_shown() -> None:
    known = made(declared())
    learn(known, shown((1, 70, 0), (2, 71, 1), (1, 72, 0)), 10)
    learn(known, shown((2, 73, 1), price=4.0), 20)
    found = items.known(known._side, known.arrays())
    assert found.key.tolist() == [1, 2]
    assert found.ts.tolist() == [10, 20]
    assert found.stock.ids.tolist() == [[1, 72, ids.PAD, ids.PAD], [2, 73, ids.PAD, ids.PAD]]
    assert found.stock.x[:, 0].tolist() == [1.0, 4.0]
    assert known.acted[:2].tolist() == [0, 2]


def test_names_are_kept_with_the_items_that_have_them() -> None:
    known = made(declared())
    learn(known, shown((1, 70, 0), (2, 71, 1)), 10)
    known.name({2: "zwei ü", 3: "nobody was shown it"})
    assert items.known(known._side, known.arrays()).text == ["", "zwei ü"]
    assert (known.size, known.unnamed) == (2, 1)


def test_the_longest_unseen_are_forgotten_and_leave_the_queue() -> None:
    known = made(declared(max_items=16))
    for item in range(16):
        learn(known, shown((item, 70, 1)), item)
    learn(known, shown((0, 70, 0)), 90)
    known.name({item: str(item) for item in range(16)})
    learn(known, shown((20, 70, 1), (21, 70, 0)), 100)
    left = sorted(known.key[: known.size].tolist())
    assert left == [0, *range(4, 16), 20, 21]
    assert [int(key) for key in known.key[known.queue]] == [item for item in [*range(16), 20] if item in left]
    assert [known._text[known._place[item]] for item in left] == [*map(str, left[:-2]), "", ""]


def test_the_queue_holds_the_newest_actions_oldest_first_and_counts_for_ever() -> None:
    known = made(declared(queue=3))
    learn(known, shown((1, 70, 1), (2, 70, 2.5), (3, 70, 0)), 10)
    learn(known, shown((2, 70, 1), (4, 70, 1)), 20)
    assert known.key[known.queue].tolist() == [2, 2, 4]
    assert (known.acted[:4].tolist(), int(known.actions[0])) == ([1, 2, 0, 1], 4)


def test_a_row_of_a_revision_that_was_acted_on_before_is_no_action_again() -> None:
    known = made(declared())
    revised = shown((1, 70, 1), (2, 70, 1))
    revised.weight[0] = 0
    learn(known, revised, 10)
    assert known.key[known.queue].tolist() == [2]


def test_rivals_are_neither_the_item_itself_nor_what_the_same_user_did() -> None:
    known = made(declared(candidates=8))
    learn(known, shown((1, 70, 1), user=1), 10)
    learn(known, shown((2, 70, 1), user=2), 11)
    learn(known, shown((3, 70, 1), user=3), 12)
    batch = shown((1, 70, 1), (4, 70, 1), (5, 70, 0), user=3)
    known.see(batch, 13)
    extended, rivals = known.rivalled(batch)
    assert (rivals.acted.tolist(), rivals.drawn.tolist()) == ([0, 1], [3, 4, 5])
    assert extended.ids[3:, ITEM].tolist() == [1, 2, 3]
    assert set(extended.ids[3:, USER].tolist()) == {ids.PAD}
    assert set(extended.ids[3:, SCENARIO].tolist()) == {5}
    assert extended.n_items.tolist() == [3, 3]
    assert rivals.clash.tolist() == [[False, True, True, False, True], [True, False, False, False, True]]
    assert np.exp(rivals.log_share) == pytest.approx([1 / 3] * 5)


def test_other_items_of_the_queue_compete_after_every_action() -> None:
    known = made(declared(candidates=5))
    for item in range(40):
        learn(known, shown((item, 70, 1), user=item), item)
    first = known.rivalled(shown((3, 70, 1)))[0].ids[1:, ITEM].tolist()
    assert known.rivalled(shown((3, 70, 1)))[0].ids[1:, ITEM].tolist() == first
    learn(known, shown((3, 70, 1)), 50)
    assert known.rivalled(shown((3, 70, 1)))[0].ids[1:, ITEM].tolist() != first


def test_a_support_set_is_what_was_acted_on_each_with_rows_of_the_queue_and_the_user_of_that_moment() -> None:
    known = made(declared())
    for item in (1, 2, 3):
        learn(known, shown((item, 70 + item, 1)), item)
    before = shown((8, 60, 5.0), (9, 60, 0), (7, 60, 1.0), price=3.0, user=44)
    given = base.Support(before.ids, before.x, before.label, np.array([5, 6, 7]))
    found = items.against_queue(known._side, known.stock, given, 2)
    assert found.label[:, 0].tolist() == [1, 0, 0, 1, 0, 0]
    assert found.ts.tolist() == [5, 5, 5, 7, 7, 7]
    assert found.ids[::3, ITEM].tolist() == [8, 7]
    drawn = [1, 2, 4, 5]
    assert set(found.ids[drawn, ITEM].tolist()) <= {1, 2, 3}
    assert (found.ids[drawn, 3] == found.ids[drawn, ITEM] + 70).all()
    assert (found.ids[:, USER] == 44).all()
    assert found.x[drawn, 0].tolist() == [1.0] * 4
    again = items.against_queue(
        known._side, known.stock, base.Support(given.ids[2:], given.x[2:], given.label[2:], given.ts[2:]), 2
    )
    assert (again.ids == found.ids[3:]).all()


def test_without_a_queue_a_support_set_is_what_was_acted_on() -> None:
    known = made(declared())
    batch = shown((8, 60, 1), (9, 60, 0))
    found = items.against_queue(known._side, known.stock, base.Support(batch.ids, batch.x, batch.label), 2)
    assert (found.ids[:, ITEM].tolist(), found.label.tolist()) == ([8], [[1.0]])


def test_a_shorter_queue_takes_over_the_newest_actions() -> None:
    known, shorter = made(declared(queue=8)), made(declared(queue=2))
    for item in range(5):
        learn(known, shown((item, 70, 1)), item)
    shorter.load({name: array.copy() for name, array in known.arrays().items()})
    assert shorter.key[shorter.queue].tolist() == [3, 4]
    assert shorter.size == 5
