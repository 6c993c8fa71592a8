"""Support that serving must survive: none, one class, twice the same, of the future, of another spec, and rates that diverge."""

from typing import Any

import msgspec
import numpy as np
import pytest

from learner import step
from models import base, limits, losses, scorer
from serving import metrics, scoring
from state import config, supports
from tests import minibatches


def published(native: bool = True, **meta: Any) -> scorer.Scorer:
    settings = minibatches.settings(meta={"inner_rate": 0.5, **meta})
    trainer = step.Trainer(minibatches.settings(meta={"inner_rate": 0.5}))
    for i in range(3):
        trainer.step(minibatches.minibatch(trainer.settings, i), i)
    return scorer.Scorer(settings, trainer.arrays(), native)


def request(known: int) -> tuple[base.U64, base.F32, base.Support]:
    settings, generator = minibatches.settings(), np.random.default_rng(7)
    found, x, _ = minibatches.rows(settings, generator, 20, 3, 1)
    return found, x, base.Support(*minibatches.rows(settings, generator, known, 3, 1))


@pytest.mark.parametrize("native", [True, False])
def test_empty_support_gives_the_plain_score(native: bool) -> None:
    found, x, support = request(0)
    scored = published(native).score(found, x, 1, support)
    assert (scored.adapted_on, scored.diverged) == (0, False)
    assert scored.adapted.tolist() == scored.plain.tolist()


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_support_of_one_class_moves_scores_towards_it_and_stays_finite(native: bool, label: float) -> None:
    found, x, support = request(9)
    scored = published(native).score(found, x, 1, support._replace(label=np.full((9, 1), label, np.float32)))
    assert np.isfinite(scored.adapted).all()
    assert (float((scored.adapted - scored.plain).mean()) > 0) == bool(label)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("steps", [1, 3])
def test_duplicated_rows_count_as_often_as_they_are_there(native: bool, steps: int) -> None:
    model, (found, x, support) = published(native, inner_steps=steps), request(6)
    twice = base.Support(*(np.concatenate([part, part]) for part in support))
    once, again = (model.score(found, x, 1, known).adapted for known in (support, twice))
    assert again == pytest.approx(once, abs=1e-6)


def test_support_from_the_future_is_refused_and_counted() -> None:
    layout = supports.layout(minibatches.settings())
    rows = np.zeros(5, layout.dtype)
    rows["ts"] = [1, 2, 3, 4, 5]
    found, ignored = scoring.support_rows(layout, supports.pack(layout, rows), 3, 10)
    assert found is not None
    assert found.ts.tolist() == [1, 2]
    counted = metrics.Metrics()
    counted.ignored(ignored)
    assert b"thousandfold_future_support_rows_total 3.0" in counted.text()


def test_support_of_another_feature_spec_is_ignored_and_counted() -> None:
    other = supports.layout(minibatches.settings(3))
    foreign = supports.pack(other, np.zeros(2, other.dtype))
    found, ignored = scoring.support_rows(supports.layout(minibatches.settings()), foreign, 3, 10)
    assert found is None
    counted = metrics.Metrics()
    counted.ignored(ignored)
    assert b"thousandfold_foreign_supports_total 1.0" in counted.text()


@pytest.mark.parametrize("native", [True, False])
def test_an_inner_rate_that_diverges_to_no_number_falls_back_to_the_shared_tower(native: bool) -> None:
    found, x, support = request(9)
    scored = published(native, inner_rate=1e30, inner_steps=3).score(found, x, 1, support)
    assert (scored.adapted_on, scored.diverged) == (0, True)
    assert scored.adapted.tolist() == scored.plain.tolist()


@pytest.mark.parametrize("native", [True, False])
def test_an_inner_rate_that_moves_logits_too_far_is_clipped_and_counted(native: bool) -> None:
    found, x, support = request(9)
    scored = published(native, inner_rate=300.0).score(found, x, 1, support)
    assert (scored.adapted_on, scored.diverged) == (9, True)
    moved = np.abs(np.log(scored.adapted / (1 - scored.adapted)) - np.log(scored.plain / (1 - scored.plain)))
    assert moved.max() == pytest.approx(limits.MOST_MOVED, rel=1e-2)
    counted = metrics.Metrics()
    counted.ignored(scoring.Ignored(diverged=int(scored.diverged)))
    assert b"thousandfold_diverged_adaptations_total 1.0" in counted.text()


@pytest.mark.parametrize("objective", [{"kind": "multiclass", "classes": 3}, {"kind": "regression", "scale": 2.0}])
def test_the_other_kinds_of_objectives_are_held_as_well(objective: dict[str, Any]) -> None:
    declared = (config.Objective(name="o", action="a", **objective),)
    settings = msgspec.structs.replace(minibatches.settings(meta={"inner_rate": 0.5}), objectives=declared)
    wild = msgspec.structs.replace(settings, meta=msgspec.structs.replace(settings.meta, inner_rate=3000.0))
    trainer = step.Trainer(settings)
    for i in range(3):
        trainer.step(minibatches.minibatch(settings, i), i)
    found, x, support = request(9)
    calm, held = (scorer.Scorer(s, trainer.arrays()).score(found, x, 1, support) for s in (settings, wild))
    assert not calm.diverged
    assert (held.adapted_on, held.diverged) == (9, True)
    assert np.isfinite(held.adapted).all()
    near = losses.plan(declared)
    assert not limits.far(near, held.plain, 0.999 * held.adapted + 0.001 * held.plain).any()
