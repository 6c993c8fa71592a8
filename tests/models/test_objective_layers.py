"""What holds for every model whose objectives have further layers of their own (`objectives.layers`)."""

import msgspec
import numpy as np
import pytest
import torch

from learner import step
from models import base, donors, extension, registry
from state import config
from tests import minibatches, networks

NAMES = [name for name in sorted(registry.MODELS) if name not in {"fm", "lr", "two_tower"}]


def settings(name: str, *layers: int) -> config.Config:
    declared = minibatches.settings(len(layers), model={"name": name})
    deep = tuple(msgspec.structs.replace(o, layers=n) for o, n in zip(declared.objectives, layers, strict=True))
    return msgspec.structs.replace(declared, objectives=deep)


@pytest.mark.parametrize("name", NAMES)
def test_an_objective_passes_its_own_layers_and_one_without_none(name: str) -> None:
    deep, flat = (registry.build(settings(name, *layers)) for layers in ((0, 2), (0, 0)))
    own = networks.initial(deep)
    inputs = networks.drawn(name)[2]
    for view in own.values():
        view.add_(0.1 * torch.linspace(-1, 1, view.numel()).view_as(view))
    plain = {parameter: own[parameter] for parameter in flat.shapes}
    found, expected = deep.trunk(own, inputs), flat.trunk(plain, inputs)
    hidden = expected.hidden[:, 1]
    for i in range(2):
        bias = own[f"objective.deeper{i}.bias"].view(2, -1)[1]
        hidden = torch.relu(hidden @ own[f"objective.deeper{i}.weight"][1] + bias)
    torch.testing.assert_close(found.hidden[:, 0], expected.hidden[:, 0])
    torch.testing.assert_close(found.hidden[:, 1], hidden)
    torch.testing.assert_close(networks.logits(deep, own, inputs)[:, 0], networks.logits(flat, plain, inputs)[:, 0])


@pytest.mark.parametrize("name", ["pepnet", "mmoe", "shared_bottom"])
def test_they_are_learned_the_same_by_autograd_and_by_compiled_towers(name: str) -> None:
    trainers = [step.Trainer(settings(name, 1, 2), compiled=compiled) for compiled in (False, True)]
    start = trainers[0].dense.copy()
    for i in range(4):
        batch = minibatches.minibatch(trainers[0].settings, i, support=4)
        said = [trainer.step(batch, 1000 * i) for trainer in trainers]
        # Optimisers that divide by the gradient's size enlarge what rounding leaves of a gradient near zero.
        np.testing.assert_allclose(said[0].adapted, said[1].adapted, atol=2e-4)
    moved = base.views(torch.from_numpy(trainers[0].dense != start), trainers[0].shapes)
    assert [moved[f"objective.deeper{i}.weight"].flatten(1).any(1).tolist() for i in range(2)] == [[True, True], [False, True]]


@pytest.mark.parametrize("name", ["pepnet", "mmoe"])
def test_a_new_objective_brings_its_own_depth_and_changes_no_other(name: str) -> None:
    new = settings(name, 1, 2)
    old = msgspec.structs.replace(new, objectives=new.objectives[:1])
    before, fresh = step.Trainer(old), step.Trainer(new)
    for i in range(3):
        before.step(minibatches.minibatch(old, i), i)
    fresh.load(extension.extend(old, before.arrays(), new, fresh.arrays()))
    assert set(fresh.shapes) - set(before.shapes) == {"objective.deeper1.weight", "objective.deeper1.bias"}
    batch = minibatches.minibatch(new, 9)
    was = before.score(batch._replace(label=batch.label[:, :1], weight=batch.weight[:, :1], s_label=batch.s_label[:, :1]))
    assert fresh.score(batch).unadapted[:, :1] == pytest.approx(was.unadapted, abs=1e-6)


@pytest.mark.parametrize("name", ["fm", "lr"])
def test_models_without_layers_of_an_objective_refuse_them(name: str) -> None:
    with pytest.raises(config.ConfigError, match=rf'objectives\[0\]\.layers: must be 0: model\.name = "{name}"'):
        config.parse(f'[[objectives]]\nname = "click"\naction = "click"\nlayers = 1\n[model]\nname = "{name}"')


def test_a_model_with_them_cannot_become_an_expert() -> None:
    assert "further layers" in donors.problem(settings("shared_bottom", 0, 1))
