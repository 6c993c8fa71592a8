"""What holds for every model in which scenarios own parameters."""

from typing import Any

import pytest
import torch

from models import base, registry
from tests import networks

pytestmark = pytest.mark.parametrize("name", sorted(registry.MODELS))


def drawn(name: str) -> tuple[Any, dict[str, torch.Tensor], base.Inputs]:
    found = networks.drawn(name)
    if not any("own." in parameter for parameter in found[0].shapes):
        pytest.skip("scenarios own nothing of it")
    return found


def test_rows_of_one_scenario_leave_the_own_parameters_of_others_alone(name: str) -> None:
    network, parameters, inputs = drawn(name)
    for slot in (1, 3):
        found = networks.touched(network, parameters, inputs, slot)
        assert all(slots == [slot] for slots in found.values()), found


def test_a_scenario_that_has_earned_nothing_is_served_what_is_shared(name: str) -> None:
    network, parameters, inputs = drawn(name)
    new = inputs._replace(earned=torch.zeros_like(inputs.earned))
    nobody = new._replace(slot=torch.zeros_like(inputs.slot))
    found = networks.logits(network, parameters, new)
    assert torch.allclose(found, networks.logits(network, parameters, nobody), atol=1e-6)
    assert not torch.allclose(found, networks.logits(network, parameters, inputs), atol=1e-3)
