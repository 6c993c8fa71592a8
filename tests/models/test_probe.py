"""A user's own model is trained, published and adapted like any other; one that breaks the contract is refused with the cause."""

import msgspec
import pytest
import torch

from learner import step
from models import base, parts, registry, scorer
from state import config
from tests import minibatches

HERE = "tests.models.test_probe"


class Good(parts.Network):
    """A layer into the usual head."""

    def __init__(self, settings: config.Config) -> None:
        self.geometry = base.geometry(settings)
        self.objectives = self.geometry.objectives
        self.head = parts.Head(settings, 6, own=False)
        self.shapes = parts.layer("enter", self.geometry.dense, 6) | self.head.shapes()

    def initial(self, seed: int) -> torch.Tensor:
        flat = base.fan_in_normal(self.shapes, seed)
        self.head.start(base.views(flat, self.shapes))
        return flat

    def trunk(self, parameters: base.Parameters, inputs: base.Inputs) -> base.MetaInput:
        hidden = torch.relu(parts.linear(parameters, "enter", inputs.x[:, : self.geometry.dense]))
        return self.head.meta(parameters, hidden.unsqueeze(1).expand(-1, self.objectives, -1), inputs)


class Sequential(Good):
    sequential = True


class NoTrunk:
    def __init__(self, settings: config.Config) -> None:
        self.shapes: base.Shapes = {}
        self.objectives = base.geometry(settings).objectives


class Narrow(Good):
    def initial(self, seed: int) -> torch.Tensor:
        return super().initial(seed)[1:]


class Normalised(Good):
    def trunk(self, parameters: base.Parameters, inputs: base.Inputs) -> base.MetaInput:
        return super().trunk(parameters, inputs._replace(x=inputs.x - inputs.x.mean(0)))


class OtherTower(Good):
    def tower(self, fast: base.Parameters, meta: base.MetaInput) -> torch.Tensor:
        return 2 * super().tower(fast, meta)


class Misread(Good):
    def trunk(self, parameters: base.Parameters, inputs: base.Inputs) -> base.MetaInput:
        return super().trunk(parameters, inputs._replace(x=inputs.x[:, :3]))


class Misplaced(Good):
    """Scenarios own weights that lie by input and not by slot."""

    def __init__(self, settings: config.Config) -> None:
        super().__init__(settings)
        self.shapes = self.shapes | {"own.enter.weight": (6, settings.scenarios.slots + 1)}


def settings(name: str) -> config.Config:
    return minibatches.settings(2, model={"name": f"{HERE}:{name}"})


def test_a_model_of_ones_own_trains_and_is_published_with_its_adaptation() -> None:
    declared = settings("Good")
    trainer = step.Trainer(declared)
    for i in range(3):
        assert not trainer.step(minibatches.minibatch(declared, i, support=4), i).skipped
    batch, arrays = minibatches.minibatch(declared, 7, lists=1, support=4), trainer.arrays()
    published = scorer.Scorer(declared, {name: arrays[name] for name in trainer.serving_names})
    said = published.score(batch.ids, batch.x, int(batch.scenario[0]), base.Support(batch.s_ids, batch.s_x, batch.s_label))
    wanted = trainer.score(batch)
    assert said.adapted == pytest.approx(wanted.adapted, abs=1e-6)
    assert said.adapted != pytest.approx(said.plain, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("NoTrunk", "lacks `initial`"),
        ("Narrow", r"initial\(\) gave a vector of"),
        ("Normalised", "must not look at a batch's statistics"),
        ("OtherTower", "end in models.base.tower"),
        ("Misread", "cannot score 3 rows"),
        ("HERE", "is not a class or function"),
        ("Misplaced", r"declares own\.enter\.weight of \(6, 4\); what scenarios own has 4 times"),
    ],
)
def test_a_model_that_breaks_the_contract_is_refused_with_the_cause(name: str, said: str) -> None:
    with pytest.raises(config.ConfigError, match=said):
        registry.build(settings(name))


def test_a_model_may_ask_for_the_last_actions_one_by_one() -> None:
    declared = config.parse(minibatches.TEXT.replace("]\nnumbers", minibatches.SEQUENCES))
    places = [base.geometry(_named(declared, name)).places for name in ("Good", "Sequential")]
    assert places == [0, 12]


def _named(declared: config.Config, name: str) -> config.Config:
    return msgspec.structs.replace(declared, model=msgspec.structs.replace(declared.model, name=f"{HERE}:{name}"))
