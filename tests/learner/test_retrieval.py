"""Sequence retrieval: what a user did gives the positives, the queue the negatives, and adapting finds what the user likes."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from learner import retrieval
from state import config
from tests import minibatches

USERS, ITEMS, KINDS = 12, 24, 3


def declared(**meta: float) -> config.Config:
    return minibatches.settings(
        1, model={"name": "two_tower", "wide": "off"}, meta={"inner_rate": 5.0, "weight": 0.5} | meta,
        optimizer={"embedding_rate": 0.2, "dense_rate": 0.02}, embedding={"init_scale": 0.3},
    )  # fmt: skip


def log(rows: int = 1200, seed: int = 0) -> tuple[retrieval.Rows, npt.NDArray[Any], npt.NDArray[Any]]:
    """Every user likes items of one kind, which nothing says but what the user did; items of a kind share a genre."""
    random = np.random.default_rng(seed)
    user = random.integers(0, USERS, rows)
    item = (user % KINDS) + KINDS * random.integers(0, ITEMS // KINDS, rows)
    ids = np.zeros((rows, 6), np.uint64)
    ids[:, 1], ids[:, 3:] = item + 200, (item % KINDS + 300)[:, None]
    return retrieval.Rows(ids, np.ones((rows, 2), np.float32)), user, item


def before(user: npt.NDArray[Any], row: int) -> npt.NDArray[Any]:
    return np.flatnonzero(user[:row] == user[row])


def trained(settings: config.Config, rows: int = 960) -> tuple[retrieval.Retriever, retrieval.Queue, list[float]]:
    whole, user, item = log()
    made, queue, random, said = retrieval.Retriever(settings, whole), retrieval.Queue(200), np.random.default_rng(1), []
    for at in range(0, rows, 32):
        batch = np.arange(at, at + 32)
        support = retrieval.supports([before(user, row) for row in batch.tolist()], 8, 3, queue.rows(), random)
        every = np.concatenate([batch, queue.rows()[-64:]])
        clash = (item[batch, None] == item[every]) | (user[batch, None] == user[every])
        share = queue.log_share(item[every].astype(np.uint64))
        said.append(made.step(batch, every[32:], clash, share, support, at))
        queue.put(batch, item[batch].astype(np.uint64))
    return made, queue, said


def test_supports_are_the_newest_actions_each_with_rows_of_the_queue() -> None:
    known = [np.arange(5), np.zeros(0, np.int64)]
    found = retrieval.supports(known, 3, 2, np.array([70, 80, 90]), np.random.default_rng(0))
    assert found.label[0].tolist() == [1, 0, 0] * 3
    assert found.user[0].tolist() == [2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert found.item[0, ::3].tolist() == [2, 3, 4]
    assert set(found.item[0].reshape(3, 3)[:, 1:].ravel().tolist()) <= {70, 80, 90}
    assert (found.user[1] == -1).all()


def test_the_queue_forgets_the_oldest_and_counts_for_ever() -> None:
    queue = retrieval.Queue(4)
    queue.put(np.arange(3), np.array([7, 7, 9], np.uint64))
    queue.put(np.arange(3, 6), np.array([7, 8, 8], np.uint64))
    assert queue.rows().tolist() == [2, 3, 4, 5]
    assert np.exp(queue.log_share(np.array([7, 8, 9, 1], np.uint64))) == pytest.approx([3 / 6, 2 / 6, 1 / 6, 1 / 6])


def test_adapting_finds_what_a_user_likes_where_only_the_user_s_actions_say_it() -> None:
    made, queue, said = trained(declared())
    assert np.mean(said[-5:]) < np.mean(said[3:8])
    _, user, item = log()
    rows = np.arange(960, 1200)
    support = retrieval.supports([before(user, row) for row in rows.tolist()], 8, 3, queue.rows(), np.random.default_rng(3))
    first = np.array([int(np.flatnonzero(item == i)[0]) for i in range(ITEMS)])
    vector, bias = made.items(first)
    plain, adapted = (np.mean((v @ vector.T + bias).argmax(1) % KINDS == user[rows] % KINDS) for v in made.users(rows, support))
    assert plain < 0.6
    assert adapted > 0.9


def test_without_support_or_rate_nobody_is_adapted() -> None:
    made, queue, _ = trained(declared(), 64)
    rows = np.arange(4)
    nobody = retrieval.supports([np.zeros(0, np.int64)] * 4, 8, 3, queue.rows(), np.random.default_rng(0))
    plain, adapted = made.users(rows, nobody)
    assert (plain == adapted).all()


def test_the_same_log_and_seed_give_the_same_parameters() -> None:
    first, second = (trained(declared(), 128)[0] for _ in range(2))
    assert first.dense.tobytes() == second.dense.tobytes()
