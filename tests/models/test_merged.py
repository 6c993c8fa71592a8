"""Merged serving (T8): whatever is scored together, each task gets what it gets alone."""

import functools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from learner import step
from models import base, scorer
from state import config
from tests import minibatches

REGROUPED = 1e-6
"""What rounding may change where products are cut into other blocks."""
KINDS: dict[str, dict[str, Any]] = {
    "native": {},
    "native, 3 steps and a prior": {"inner_steps": 3, "prior_rows": 4.0},
    "by age": {"half_life_s": 60.0, "prior_rows": 2.0},
    "film": {"algorithm": "film"},
    "meta_sgd": {"algorithm": "meta_sgd", "inner_steps": 2},
}


@functools.cache
def published(kind: str, objectives: int) -> scorer.Scorer:
    settings: config.Config = minibatches.settings(objectives, meta={"inner_rate": 0.5, "min_support": 2, **KINDS[kind]})
    trainer = step.Trainer(settings)
    for i in range(3):
        trainer.step(minibatches.minibatch(settings, i), i)
    model = scorer.Scorer(settings, {name: trainer.arrays()[name].copy() for name in trainer.serving_names})
    model.modes.set(2, "off")
    return model


def task(model: scorer.Scorer, seed: int, rows: int, known: int, scenario: int) -> scorer.Task:
    generator = np.random.default_rng(seed)
    found, x, _ = minibatches.rows(model.settings, generator, rows, seed % 5, scenario)
    support = base.Support(*minibatches.rows(model.settings, generator, known, seed % 5, scenario))
    return scorer.Task(
        found, x, scenario, None if known == 20 else support._replace(ts=np.sort(generator.integers(0, 10**6, known)))
    )


DRAWN = st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 7), st.integers(0, 20), st.integers(0, 2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("objectives", [1, 2])
@hypothesis_settings(max_examples=25, deadline=None)
@given(drawn=st.lists(DRAWN, min_size=1, max_size=9), data=st.data())
def test_any_merge_gives_each_task_what_it_gets_alone(
    kind: str, objectives: int, drawn: list[tuple[int, int, int, int]], data: st.DataObject
) -> None:
    model = published(kind, objectives)
    tasks = [task(model, *one) for one in drawn]
    order = data.draw(st.permutations(range(len(tasks))))
    together = model.merged([tasks[i] for i in order])
    for place, merged in zip(order, together, strict=True):
        alone = model.score(*tasks[place])
        assert merged.adapted_on == alone.adapted_on
        assert merged.plain == pytest.approx(alone.plain, abs=REGROUPED)
        assert merged.adapted == pytest.approx(alone.adapted, abs=REGROUPED)


@pytest.mark.parametrize("kind", KINDS)
def test_a_merge_of_one_is_the_task_alone_to_the_last_bit_and_repeats_itself(kind: str) -> None:
    model = published(kind, 1)
    tasks = [task(model, seed, 6, 9, 1) for seed in range(5)]
    for one in tasks:
        assert model.merged([one])[0].adapted.tobytes() == model.score(*one).adapted.tobytes()
    first, again = model.merged(tasks), model.merged(tasks)
    assert [m.adapted.tobytes() for m in first] == [m.adapted.tobytes() for m in again]


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_whose_support_is_damaged_takes_nothing_from_those_beside_it(kind: str) -> None:
    model = published(kind, 1)
    tasks = [task(model, seed, 5, 9, 1) for seed in range(5)]
    support = tasks[2].support
    assert isinstance(support, base.Support)
    tasks[2] = tasks[2]._replace(support=support._replace(label=np.full_like(support.label, np.nan)))
    together = model.merged(tasks)
    assert [(s.adapted_on, s.diverged) for s in together] == [(9, False), (9, False), (0, True), (9, False), (9, False)]
    for merged, one in zip(together, tasks, strict=True):
        assert merged.adapted == pytest.approx(model.score(*one).adapted, abs=REGROUPED)


def test_a_task_is_divided_by_its_own_number_of_rows_and_not_by_all() -> None:
    model = published("native", 1)
    few, many = task(model, 3, 5, 2, 1), task(model, 4, 5, 19, 1)
    moved = [np.abs(s.adapted - s.plain).max() for s in model.merged([few, many])]
    assert moved[0] == pytest.approx(np.abs(model.score(*few).adapted - model.score(*few).plain).max(), rel=1e-3)
    assert moved[0] > 1e-4


def test_more_support_than_one_pass_holds_is_scored_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    model = published("native", 1)
    tasks = [task(model, seed, 4, 12, 1) for seed in range(6)]
    whole = model.merged(tasks)
    monkeypatch.setattr(scorer, "MERGED_SUPPORT", 30)
    for one, other in zip(model.merged(tasks), whole, strict=True):
        assert one.adapted == pytest.approx(other.adapted, abs=REGROUPED)


def test_no_tasks_and_no_candidates_give_no_scores() -> None:
    model = published("native", 1)
    assert model.merged([]) == []
    assert [s.adapted.shape for s in model.merged([task(model, 1, 0, 5, 1), task(model, 2, 3, 5, 1)])] == [(0, 1), (3, 1)]
