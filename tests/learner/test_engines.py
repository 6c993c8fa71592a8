"""Which engine runs the steps, and the setting that it names for it."""

from typing import Any

import msgspec
import pytest

from learner import passes, step
from models import engines, scorer
from state import config
from tests import minibatches


def declared(objective: dict[str, Any] | None = None, **sections: dict[str, Any]) -> config.Config:
    found = minibatches.settings(1, **sections)
    if objective is None:
        return found
    return msgspec.structs.replace(
        found, objectives=(*found.objectives, config.Objective(**{"name": "o", "action": "a"} | objective))
    )


MADE = {"native": passes.Native, "written": passes.Written, "compiled": passes.Compiled, "autograd": passes.Autograd}


@pytest.mark.parametrize(
    ("settings", "engine", "reason"),
    [
        (declared(), "native", ""),
        (declared(model={"name": "mmoe"}), "written", 'model.name = "mmoe", which has no native network as it is configured'),
        (declared(model={"native": False}), "written", "model.native = false"),
        (declared(model={"name": "star"}), "compiled", 'model.name = "star", which has no native network as it is configured'),
        (declared(model={"name": "lr"}), "autograd", 'model.name = "lr", which has no tower'),
        (declared({"scenarios": ("home",)}), "autograd", "objectives[1].scenarios"),
        (declared({"kind": "regression"}), "autograd", 'objectives[1].kind = "regression"'),
        (declared(meta={"algorithm": "anil"}), "autograd", 'meta.algorithm = "anil"'),
        (declared(meta={"half_life_s": 60.0}), "autograd", "meta.half_life_s"),
        (declared(meta={"inner_decay": 0.5}), "autograd", "meta.inner_decay"),
    ],
)
def test_the_fastest_that_knows_the_configuration_is_taken_and_says_what_rules_out_a_faster(
    settings: config.Config, engine: str, reason: str
) -> None:
    trainer = step.Trainer(settings)
    assert trainer.choice == (engine, reason)
    assert type(trainer.engine) is MADE[engine]


@pytest.mark.parametrize(
    ("sections", "engine", "reason"),
    [
        ({}, "native", ""),
        ({"meta": {"inner_decay": 0.5}}, "torch", "meta.inner_decay"),
        ({"meta": {"algorithm": "anil"}}, "torch", 'meta.algorithm = "anil"'),
        ({"support": {"mode": "meta_inputs"}}, "native", ""),
        ({"model": {"name": "mmoe"}}, "compiled", 'model.name = "mmoe", which has no native network as it is configured'),
        ({"model": {"native": False}}, "compiled", "model.native = false"),
        ({"model": {"name": "lr"}}, "torch", 'model.name = "lr", which has no tower'),
    ],
)
def test_serving_says_the_same_of_its_scorer(sections: dict[str, Any], engine: str, reason: str) -> None:
    settings = minibatches.settings(**sections)
    assert scorer.Scorer(settings, step.Trainer(settings).arrays()).choice == (engine, reason)


def test_a_log_names_the_engine_and_its_reason() -> None:
    assert str(engines.Choice("native", "")) == "native"
    assert str(engines.Choice("autograd", "meta.inner_decay")) == "autograd, because of meta.inner_decay"
