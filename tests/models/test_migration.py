import math
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from learner import step
from models import base, donors, migrated_inputs, migration
from state import config, ids
from tests import minibatches

OLD = """
[scenarios]
slots = 2
prior_rows = 20
[model]
embedding_width = 4
hidden = [12, 10, 8]
{model}
[embedding]
capacity = 4096
[features]
categories = [
  {{ name = "user", source = "user_id" }},
  {{ name = "item", source = "item_id" }},
  {{ name = "scenario", source = "scenario" }},
  {{ name = "genres", source = "item.genres", max_values = 3 }}{category}
]
numbers = [{number}{{ name = "price", source = "item.price" }}, {{ name = "year", source = "item.year" }}]
"""
SEARCH = ids.of("search")
DONORS: dict[str, dict[str, Any]] = {
    "shared bottom": {"name": "shared_bottom"},
    "shared bottom without own towers": {"name": "shared_bottom", "own_towers": False},
    "towers of each objective": {"name": "shared_bottom", "objective_towers": True},
    "factorisation machine beside it": {"name": "shared_bottom", "wide": "fm"},
    "mixture": {"name": "mmoe", "experts": 3},
    "mixture in a larger group": {"name": "mmoe", "experts": 3, "own_experts": 5},
    "one level of PLE": {"name": "ple", "experts": 2, "own_experts": 2, "levels": 1},
    "PEPNet without gates": {"name": "pepnet", "use_epnet": False, "use_ppnet": False},
    "PEPNet": {"name": "pepnet"},
    "PEPNet of the embeddings only": {"name": "pepnet", "use_ppnet": False},
    "PEPNet of the layers only": {"name": "pepnet", "use_epnet": False},
}
GATED = {"PEPNet", "PEPNet of the embeddings only", "PEPNet of the layers only"}
EXPERTS = {"mixture": 3, "mixture in a larger group": 5, "one level of PLE": 8}


def settings(objectives: int, wider: bool, **model: Any) -> config.Config:
    text = "\n".join(f"{k} = {str(v).lower() if isinstance(v, bool) else repr(v)}" for k, v in model.items())
    more = ',\n  { name = "query", source = "context.query" },' if wider else ","
    number = '{ name = "rank", source = "item.rank" }, ' if wider else ""
    names = "\n".join(f'[[objectives]]\nname = "o{i}"\naction = "a{i}"' for i in range(objectives))
    return config.parse(names + OLD.format(model=text, category=more, number=number))


def pair(donor: str, objectives: int = 2, **changes: Any) -> tuple[config.Config, config.Config]:
    model = DONORS[donor]
    wanted = {"name": "trs", "own_experts": EXPERTS.get(donor, 1), "wide": model.get("wide", "product")}
    wanted |= {"own_gates": donor in GATED}
    wanted |= {"objective_towers": model.get("objective_towers", False)} | changes
    return settings(objectives, wider=False, **model), settings(objectives, wider=True, **wanted)


def replaced(declared: config.Config, **sections: dict[str, Any]) -> config.Config:
    for name, values in sections.items():
        declared = msgspec.structs.replace(declared, **{name: msgspec.structs.replace(getattr(declared, name), **values)})
    return declared


def rows(declared: config.Config, seed: int) -> base.Batch:
    return minibatches.minibatch(declared, seed, scenario=SEARCH)


def widened(batch: base.Batch) -> base.Batch:
    """The same rows with the new features, which are filled at random."""
    generator = np.random.default_rng(3)
    out = {}
    for found, numbers in (("ids", "x"), ("s_ids", "s_x")):
        old, x = getattr(batch, found), getattr(batch, numbers)
        out[found] = np.c_[old, generator.integers(0, 60, len(old)).astype(np.uint64)]
        out[numbers] = np.c_[generator.standard_normal(len(x)).astype(np.float32), x]
    return batch._replace(**out)


def moved(old: config.Config, new: config.Config, steps: int = 8) -> tuple[step.Trainer, step.Trainer]:
    before, after = step.Trainer(old), step.Trainer(new)
    for i in range(steps):
        before.step(rows(old, i), i)
    after.load(after.arrays() | migration.migrate([donors.load(old, before.arrays(), "search")], new))
    return before, after


def opened(trainer: step.Trainer) -> dict[str, torch.Tensor]:
    """What keeps a scenario that was taken over to itself, by slot."""
    views = base.views(torch.from_numpy(trainer.dense), trainer.model.shapes)
    return {name: views[name] for name in ("own.open", "own.output.weight")}


@pytest.mark.parametrize("objectives", [1, 2])
@pytest.mark.parametrize("donor", sorted(DONORS))
def test_the_scenario_is_predicted_as_before(donor: str, objectives: int) -> None:
    old, new = pair(donor, objectives)
    before, after = moved(old, new)
    for seed in (2, 100):
        batch = rows(old, seed)
        was, now = before.score(batch), after.score(widened(batch))
        assert now.unadapted == pytest.approx(was.unadapted, abs=1e-6)
        assert now.adapted == pytest.approx(was.adapted, abs=1e-6)
        assert not np.allclose(was.adapted, was.unadapted, atol=1e-5)


def test_moments_of_the_scenario_are_taken_over_and_standardise_as_before() -> None:
    old, new = (replaced(c, model={"moments": "scenario"}) for c in pair("shared bottom"))
    before, after = moved(old, new)
    batch = rows(old, 99)
    assert after.score(widened(batch)).unadapted == pytest.approx(before.score(batch).unadapted, abs=1e-6)
    assert after.table.observed[1][:, 1:] == pytest.approx(before.table.observed[1])
    with pytest.raises(config.ConfigError, match=r"model\.moments"):
        migration.refuse([(old, "search")], replaced(new, model={"moments": "shared"}))


def test_a_fresh_model_without_migration_predicts_something_else() -> None:
    old, new = pair("shared bottom")
    before, after = moved(old, new)
    batch = rows(old, 2)
    assert not np.allclose(step.Trainer(new).score(widened(batch)).unadapted, before.score(batch).unadapted, atol=1e-3)
    foreign = widened(batch)
    foreign.ids[:, 2] = ids.of("browse")
    assert not np.allclose(after.score(foreign).unadapted, before.score(batch).unadapted, atol=1e-3)


def test_it_learns_on_and_opens_itself_to_the_shared_experts_while_others_join() -> None:
    old, new = pair("mixture")
    _, after = moved(old, new)
    for i in range(20):
        batch = widened(rows(old, 50 + i))
        if i % 2:
            batch.ids[:, 2] = batch.s_ids[:, 2] = ids.of("browse")
        assert not after.step(batch, 100 + i).skipped
    opened = base.views(torch.from_numpy(after.dense), after.model.shapes)["own.open"]
    assert (opened[1] != -1).all()
    assert (opened[1] + 1).abs().max() < 0.2
    assert opened[2].any()
    assert after.slots.find(np.array([SEARCH, ids.of("browse")], np.uint64)).tolist() == [1, 2]


def test_embeddings_keep_their_ids_and_new_ids_get_rows_of_their_own() -> None:
    old, new = pair("shared bottom")
    before, after = moved(old, new)
    known = before.table.map.rows
    fields = before.table.map.fields
    assert after.table.map.rows == known + 1
    batch = widened(rows(old, 2))
    batch.ids[:, 1] += np.uint64(10**9)
    found = after.table.admit(batch.ids, 10**6)
    fresh = found[:, 1]
    assert fresh.min() >= known + 1
    assert len(np.unique(fresh)) == len(np.unique(batch.ids[:, 1]))
    assert (after.table.table[fields + 1 : known + 1] == before.table.table[fields:known]).all()


@pytest.mark.parametrize("slots", [1, 16])
def test_what_was_earned_is_in_full_to_the_last_bit(slots: int) -> None:
    for prior in (0.5, 20.0, 1e7):
        declared = config.Scenarios(slots=slots, prior_rows=prior)
        arrays = migrated_inputs.slots(declared, ["search"])
        assert float(np.float32(arrays["slots.rows"][1] / (arrays["slots.rows"][1] + prior))) == 1.0
        assert math.isfinite(float(arrays["slots.rows"][1]))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"embedding_width": 8}, r"model\.embedding_width: is 8, must be 4"),
        ({"wide": "off"}, r"model\.wide: is off, must be product"),
        ({"expert_hidden": (12,)}, r"model\.expert_hidden: is \(12,\), must be \(12, 10\)"),
        ({"hidden": (12, 10, 6)}, r"model\.hidden, its last: is 6, must be at least 8"),
        ({"own_towers": False}, r"model\.own_towers: is False, must be True"),
        ({"star_tower": True}, r"model\.star_tower: is True, must be False"),
        ({"own_rows": ("user", "item")}, r"model\.own_rows: lacks genres;"),
        ({"name": "ple"}, r'the new model is "ple"; allowed: "trs"'),
    ],
)
def test_what_does_not_fit_is_refused_with_what_must_be(changes: dict[str, Any], said: str) -> None:
    old, new = pair("shared bottom")
    new = replaced(new, model=changes)
    with pytest.raises(config.ConfigError, match=said):
        migration.refuse([(old, "search")], new)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("mixture", {"experts": 4}, r"model\.own_experts: is 3, must be at least 4"),
        ("PEPNet without gates", {"use_epnet": True}, r"own_gates: is False, must be True: the old model is a PEPNet with gates"),
        ("PEPNet", {"name": "mmoe"}, r"own_gates: is True, must be False: the old model is 4 experts"),
        ("PEPNet", {"gamma": 3.0}, r"model\.gamma: is 2\.0, must be 3\.0"),
        ("PEPNet", {"gate_hidden": 8}, r"model\.gate_hidden: is 32, must be 8"),
        ("PEPNet", {"personal_features": ("user",)}, r"model\.personal_features: is .*, must be \('user',\)"),
        ("one level of PLE", {"levels": 2}, r"model\.levels: is 2, must be 1: a second level reads what the first one mixed"),
        ("shared bottom", {"name": "star"}, r'"star" cannot become an expert; allowed: mmoe, pepnet, ple, shared_bottom'),
        ("shared bottom", {"hidden": (8,)}, "no layer before its tower"),
        ("shared bottom", {"own_rows": ("user",)}, "has own rows already"),
    ],
)
def test_what_cannot_become_an_expert_is_refused_and_why(name: str, changes: dict[str, Any], said: str) -> None:
    old, new = pair(name)
    with pytest.raises(config.ConfigError, match=said):
        migration.refuse([(replaced(old, model=changes), "search")], new)


def test_other_categories_first_or_too_little_room_are_refused() -> None:
    old, new = pair("shared bottom")
    swapped = replaced(new, features={"categories": new.features.categories[::-1]})
    with pytest.raises(config.ConfigError, match=r"must start with the old model's \(user, item, scenario, genres\)"):
        migration.refuse([(old, "search")], swapped)
    fewer = replaced(new, features={"numbers": new.features.numbers[:1]})
    with pytest.raises(config.ConfigError, match="lacks price, year"):
        migration.refuse([(old, "search")], fewer)
    small = replaced(new, embedding={"capacity": 5})
    with pytest.raises(config.ConfigError, match=r"embedding\.capacity: must be at least \d+"):
        moved(old, small, steps=1)
