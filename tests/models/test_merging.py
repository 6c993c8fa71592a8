"""Several models of one scenario each, merged: `models.migration`, `models.migrated_inputs` and `models.own_rows` together."""

from typing import Any

import numpy as np
import pytest
import torch

from learner import step
from models import base, donors, migrated_inputs, migration, moments, own_rows, scorer
from state import config, ids
from tests import minibatches
from tests.models import test_migration as one

NAMES = ("search", "feed", "detail")
MODELS: tuple[dict[str, Any], ...] = (
    {"name": "shared_bottom"},
    {"name": "mmoe", "experts": 3},
    {"name": "pepnet", "use_epnet": False, "use_ppnet": False},
)
OWN = ("user", "item", "genres")
MERGED = {"name": "trs", "own_experts": 3, "own_rows": OWN, "moments": "scenario", "hidden": (12, 10, 24)}


def rows(declared: config.Config, seed: int, scenario: str) -> base.Batch:
    """Lists of one scenario, whose numbers lie elsewhere than those of the others; ids are the same 60 everywhere."""
    batch = minibatches.minibatch(declared, seed, scenario=ids.of(scenario))
    by = np.float32(NAMES.index(scenario) + 1)
    return batch._replace(x=batch.x * by - by, s_x=batch.s_x * by - by)


@pytest.fixture(scope="module")
def trained() -> list[step.Trainer]:
    """A model for each scenario, of three kinds; optimisers fast enough to tell the models apart."""
    found = []
    for i, (name, model) in enumerate(zip(NAMES, MODELS, strict=True)):
        declared = one.replaced(one.settings(2, wider=False, **model), learner={"seed": i}, optimizer={"dense_rate": 0.02})
        trainer = step.Trainer(declared)
        for seed in range(8 + i):
            assert not trainer.step(rows(declared, 100 * i + seed, name), seed).skipped
        found.append(trainer)
    return found


def given(trained: list[step.Trainer]) -> list[donors.Donor]:
    return [donors.load(t.settings, t.arrays(), name) for t, name in zip(trained, NAMES, strict=True)]


def cross(**model: Any) -> config.Config:
    """The configuration of the merged model, of more features than the old ones had."""
    return one.replaced(one.settings(2, wider=True), model=MERGED | model, scenarios={"slots": 4})


def merged(trained: list[step.Trainer], **model: Any) -> step.Trainer:
    trainer = step.Trainer(cross(**model))
    trainer.load(trainer.arrays() | migration.migrate(given(trained), trainer.settings))
    return trainer


def test_every_scenario_is_predicted_as_by_its_own_model_though_ids_are_the_same(trained: list[step.Trainer]) -> None:
    after = merged(trained)
    for i, (name, before) in enumerate(zip(NAMES, trained, strict=True)):
        batch = rows(before.settings, 990 + i, name)
        batch.ids[0, 0] = 12345
        was, now = before.score(batch), after.score(one.widened(batch))
        assert now.unadapted == pytest.approx(was.unadapted, abs=1e-6)
        assert now.adapted == pytest.approx(was.adapted, abs=1e-6)
        assert np.abs(was.adapted - was.unadapted).max() > 1e-4
        others = [t.score(batch).unadapted for t in trained if t is not before]
        assert min(np.abs(other - was.unadapted).max() for other in others) > 0.02


def test_what_serving_scores_is_the_same_too(trained: list[step.Trainer]) -> None:
    after, batch = merged(trained), one.widened(rows(trained[1].settings, 50, "feed"))
    served = scorer.Scorer(after.settings, after.arrays())
    plain = served.score(batch.ids, batch.x, ids.of("feed"), None).plain
    assert plain == pytest.approx(after.score(batch).unadapted, abs=1e-6)


def test_an_id_that_two_models_knew_has_the_row_of_each(trained: list[step.Trainer]) -> None:
    after = merged(trained)
    assert after.table.map.admitted == sum(t.table.map.admitted for t in trained)
    for name, before in zip(NAMES, trained, strict=True):
        batch = rows(before.settings, 50, name)
        found, known = after.find(one.widened(batch).ids)[:, :6], before.find(batch.ids)
        assert (after.table.table[found] == before.table.table[known])[known >= 0].all()


def test_merged_they_learn_on_and_open_themselves_to_each_other(trained: list[step.Trainer]) -> None:
    after = merged(trained)
    start = {name: view.clone() for name, view in one.opened(after).items()}
    for seed in range(6):
        batch = one.widened(rows(trained[0].settings, seed, NAMES[seed % 3]))
        assert not after.step(batch, 100 + seed).skipped
    for name, now in one.opened(after).items():
        assert (now[1:4] != start[name][1:4]).any(tuple(range(1, now.dim()))).all(), name


def test_the_order_of_scenarios_makes_no_difference_to_any(trained: list[step.Trainer]) -> None:
    after = step.Trainer(cross())
    after.load(after.arrays() | migration.migrate(given(trained)[::-1], after.settings))
    batch = rows(trained[0].settings, 50, "search")
    assert after.score(one.widened(batch)).adapted == pytest.approx(trained[0].score(batch).adapted, abs=1e-6)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"own_rows": ()}, r"own_rows: lacks user, item, genres; .* other embeddings for the same id"),
        ({"moments": "shared"}, r'model\.moments: is "shared", must be "scenario"'),
        ({"hidden": (12, 10, 16)}, r"model\.hidden, its last: is 16, must be at least 24"),
        ({"own_towers": False}, r"model\.own_towers: is False"),
    ],
)
def test_a_configuration_that_could_not_keep_them_apart_is_refused(
    trained: list[step.Trainer], model: dict[str, Any], said: str
) -> None:
    with pytest.raises(config.ConfigError, match=said):
        merged(trained, **model)


def test_two_models_of_one_scenario_or_more_than_there_is_room_for_are_refused(trained: list[step.Trainer]) -> None:
    new = cross()
    with pytest.raises(config.ConfigError, match='"search" is named twice'):
        migration.refuse([(trained[0].settings, "search")] * 2, new)
    with pytest.raises(config.ConfigError, match=r"scenarios\.slots: is 2, must be at least 3"):
        migration.migrate(given(trained), one.replaced(new, scenarios={"slots": 2}))


def test_models_that_learned_different_things_of_unknown_ids_are_refused(trained: list[step.Trainer]) -> None:
    arrays = trained[1].arrays()
    table = arrays["table"].copy()
    table[1] = 0.5
    changed = donors.load(trained[1].settings, arrays | {"table": table}, "feed")
    with pytest.raises(config.ConfigError, match=r'embedding\.admit_after: .* ids of "item" without a row'):
        migrated_inputs.table([given(trained)[0], changed], cross())


@pytest.mark.parametrize("n", [0.0, 3.0, 1e6])
@pytest.mark.parametrize("scale", [0.01, 1.0, 1000.0])
def test_numbers_are_standardised_as_asked_whatever_the_shared_moments_are(n: float, scale: float) -> None:
    shared = np.array([[1e5], [40.0], [1e5 * 9.0]])
    own = np.array([[n * 1.5], [n], [7.0], [n * 4], [n / 2]])
    wanted = np.array([5.0], np.float32), np.array([scale], np.float32)
    solved = migrated_inputs._solved(own, wanted, shared, 100.0)
    mean, by = moments.standards(shared, np.array([own, solved]), 100.0)
    assert by[1] == pytest.approx(wanted[1], rel=1e-6)
    assert mean[1] == pytest.approx(wanted[0], rel=1e-5)
    assert solved[0] == pytest.approx(1.5 * solved[1] if n else 0.0)


def test_turning_keys_and_turning_ids_is_the_same() -> None:
    declared = minibatches.settings(model={"own_rows": ("user", "genres")})
    batch = minibatches.minibatch(declared, scenario=9)
    plain, own = step.Trainer(minibatches.settings()), step.Trainer(declared)
    plain.table.admit(batch.ids, 0)
    own.step(batch, 0)
    keys = [set(t.table.map.keys[t.table.map.values > 0].tolist()) for t in (plain, own)]
    turned = set(own_rows.turned(np.array(sorted(keys[0]), np.uint64), 9).tolist())
    assert len(keys[1] & turned) + len(keys[1] & keys[0]) == len(keys[1])
    assert keys[1] & turned
    assert keys[1] & keys[0]


def test_an_id_has_another_row_in_every_scenario_and_absent_ones_stay_absent() -> None:
    declared = minibatches.settings(model={"own_rows": ("item", "genres")})
    found = np.array([[1, 2, 7, ids.PAD, 4, 5], [1, 2, 8, ids.PAD, 4, 5]], np.uint64)
    apart = own_rows.plan(declared).apply(found)
    assert (apart[:, [0, 2, 3]] == found[:, [0, 2, 3]]).all()
    assert (apart[0, [1, 4, 5]] != apart[1, [1, 4, 5]]).all()
    assert own_rows.plan(minibatches.settings()).apply(found) is found


@pytest.mark.parametrize(
    ("model", "embedding", "said"),
    [
        (
            'own_rows = ["price"]',
            "",
            '"price" is no category with embeddings of its own, or the scenario itself; allowed: user, item, genres',
        ),
        ('own_rows = ["scenario"]', "", "or the scenario itself"),
        ('own_rows = ["item"]\nname = "two_tower"', "", "two_tower retrieves one item for all scenarios"),
        ('own_rows = ["item"]', 'cold = "meta"', 'not together with embedding.cold = "meta"'),
    ],
)
def test_own_rows_that_cannot_be_are_refused(model: str, embedding: str, said: str) -> None:
    text = minibatches.TEXT.replace("[model]", f"[model]\n{model}").replace("[embedding]", f"[embedding]\n{embedding}")
    with pytest.raises(config.ConfigError, match=said):
        config.parse(text)


def test_gated_models_and_models_without_gates_are_merged_into_one_with_gates() -> None:
    before = []
    for i, (name, model) in enumerate(zip(NAMES, ("pepnet", "shared_bottom", "pepnet"), strict=True)):
        declared = one.replaced(one.settings(2, wider=False, name=model), learner={"seed": i}, optimizer={"dense_rate": 0.02})
        before.append(step.Trainer(declared))
        for seed in range(6):
            assert not before[i].step(rows(declared, 100 * i + seed, name), seed).skipped
    after = merged(before, own_experts=1, own_gates=True)
    for i, (name, trainer) in enumerate(zip(NAMES, before, strict=True)):
        batch = rows(trainer.settings, 990 + i, name)
        was, now = trainer.score(batch), after.score(one.widened(batch))
        assert now.unadapted == pytest.approx(was.unadapted, abs=1e-6)
        assert now.adapted == pytest.approx(was.adapted, abs=1e-6)
    start = {name: view.clone() for name, view in gates(after).items()}
    for seed in range(6):
        assert not after.step(one.widened(rows(before[0].settings, seed, NAMES[seed % 3])), 100 + seed).skipped
    for name, now in gates(after).items():
        assert (now != start[name]).view(5, -1).any(1).tolist() == [False, True, True, True, False], name


def gates(trainer: step.Trainer) -> dict[str, Any]:
    """What the gates end in, slot by slot."""
    views = base.views(torch.from_numpy(trainer.dense), trainer.model.shapes)
    return {name: view for name, view in views.items() if "net.out" in name and name.endswith("weight")}
