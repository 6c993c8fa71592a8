"""The continuous learner with two towers and sampled softmax: its loss, exact resume, and that adapting finds what is liked."""

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import torch

from learner.step import Trainer
from models import base, retriever, two_tower
from state import config, ids
from tests import minibatches

USERS, ITEMS, KINDS = 12, 24, 3


def declared(**sections: dict[str, Any]) -> config.Config:
    """Small towers that learn by softmax; `retrieval={...}` and other sections over the defaults of these tests."""
    given: dict[str, dict[str, Any]] = {
        "model": {"name": "two_tower"}, "optimizer": {"embedding_rate": 0.2, "dense_rate": 0.02, "average": 0.0},
        "embedding": {"init_scale": 0.3}, "meta": {"inner_rate": 5.0, "weight": 0.5, "support_rows": 24},
        "retrieval": {"loss": "softmax", "queue": 200, "candidates": 64, "negatives": 2},
    }  # fmt: skip
    merged = {name: given.get(name, {}) | sections.get(name, {}) for name in given | sections}
    wanted = config.Objective(name="like", action="like", kind="ranking")
    return msgspec.structs.replace(minibatches.settings(1, **merged), objectives=(wanted,))


class World:
    """Every user likes items of one kind, which nothing says but what the user did; items of a kind share a genre."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.rows: dict[int, list[npt.NDArray[np.uint64]]] = {user: [] for user in range(USERS)}
        self.clock = 0

    def batch(self, lists: int = 8) -> base.Batch:
        """Lists of three items of which a user likes one; the support is what the user was shown in the lists before."""
        parts = []
        before = {user: list(rows) for user, rows in self.rows.items()}
        for _ in range(lists):
            user = int(self.random.integers(USERS))
            liked = user % KINDS + KINDS * int(self.random.integers(ITEMS // KINDS))
            other = self.random.choice([i for i in range(ITEMS) if i % KINDS != user % KINDS], 2, replace=False)
            rows = np.stack([row(item, user) for item in (liked, *other.tolist())])
            known = before[user][-6:]
            self.rows[user].append(rows)
            parts.append((rows, np.concatenate(known) if known else rows[:0]))
        self.clock += 1
        shown, support = (np.concatenate(part) for part in zip(*parts, strict=True))
        label, s_label = (np.tile(np.array([[1], [0], [0]], np.float32), (len(part) // 3, 1)) for part in (shown, support))
        n_items, n_support = (np.array([len(part[k]) for part in parts]) for k in range(2))
        x, s_x = (np.ones((len(part), 2), np.float32) for part in (shown, support))
        ts = np.arange(len(support)) // 3
        return base.Batch(
            shown, x, label, np.ones_like(label), np.zeros(lists, np.uint64), n_items, n_support, support, s_x, s_label, ts
        )  # fmt: skip


def row(item: int, user: int = 0) -> npt.NDArray[np.uint64]:
    """The ids of a row; user columns say nothing, so that only the support tells what a user likes."""
    found = np.full(6, ids.PAD, np.uint64)
    found[0], found[1], found[2], found[3] = 90, item + 200, 5, item % KINDS + 300
    return np.where(np.arange(6) == 0, np.uint64(90 + user), found)


def state(trainer: Trainer) -> dict[str, bytes]:
    return {name: np.asarray(array).tobytes() for name, array in trainer.arrays().items()}


def trained(settings: config.Config, steps: int) -> tuple[Trainer, World]:
    trainer, world = Trainer(settings), World()
    for step in range(steps):
        assert trainer.step(world.batch(), 1000 + step).skipped == ""
    return trainer, world


def test_a_learner_resumes_exactly_with_its_queue() -> None:
    settings = declared()
    trainer, world = trained(settings, 4)
    saved = {name: np.array(array) for name, array in trainer.arrays().items()}
    again = Trainer(settings)
    again.load(saved)
    assert state(again) == state(trainer)
    for step in range(4):
        batch = world.batch()
        first, second = (made.step(batch, 2000 + step) for made in (trainer, again))
        assert first.adapted.tobytes() == second.adapted.tobytes()
        assert first.loss == second.loss
    assert state(again) == state(trainer)
    assert len(trainer.arrays()["items.queue"]) == 64


def test_scores_are_those_before_the_step_and_do_not_know_of_the_queue() -> None:
    trainer, world = trained(declared(), 6)
    batch = world.batch()
    before, said = trainer.score(batch), trainer.step(batch, 5000)
    assert said.unadapted.shape == (len(batch.ids), 1)
    np.testing.assert_allclose(said.unadapted, before.unadapted, atol=1e-6)
    np.testing.assert_allclose(said.adapted, before.adapted, atol=1e-6)
    assert (said.adapted != said.unadapted).any()
    assert said.loss > 0


def test_rows_of_the_queue_count_neither_as_rows_of_a_scenario_nor_in_moments() -> None:
    trainer, _ = trained(declared(), 5)
    assert trainer.slots.rows.sum() == 5 * 24
    assert trainer.table.observed[:, 0, 0].sum() <= 5 * 24


def test_the_loss_is_the_softmax_over_batch_and_queue_less_the_log_shares() -> None:
    settings = declared(meta={"weight": 0.0}, retrieval={"candidates": 16})
    trainer, world = trained(settings, 3)
    batch = world.batch()
    known = trainer.catalogue
    assert known is not None
    known.see(batch, 9)
    extended, rivals = known.rivalled(batch)
    liked = np.flatnonzero(batch.label[:, 0])
    assert rivals.acted.tolist() == liked.tolist()
    assert len(rivals.drawn) == 16
    meta = trainer.trunk(extended.ids, extended.x)
    fast = base.views(torch.from_numpy(trainer.dense.copy()), trainer.shapes)
    user = two_tower.vectors(fast, meta.hidden[:, 0]).numpy()
    candidates = np.r_[rivals.acted, rivals.drawn]
    item, person = extended.ids[candidates, 1], np.r_[batch.ids[liked, 0], known._users[known._drawn()]]
    counts = {key: max(count, 1) for key, count in zip(known.key.tolist(), known.acted.tolist(), strict=False)}
    total = 0.0
    for b, positive in enumerate(liked.tolist()):
        logit = meta.gate[candidates, 0].numpy() @ user[positive] + meta.offset[candidates, 0].numpy()
        logit = logit - np.log([counts[key] / known.actions[0] for key in item.tolist()])
        others = (item != item[b]) & (person != person[b])
        total += np.log(np.exp(logit[others] - logit[b]).sum() + 1)
    assert trainer.step(batch, 9).loss == pytest.approx(total / len(liked), rel=1e-4)


def test_adapting_finds_what_a_stranger_likes_whom_only_support_tells_of() -> None:
    # No user is shown often enough to have an embedding, so that all are strangers; items and genres are.
    settings = declared(embedding={"admit_after": 200}, meta={"inner_rate": 2.0})
    trainer, world = trained(settings, 240)
    known = trainer.catalogue
    assert known is not None
    known.name({item + 200: str(item) for item in range(ITEMS)})
    served = retriever.Retriever(settings, {name: np.array(trainer.arrays()[name]) for name in trainer.serving_names})
    hits = {"adapted": 0, "plain": 0}
    for user in range(USERS):
        support = np.concatenate(world.rows[user][-6:])
        support[:, 0] = 900 + user
        label = np.tile(np.array([[1], [0], [0]], np.float32), (len(support) // 3, 1))
        given = base.Support(support, np.ones((len(support), 2), np.float32), label, np.arange(len(support)) // 3)
        x = np.ones((1, 2), np.float32)
        for name, own in (("adapted", given), ("plain", None)):
            found = served.retrieve(retriever.Asked(row(0, 900 + user)[None], x, 5, own), 5)
            hits[name] += sum(int(item) % KINDS == user % KINDS for item in found.items)
    assert hits["plain"] == 5 * USERS // KINDS
    assert hits["adapted"] > 0.9 * 5 * USERS


def test_a_minibatch_without_an_action_teaches_nothing_and_is_scored() -> None:
    trainer, world = trained(declared(optimizer={"dense": "adagrad"}), 2)
    batch = world.batch()
    batch.label[:] = 0
    before = trainer.dense.copy()
    said = trainer.step(batch, 3000)
    assert (said.loss, said.skipped, said.adapted.shape) == (0.0, "", (24, 1))
    assert (trainer.dense == before).all()
