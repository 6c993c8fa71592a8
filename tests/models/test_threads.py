from collections.abc import Iterator
from typing import Any

import pytest
import torch

from learner import step
from models import base, registry
from tests import minibatches, networks

LISTS = 240
"""Lists of a minibatch in which torch shares the work of one operation among its threads."""


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def gradient(name: str) -> bytes:
    settings = minibatches.settings(2, model={"name": name, "hidden": (64, 64, 32)}, learner={"threads": 2})
    trainer = step.Trainer(settings)
    for i in range(2):  # what scenarios own moves from the second on
        trainer.step(minibatches.minibatch(settings, i, lists=LISTS, support=2), i)
    return trainer.gradient.flat.numpy().tobytes()


@pytest.mark.parametrize("name", sorted(registry.MODELS))
def test_the_same_input_gives_the_same_bytes_with_two_threads_as_well(name: str) -> None:
    assert gradient(name) == gradient(name)


def test_candidates_of_one_user_give_the_same_bytes_with_two_threads_as_well() -> None:
    torch.set_num_threads(2)
    network: Any = registry.build(minibatches.settings(2, model={"name": "dupn"}, embedding={"init_scale": 0.5}))
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, network.geometry.row, generator=generator).repeat(2_000, 1)
    x[:, network.of_item] = torch.rand(len(x), len(network.of_item), generator=generator)
    inputs = base.Inputs(x, torch.zeros(len(x), dtype=torch.int64), torch.zeros(len(x)))
    found = set()
    for _ in range(5):
        parameters = {n: view.requires_grad_() for n, view in base.views(network.initial(0), network.shapes).items()}
        loss = networks.logits(network, parameters, inputs).square().sum()
        (slope,) = torch.autograd.grad(loss, [parameters["lstm.gates.weight"]])
        found.add(slope.numpy().tobytes())
    assert len(found) == 1
