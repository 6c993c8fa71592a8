from collections.abc import Iterator

import pytest
import torch

from learner import step
from models import registry
from tests import minibatches

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
