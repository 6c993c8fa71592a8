"""Support that a learner must survive: none, of one class, twice the same, of the future, and rates that diverge."""

import math

import numpy as np
import pytest

from learner import episodes, rehearsal, step
from learner.loop import layout_of
from models import base, limits, losses
from state import columns, config, plan
from tests import minibatches


def trainer(native: bool = True, **meta: object) -> step.Trainer:
    out = step.Trainer(minibatches.settings(meta={"inner_rate": 0.5, **meta}), native=native, compiled=native)
    for i in range(3):
        out.step(minibatches.minibatch(out.settings, i), i)
    return out


def batch(support: int, seed: int = 20) -> base.Batch:
    return minibatches.minibatch(minibatches.settings(), seed, support=support)


@pytest.mark.parametrize("native", [True, False])
def test_empty_support_leaves_the_shared_tower_and_is_learned_from(native: bool) -> None:
    learner = trainer(native)
    said = learner.step(batch(0), 9)
    assert (said.skipped, said.diverged) == ("", 0)
    assert said.adapted.tolist() == said.unadapted.tolist()


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_support_of_one_class_moves_scores_towards_it_and_stays_finite(native: bool, label: float) -> None:
    learner, lists = trainer(native), batch(8)
    said = learner.step(lists._replace(s_label=np.full_like(lists.s_label, label)), 9)
    assert (said.skipped, said.diverged) == ("", 0)
    moved = said.adapted - said.unadapted
    assert np.isfinite(said.adapted).all()
    assert (np.sign(moved.mean()) > 0) == bool(label)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("steps", [1, 3])
def test_duplicated_support_rows_count_as_often_as_they_are_there(native: bool, steps: int) -> None:
    learner, lists = trainer(native, support_rows=64, inner_steps=steps), batch(4)
    twice = lists._replace(
        n_support=lists.n_support * 2,
        **{name: np.concatenate([part.reshape(8, 4, -1)] * 2, 1).reshape(64, -1) for name, part in (
            ("s_ids", lists.s_ids), ("s_x", lists.s_x), ("s_label", lists.s_label),
        )},
    )  # fmt: skip
    assert learner.score(twice).adapted == pytest.approx(learner.score(lists).adapted, abs=1e-6)


def test_support_from_the_future_is_refused_and_counted() -> None:
    settings = minibatches.settings()
    good = rehearsal.message(settings, 0, seed=1)
    head, packed = columns.unpack(good.value)
    late = dict(packed) | {"s_ts": packed["s_ts"] + packed["ts"].max()}
    with pytest.raises(episodes.Refused, match="not earlier than their list") as refused:
        episodes.decode(columns.pack(late, **head), layout_of(settings))
    assert refused.value.reason == plan.MALFORMED
    episodes.decode(good.value, layout_of(settings))


@pytest.mark.parametrize("native", [True, False])
def test_an_inner_rate_that_diverges_falls_back_to_the_shared_tower_and_is_counted(native: bool) -> None:
    wild = trainer(native, inner_rate=1e30, inner_steps=3)
    said = wild.step(batch(8), 9)
    assert said.diverged > 0
    assert said.skipped == ""
    assert math.isfinite(said.loss)
    assert said.adapted.tolist() == said.unadapted.tolist()
    assert np.isfinite(wild.dense).all()


@pytest.mark.parametrize("native", [True, False])
def test_one_task_that_diverges_leaves_the_others_adapted(native: bool) -> None:
    learner, lists = trainer(native), batch(8)
    odd = lists.s_label.copy()
    odd[0] = np.nan
    said = learner.step(lists._replace(s_label=odd), 9)
    first = slice(0, int(lists.n_items[0]))
    assert said.skipped == ""
    assert said.adapted[first].tolist() == said.unadapted[first].tolist()
    moved = (said.adapted != said.unadapted)[first.stop :]
    # Compiled towers adapt neighbours in the same products, so those that share them with the broken one may fall back too.
    assert moved.any() if native else moved.all()
    assert 1 <= said.diverged < (8 if native else 2)


@pytest.mark.parametrize("native", [True, False])
def test_an_adaptation_that_is_finite_but_absurd_is_taken_back_counted_and_not_learned_from(native: bool) -> None:
    calm = trainer(native)
    wild = step.Trainer(minibatches.settings(meta={"inner_rate": 300.0}), native=native, compiled=native)
    wild.load(calm.arrays())
    lists = batch(8)
    one = np.zeros_like(lists.n_support)
    one[0] = 8
    alone = lists._replace(n_support=one, s_ids=lists.s_ids[:8], s_x=lists.s_x[:8], s_label=lists.s_label[:8])
    absurd = wild.score(alone)
    first = slice(0, int(lists.n_items[0]))
    assert np.isfinite(absurd.adapted).all()
    assert limits.far(losses.BINARY, absurd.unadapted, absurd.adapted)[first].any()
    none = lists._replace(n_support=one * 0, s_ids=lists.s_ids[:0], s_x=lists.s_x[:0], s_label=lists.s_label[:0])
    said, wanted = wild.step(alone, 9), calm.step(none, 9)
    assert (said.diverged, wanted.diverged) == (1, 0)
    assert said.adapted == pytest.approx(wanted.unadapted, abs=1e-6)
    assert wild.gradient.numbers == pytest.approx(calm.gradient.numbers, abs=1e-6)


def test_an_unknown_support_mode_is_refused() -> None:
    with pytest.raises(config.ConfigError, match=r"support\.mode"):
        config.parse('[support]\nmode = "weights"\n')
