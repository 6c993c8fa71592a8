"""The contract that every entry of MODELS keeps."""

import hashlib
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from learner import step
from models import base, registry, scorer
from state import config, ids
from tests import minibatches

FORMS: dict[str, dict[str, Any]] = {
    "usual": {},
    "deep": {"hidden": (12, 10, 8)},
    "shallow": {"hidden": (8,)},
    "no gates": {"use_epnet": False, "use_ppnet": False},
    "no wide part": {"wide": "off"},
    "factorisation machine": {"wide": "fm"},
    "gradients not stopped": {"stop_gradient": False},
    "moments by scenario": {"moments": "scenario"},
    "own experts with gates": {"own_gates": True},
}
ELSEWHERE = {"usual", "deep", "shallow"}
"""Forms of the models that share their ends with the two that take every form."""
GATED = "own experts with gates"
FORMS_OF = {"pepnet": {*FORMS} - {GATED}, "shared_bottom": {*FORMS} - {GATED}, "trs": ELSEWHERE | {GATED}}
COMBINED = [
    (name, form, objectives)
    for name in sorted(registry.MODELS)
    for form in sorted(FORMS)
    for objectives in (1, 2)
    if form in FORMS_OF.get(name, ELSEWHERE) and (name == "pepnet" or objectives == 2 or form == "usual")
]
pytestmark = pytest.mark.parametrize(("name", "form", "objectives"), COMBINED)


@pytest.fixture
def settings(name: str, form: str, objectives: int) -> config.Config:
    return minibatches.settings(objectives, model=FORMS[form] | {"name": name})


def digest(trainer: step.Trainer) -> str:
    out = hashlib.sha256()
    for name, array in sorted(trainer.arrays().items()):
        out.update(name.encode() + np.ascontiguousarray(array).tobytes())
    return out.hexdigest()


def trained(settings: config.Config, steps: int, scenario: int | None = None) -> step.Trainer:
    trainer = step.Trainer(settings)
    for i in range(steps):
        assert not trainer.step(minibatches.minibatch(settings, i, scenario=scenario), i).skipped
    return trainer


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(settings: config.Config, name: str, objectives: int) -> None:
    assert digest(trained(settings, 3)) == digest(trained(settings, 3))
    other = minibatches.settings(objectives, model={"name": name}, learner={"seed": 1})
    assert registry.build(settings).initial(0).numpy().tobytes() != registry.build(other).initial(1).numpy().tobytes()


def test_it_overfits_one_batch(settings: config.Config) -> None:
    eager = msgspec.structs.replace(
        settings, optimizer=msgspec.structs.replace(settings.optimizer, dense_rate=0.01, embedding_rate=0.2)
    )
    trainer, batch = step.Trainer(eager), minibatches.minibatch(settings, support=3)
    losses = [trainer.step(batch, i).loss for i in range(50)]
    assert min(losses[-10:]) < 0.3 * losses[0], "steps this large may jump out once and come back"


def test_a_gradient_reaches_every_parameter(settings: config.Config) -> None:
    trainer = trained(settings, 1)
    reached = np.zeros(len(trainer.dense), bool)
    for i in range(5):
        trainer.step(minibatches.minibatch(settings, 50 + i, lists=20), i)
        reached |= trainer.gradient.flat.numpy() != 0
    found = base.views(torch.from_numpy(reached), trainer.model.shapes)
    # Slot 0 is nobody's: its share of the parameters that scenarios own is never trained.
    nobody = {name: view[: len(view) // (settings.scenarios.slots + 1)] for name, view in found.items() if "own." in name}
    for parameter, view in found.items():
        assert view.any(), parameter
    assert not any(view.any() for view in nobody.values())
    assert reached.sum() > 0.7 * (len(reached) - sum(view.numel() for view in nobody.values()))


@pytest.mark.parametrize("inner_steps", [1, 3])
@pytest.mark.parametrize("native", [True, False])
def test_the_compiled_passes_equal_autograd(settings: config.Config, inner_steps: int, native: bool) -> None:
    meta = msgspec.structs.replace(settings.meta, inner_steps=inner_steps, inner_rate=0.5)
    settings = msgspec.structs.replace(settings, meta=meta)
    quick, reference = step.Trainer(settings, native), step.Trainer(settings, native=False, compiled=False)
    for i in range(3):
        batch = minibatches.minibatch(settings, i)
        a, b = quick.step(batch, i), reference.step(batch, i)
        assert a.loss == pytest.approx(b.loss, abs=1e-5)
        assert a.unadapted == pytest.approx(b.unadapted, abs=1e-5)
        assert a.adapted == pytest.approx(b.adapted, abs=1e-5)
        for parameter in quick.gradient.arrays:
            assert quick.gradient.arrays[parameter] == pytest.approx(reference.gradient.arrays[parameter], abs=1e-5), parameter
        reference.load(quick.arrays())


def test_scoring_is_pure_and_equals_what_the_step_then_says(settings: config.Config) -> None:
    newest = msgspec.structs.replace(settings, optimizer=msgspec.structs.replace(settings.optimizer, average=0.0))
    trainer, batch = trained(newest, 3), minibatches.minibatch(settings, 1)
    before = digest(trainer)
    said = trainer.score(batch)
    assert digest(trainer) == before
    stepped = trainer.step(batch, 9)
    assert said.unadapted.tolist() == stepped.unadapted.tolist()
    assert said.adapted.tolist() == stepped.adapted.tolist()


def test_scores_do_not_depend_on_the_company(settings: config.Config) -> None:
    trainer, batch = trained(settings, 3), minibatches.minibatch(settings, 8)
    whole, at = trainer.score(batch), 0
    for i, n in enumerate(batch.n_items):
        own = trainer.score(minibatches.alone(batch, [i]))
        assert own.unadapted == pytest.approx(whole.unadapted[at : at + n], abs=1e-6)
        assert own.adapted == pytest.approx(whole.adapted[at : at + n], abs=1e-6)
        at += n


def test_a_published_model_scores_as_the_trainer_does(settings: config.Config) -> None:
    trainer, batch = trained(settings, 4), minibatches.minibatch(settings, 2, support=6)
    arrays = trainer.arrays()
    published = scorer.Scorer(settings, {name: arrays[name] for name in trainer.serving_names})
    reference = scorer.Scorer(settings, {name: arrays[name] for name in trainer.serving_names}, native=False)
    wanted, at, s_at = trainer.score(batch), 0, 0
    for i, n in enumerate(batch.n_items):
        rows, known = slice(at, at + n), slice(s_at, s_at + 6)
        support = base.Support(batch.s_ids[known], batch.s_x[known], batch.s_label[known])
        for one in (published, reference):
            said = one.score(batch.ids[rows], batch.x[rows], int(batch.scenario[i]), support)
            assert said.plain == pytest.approx(wanted.unadapted[rows], abs=1e-6)
            assert said.adapted == pytest.approx(wanted.adapted[rows], abs=1e-6)
            assert said.adapted_on == 6
        at, s_at = at + n, s_at + 6


def test_resuming_a_snapshot_continues_byte_for_byte(settings: config.Config) -> None:
    whole, first = trained(settings, 6), trained(settings, 3)
    second = step.Trainer(settings)
    second.load({name: array.copy() for name, array in first.arrays().items()})
    for i in range(3, 6):
        second.step(minibatches.minibatch(settings, i), i)
    assert digest(second) == digest(whole)


def test_an_unseen_scenario_user_and_item_are_scored(settings: config.Config) -> None:
    trainer, batch = trained(settings, 3), minibatches.minibatch(settings, 5)
    strange = np.where(batch.ids == ids.PAD, batch.ids, batch.ids + np.uint64(10**12))
    said = trainer.score(batch._replace(ids=strange, scenario=batch.scenario + np.uint64(10**12)))
    assert ((said.unadapted > 0) & (said.unadapted < 1) & (said.adapted > 0) & (said.adapted < 1)).all()


def test_a_new_scenario_is_served_at_once_and_earns_its_own_parameters_in_the_same_shapes(settings: config.Config) -> None:
    trainer = step.Trainer(settings)
    for i in range(6):
        trainer.step(minibatches.minibatch(settings, i, scenario=i % 2), i)
    before = {name: array.copy() for name, array in trainer.arrays().items()}
    fresh = minibatches.minibatch(settings, 9, scenario=2)
    stranger = np.where(fresh.ids == 2, np.uint64(10**12), fresh.ids)
    column = trainer._scenario
    other = fresh._replace(ids=np.c_[fresh.ids[:, :column], stranger[:, [column]], fresh.ids[:, column + 1 :]])
    assert trainer.score(fresh).unadapted.tolist() == trainer.score(other).unadapted.tolist()
    for i in range(3):
        trainer.step(minibatches.minibatch(settings, 20 + i, scenario=2), 10 + i)
    slots = settings.scenarios.slots + 1
    parameters, old = (base.views(torch.from_numpy(a), trainer.model.shapes) for a in (trainer.dense, before["dense"]))
    for name in (name for name in parameters if "own." in name):
        mine, theirs = (view.reshape(slots, -1) for view in (parameters[name], old[name]))
        assert not torch.equal(mine[3], theirs[3]), name
    assert {n: a.shape[1:] for n, a in trainer.arrays().items()} == {n: a.shape[1:] for n, a in before.items()}
    resumed = step.Trainer(settings)
    resumed.load(before)
    for i in range(3):
        resumed.step(minibatches.minibatch(settings, 20 + i, scenario=2), 10 + i)
    assert digest(resumed) == digest(trainer)


def test_training_one_scenario_leaves_the_ids_of_another_untouched(settings: config.Config) -> None:
    trainer = trained(settings, 3)
    mine = trainer.table.map.find(np.array([[1000, 1001, 77, ids.PAD, ids.PAD, ids.PAD]], np.uint64))
    assert mine[0, :3].tolist() == [0, 1, 2]
    other = minibatches.minibatch(settings, 40, scenario=77)
    other = other._replace(ids=np.where(other.ids == ids.PAD, other.ids, other.ids + np.uint64(1000)))
    trainer.step(other, 10)
    owned = np.unique(trainer.table.map.find(other.ids))
    before = trainer.table.table.copy()
    for i in range(3):
        trainer.step(minibatches.minibatch(settings, i, scenario=1), 20 + i)
    owned = owned[owned >= trainer.table.map.fields]
    assert len(owned) > 10
    assert (trainer.table.table[owned] == before[owned]).all()
