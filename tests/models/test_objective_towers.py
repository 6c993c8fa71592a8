"""What holds for every model whose objectives have towers of their own."""

import numpy as np
import pytest
import torch

from learner import step
from models import base, registry
from state import config
from tests import minibatches, networks

NAMES = [name for name in sorted(registry.MODELS) if name not in {"fm", "lr", "two_tower"}]


def settings(name: str, objective_towers: bool = True) -> config.Config:
    return minibatches.settings(2, model={"name": name, "objective_towers": objective_towers})


@pytest.mark.parametrize("name", NAMES)
def test_they_start_as_the_shared_one(name: str) -> None:
    shared, apart = (registry.build(settings(name, on)) for on in (False, True))
    one, both = (base.views(model.initial(0), model.shapes) for model in (shared, apart))
    added = set(both) - set(one)
    assert added
    assert all(not both[parameter].any() for parameter in added)
    inputs = networks.drawn(name)[2]
    both |= one
    torch.testing.assert_close(networks.logits(apart, both, inputs), networks.logits(shared, one, inputs))


@pytest.mark.parametrize("name", NAMES)
def test_what_one_objective_learns_there_the_other_does_not_see(name: str) -> None:
    network, parameters, inputs = networks.drawn(name, objective_towers=True)
    own = {parameter: view for parameter, view in parameters.items() if parameter.startswith("objective.")}
    slopes = torch.autograd.grad(networks.logits(network, parameters, inputs)[:, 0].square().sum(), list(own.values()))
    for slope in slopes:
        assert slope[0].any()
        assert not slope[1].any()


@pytest.mark.parametrize("name", NAMES)
def test_opposed_objectives_are_learned_the_same_by_autograd_and_by_compiled_towers(name: str) -> None:
    trainers = [step.Trainer(settings(name), compiled=compiled) for compiled in (False, True)]
    for i in range(4):
        batch = minibatches.minibatch(trainers[0].settings, i, support=4)
        batch = batch._replace(label=np.stack([batch.label[:, 0], 1 - batch.label[:, 0]], 1))
        said = [trainer.step(batch, 1000 * i) for trainer in trainers]
        # Optimisers that divide by the gradient's size enlarge what rounding leaves of a gradient near zero.
        np.testing.assert_allclose(said[0].adapted, said[1].adapted, atol=2e-4)


def test_one_objective_has_no_more_parameters() -> None:
    for on in (False, True):
        one = registry.build(minibatches.settings(1, model={"objective_towers": on}))
        assert not any(name.startswith("objective.") for name in one.shapes)
