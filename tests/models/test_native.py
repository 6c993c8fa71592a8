from typing import Any

import msgspec
import pytest

from learner import passes, step
from models import scorer
from state import config
from tests import minibatches


def settings(native: Any, **sections: Any) -> config.Config:
    model = {"native": native, **sections.pop("model", {})}
    return minibatches.settings(model=model, **sections)


def test_by_default_and_when_demanded_a_step_is_native_where_the_model_has_it() -> None:
    for native in ("auto", True):
        assert isinstance(step.Trainer(settings(native)).engine, passes.Native)


def test_without_it_torch_trains_and_scores_the_same() -> None:
    found = []
    for native in (True, False):
        wanted, batch = settings(native), minibatches.minibatch(settings(native), 3)
        trainer = step.Trainer(wanted)
        assert isinstance(trainer.engine, passes.Native) == native
        said = trainer.step(batch, 0)
        arrays = {name: array.copy() for name, array in trainer.arrays().items()}
        served = scorer.Scorer(wanted, arrays).score(batch.ids, batch.x, int(batch.scenario[0]), None)
        found.append((said.loss, said.adapted.ravel(), trainer.gradient.flat.numpy(), served.plain.ravel()))
    for one, other in zip(*found, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"model": {"name": "mmoe"}}, r'model\.name = "mmoe"'),
        ({"model": {"use_ppnet": False}}, r'model\.name = "pepnet", which has no native network as it is configured'),
        ({"meta": {"algorithm": "anil"}}, r"meta\.algorithm"),
        ({"objectives": (config.Objective(name="o", action="a", kind="regression"),)}, r'objectives\[0\]\.kind = "regression"'),
    ],
)
def test_demanding_it_where_there_is_none_is_refused_with_the_reason(sections: dict[str, Any], reason: str) -> None:
    objectives = sections.pop("objectives", ())
    wanted = settings(True, **sections)
    if objectives:
        wanted = msgspec.structs.replace(wanted, objectives=objectives)
    with pytest.raises(config.ConfigError, match=rf'^model\.native: true, but .*{reason}.*set it to "auto" or false$'):
        step.Trainer(wanted)


@pytest.mark.parametrize("text", ['"yes"', "1"])
def test_other_values_are_refused(text: str) -> None:
    with pytest.raises(config.ConfigError, match=r"model\.native"):
        config.parse(f"[model]\nnative = {text}\n")
