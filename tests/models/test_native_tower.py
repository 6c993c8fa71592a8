"""The compiled tower at serving, under any trunk and on stored meta inputs: the scores that torch gives."""

import functools
from typing import Any

import numpy as np
import pytest

from learner import step
from models import base, pepnet_native, scorer, towers
from state import config, meta_supports
from tests import minibatches

KINDS: dict[str, dict[str, Any]] = {
    "pepnet": {},
    "pepnet, 3 steps and a prior": {"meta": {"inner_steps": 3, "prior_rows": 4.0}},
    "pepnet under torch": {"model": {"native": False}},
    "mmoe": {"model": {"name": "mmoe"}},
    "mmoe with own towers": {"model": {"name": "mmoe", "own_towers": True}},
    "star": {"model": {"name": "star"}},
}


def declared(kind: str, objectives: int) -> config.Config:
    sections = KINDS[kind]
    meta = {"inner_rate": 0.5, "min_support": 2} | sections.get("meta", {})
    return minibatches.settings(objectives, **(sections | {"meta": meta}))


@functools.cache
def published(kind: str, objectives: int) -> tuple[scorer.Scorer, scorer.Scorer]:
    """By native code and by torch alone."""
    settings = declared(kind, objectives)
    trainer = step.Trainer(settings)
    for i in range(3):
        trainer.step(minibatches.minibatch(settings, i), i)
    arrays = {name: trainer.arrays()[name].copy() for name in trainer.serving_names}
    return scorer.Scorer(settings, arrays), scorer.Scorer(settings, arrays, native=False)


def known(model: scorer.Scorer, support: base.Support) -> base.Known:
    """What a trunk makes of support rows, as torch's says."""
    inputs = np.empty((len(support.ids), model._geometry.row), np.float32)
    model._gather(support.ids, support.x, inputs)
    found = model.model.trunk(model._parameters, model._inputs(inputs, support.ids))
    hidden, gate, offset, shift = (part.detach().numpy() for part in found)
    return base.Known(hidden, gate, offset, shift, support.label)


def stored(model: scorer.Scorer, asked: list[scorer.Task]) -> list[scorer.Task]:
    """The same tasks on meta inputs."""
    return [t._replace(support=known(model, t.support)) if isinstance(t.support, base.Support) else t for t in asked]


def tasks(model: scorer.Scorer, rows: tuple[int, ...], supports: tuple[int, ...]) -> list[scorer.Task]:
    generator, found = np.random.default_rng(5), []
    for n, k in zip(rows, supports, strict=True):
        ids, x, _ = minibatches.rows(model.settings, generator, n, 3, 1)
        own = base.Support(*minibatches.rows(model.settings, generator, k, 3, 1))
        found.append(scorer.Task(ids, x, 1, own if k else None))
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("objectives", [1, 2])
def test_scores_adapted_on_features_and_on_meta_inputs_are_those_of_torch(kind: str, objectives: int) -> None:
    model, slow = published(kind, objectives)
    assert (model.choice.engine == "torch", slow.choice.engine) == (False, "torch")
    asked = tasks(model, (40, 7, 3), (9, 1, 0))
    wanted, kept = slow.merged(asked), stored(slow, asked)
    for found in (model.merged(asked), model.merged(kept), [model.score(*t) for t in kept]):
        for one, other in zip(found, wanted, strict=True):
            assert one.adapted_on == other.adapted_on
            assert one.plain == pytest.approx(other.plain, abs=1e-6)
            assert one.adapted == pytest.approx(other.adapted, abs=1e-5)
    assert [s.adapted_on for s in wanted] == [9, 0, 0]
    assert np.abs(wanted[0].adapted - wanted[0].plain).max() > 1e-3


@pytest.mark.parametrize("objectives", [1, 2])
def test_what_a_pass_finds_in_its_memory_changes_nothing(objectives: int) -> None:
    model, slow = published("pepnet, 3 steps and a prior", objectives)
    asked = tasks(model, (40, 7, 3), (9, 1, 0))
    assert isinstance(model._native, pepnet_native.Network)
    assert model._tower is not None
    for wanted in (asked, stored(slow, asked)):
        for once in (model.merged(wanted), slow.merged(wanted)):
            for space in (*model._native._spare, *model._tower._spare):
                space.numbers[:] = np.nan
            for held in model._tower._held:
                for part in held:
                    part[:] = np.nan
            for one, other in zip(model.merged(wanted), once, strict=True):
                assert (one.adapted_on, one.diverged) == (other.adapted_on, False)
                assert one.adapted == pytest.approx(other.adapted, abs=1e-5)


@pytest.mark.parametrize("kind", ["pepnet", "mmoe"])
def test_merged_on_meta_inputs_each_task_gets_what_it_gets_alone(kind: str) -> None:
    model, slow = published(kind, 2)
    asked = stored(slow, tasks(model, (5, 0, 12, 1), (4, 3, 9, 6)))
    for one, merged in zip(asked, model.merged(asked), strict=True):
        alone = model.score(*one)
        assert merged.adapted_on == alone.adapted_on
        assert merged.adapted == pytest.approx(alone.adapted, abs=1e-6)
    again = model.merged(asked)
    assert [m.adapted.tobytes() for m in again] == [m.adapted.tobytes() for m in model.merged(asked)]


def test_the_native_trunk_gives_the_meta_inputs_of_torch() -> None:
    model, slow = published("pepnet", 2)
    (one,) = tasks(model, (11,), (0,))
    inputs = np.empty((11, model._geometry.row), np.float32)
    model._gather(one.ids, one.x, inputs)
    assert model._native is not None
    assert model._tower is not None
    read = slow._inputs(inputs, one.ids)
    found, wanted = model._tower.hold(11), model._tower.hold(11)
    model._native.meta(read.x.numpy(), towers.Meta(*(part[:22] for part in found)))
    hidden, gate, offset, shift = (part.detach().numpy() for part in slow.model.trunk(slow._parameters, read))
    model._tower.enter(meta_supports.Parts(hidden, gate, offset, shift), wanted, 0)
    for part, other in zip(found, wanted, strict=True):
        assert part[:22] == pytest.approx(other[:22], rel=1e-4, abs=1e-5)
