"""A model that has learned says the same of its objectives when there is one more, and learns that one from a fresh head."""

from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from learner import step
from models import base, cold, extension, registry
from state import config
from tests import minibatches

MORE = config.Objective(name="more", action="more")
CLASSES = config.Objective(name="rank", action="rank", kind="multiclass", classes=3)
BESIDE: dict[str, dict[str, Any]] = {
    "mmoe": {"experts": 3, "objective_towers": (5,)},
    "trs": {"own_experts": 2, "star_tower": True},
    "pepnet": {"wide": "fm"},
    "ple": {"levels": 1},
}
"""Settings under which more parameters depend on the objectives."""


class Mixing:
    """No model that can be extended: what one objective says depends on the others."""

    def __init__(self, settings: config.Config) -> None:
        self.inner = registry.MODELS["shared_bottom"](settings)
        self.shapes, self.objectives = self.inner.shapes, self.inner.objectives

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def trunk(self, parameters: base.Parameters, inputs: base.Inputs) -> base.MetaInput:
        meta = self.inner.trunk(parameters, inputs)
        return meta._replace(gate=meta.gate / self.objectives)


def settings(name: str, **sections: dict[str, Any]) -> config.Config:
    model = {"name": name, **BESIDE.get(name, {}), **sections.pop("model", {})}
    return minibatches.settings(2, model=model, **sections)


def grown(old: config.Config, *more: config.Objective) -> config.Config:
    return msgspec.structs.replace(old, objectives=(*old.objectives, *more))


def of(declared: config.Config, batch: base.Batch) -> base.Batch:
    """A minibatch with the labels of the first objectives."""
    n = len(declared.objectives)
    return batch._replace(label=batch.label[:, :n], weight=batch.weight[:, :n], s_label=batch.s_label[:, :n])


def trained(declared: config.Config, new: config.Config) -> step.Trainer:
    trainer = step.Trainer(declared)
    for seed in range(3):
        trainer.step(of(declared, minibatches.minibatch(new, seed)), 1_000)
    return trainer


def extended(trainer: step.Trainer, new: config.Config) -> step.Trainer:
    out = step.Trainer(new)
    out.load(extension.extend(trainer.settings, trainer.arrays(), new, out.arrays()))
    return out


@pytest.mark.parametrize("more", [(MORE,), (CLASSES, MORE)], ids=["one", "classes"])
@pytest.mark.parametrize("name", registry.MODELS)
def test_old_objectives_are_predicted_as_before_whatever_the_model(name: str, more: tuple[config.Objective, ...]) -> None:
    old = settings(name, meta={"mode": "off"}, **({"model": {"embedding_width": 6}} if name == "lr" else {}))
    new = grown(old, *more)
    before = trained(old, new)
    after = extended(before, new)
    batch = minibatches.minibatch(new, 9)
    said, was = after.score(batch).unadapted, before.score(of(old, batch)).unadapted
    assert said[:, :2] == pytest.approx(was, abs=1e-6)
    assert np.ptp(was) > 0.001
    done = after.step(batch, 2_000)
    assert not done.skipped
    assert np.abs(after.score(batch).unadapted - said)[:, 2:].max() > 0


@pytest.mark.parametrize("algorithm", ["fomaml", "meta_sgd", "cavia", "paml", "ridge"])
def test_they_are_adapted_as_before_where_support_says_nothing_of_the_new_one(algorithm: str) -> None:
    old = settings("pepnet", meta={"algorithm": algorithm, "inner_rate": 0.5}, scenarios={"known": ("a",)})
    new = grown(old, msgspec.structs.replace(MORE, scenarios=("a",)))
    before = trained(old, new)
    after = extended(before, new)
    batch = minibatches.minibatch(new, 9, support=6)
    batch.s_label[:, 2] = np.nan
    said, was = after.score(batch), before.score(of(old, batch))
    assert np.abs(was.adapted - was.unadapted).max() > 0.001
    if algorithm in {"fomaml", "meta_sgd", "ridge"}:
        assert said.adapted[:, :2] == pytest.approx(was.adapted, abs=1e-5)
    assert said.unadapted[:, :2] == pytest.approx(was.unadapted, abs=1e-6)


def test_what_the_optimiser_knows_of_old_parameters_and_the_whole_table_are_taken_over() -> None:
    old = settings("mmoe")
    before = trained(old, grown(old, MORE))
    arrays = extension.extend(old, before.arrays(), grown(old, MORE), step.Trainer(grown(old, MORE)).arrays())
    for name in ("table", "accumulator", "map.keys", "moments", "adam.step", "slots.rows"):
        assert np.array_equal(arrays[name], before.arrays()[name])
    network = registry.build(grown(old, MORE))
    square = base.views(torch.from_numpy(arrays["adam.square"]), network.shapes)
    known = base.views(torch.from_numpy(before.adam.square), registry.build(old).shapes)
    assert torch.equal(square["gate.weight"][:, :6], known["gate.weight"])
    assert torch.equal(square["tower.weight"], known["tower.weight"])


def test_a_generator_of_new_items_is_taken_over_and_rows_that_wait_with_old_labels_are_not() -> None:
    old = settings("shared_bottom", embedding={"cold": "meta"})
    before = trained(old, grown(old, MORE))
    after = extended(before, grown(old, MORE))
    one, other = before.arrays(), after.arrays()
    assert np.array_equal(one[cold.WEIGHT], other[cold.WEIGHT])
    assert one["cold.count"].any()
    assert not other["cold.count"].any()
    assert not after.step(minibatches.minibatch(grown(old, MORE), 9), 2_000).skipped


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"name": "mixing"}, "cannot be extended: with one more objective the others are predicted otherwise"),
        (
            {"name": "ple", "levels": 2},
            r"what the new objective has of objective0.0.weight \[3, 18, 12\] takes part in the others",
        ),
    ],
    ids=["mixing", "ple"],
)
def test_a_model_that_mixes_its_objectives_is_refused(own: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.MODELS, "mixing", Mixing)
    old = minibatches.settings(2, model=own, meta={"mode": "off"})
    before = trained(old, grown(old, MORE))
    with pytest.raises(config.ConfigError, match=message):
        extended(before, grown(old, MORE))


@pytest.mark.parametrize(
    ("new", "message"),
    [
        (settings("mmoe"), r"objectives: o0, o1; must be the old ones \(o0, o1\), unchanged"),
        (msgspec.structs.replace(settings("mmoe"), objectives=(MORE, *settings("mmoe").objectives)), "objectives: more, o0"),
        (grown(settings("pepnet"), MORE), "model: must be as it was without the new objective"),
        (grown(settings("mmoe", meta={"algorithm": "ridge"}), MORE), "meta.algorithm: must be as it was"),
        (grown(settings("mmoe", scenarios={"slots": 5}), MORE), "scenarios.slots: must be as it was"),
    ],
    ids=["none", "first", "model", "algorithm", "slots"],
)  # fmt: skip
def test_other_differences_than_objectives_at_the_end_are_refused(new: config.Config, message: str) -> None:
    old = settings("mmoe")
    with pytest.raises(config.ConfigError, match=message):
        extension.refuse(old, new)
