import torch

from models import base
from tests import networks


def test_a_scenario_with_many_rows_is_served_by_its_own_network_alone() -> None:
    network, parameters, inputs = networks.drawn("single", wide="off")
    whole = inputs._replace(slot=torch.full_like(inputs.slot, 2), earned=torch.ones_like(inputs.earned))
    found = networks.logits(network, parameters, whole)
    x = inputs.x[:, : network.geometry.dense]
    hidden = torch.relu(x @ parameters["bottom.own.0.weight"][2] + parameters["bottom.own.0.bias"].view(4, -1)[2])
    for o in range(2):
        top = torch.relu(hidden @ parameters["own.tower.weight"][2 * 2 + o] + parameters["own.tower.bias"][2, o])
        weight = parameters["output.weight"][o] * (1 + parameters["own.output.weight"][2, o])
        bias = parameters["output.bias"][o] + parameters["own.output.bias"][2, o]
        assert torch.allclose(found[:, o], top @ weight + bias, atol=1e-4)
    slopes = torch.autograd.grad(
        found.sum(), [parameters["bottom0.weight"], parameters["tower.weight"], parameters["tower.bias"]]
    )
    assert all(slope.abs().max() < 1e-4 for slope in slopes)


def test_a_scenario_without_rows_is_served_by_the_common_network() -> None:
    network, parameters, inputs = networks.drawn("single", wide="off")
    unseen = inputs._replace(slot=torch.zeros_like(inputs.slot), earned=torch.zeros_like(inputs.earned))
    hidden = torch.relu(inputs.x[:, : network.geometry.dense] @ parameters["bottom0.weight"] + parameters["bottom0.bias"])
    top = torch.relu(hidden @ parameters["tower.weight"] + parameters["tower.bias"])
    expected = top @ parameters["output.weight"].T + parameters["output.bias"]
    assert torch.allclose(networks.logits(network, parameters, unseen), expected, atol=1e-5)


def test_every_network_starts_as_the_common_one_so_that_the_hand_over_is_smooth() -> None:
    network, _, inputs = networks.drawn("single", hidden=(12, 10, 8))
    parameters = networks.initial(network)
    unseen = inputs._replace(slot=torch.zeros_like(inputs.slot), earned=torch.zeros_like(inputs.earned))
    found = networks.logits(network, parameters, inputs)
    assert torch.allclose(found, networks.logits(network, parameters, unseen), atol=1e-6)
    assert all(not view[: len(view) // 4].any() for name, view in parameters.items() if "own." in name)


def test_rows_of_one_scenario_teach_no_other_scenarios_network() -> None:
    network, parameters, inputs = networks.drawn("single")
    assert set(map(tuple, networks.touched(network, parameters, inputs, 3).values())) == {(3,)}


def test_the_common_network_learns_from_every_scenario_that_has_not_earned_all_of_its_own() -> None:
    network, parameters, inputs = networks.drawn("single")
    for slot in (0, 1, 2):
        mine = base.Inputs(*(part[inputs.slot == slot] for part in inputs))
        [slope] = torch.autograd.grad(networks.logits(network, parameters, mine).sum(), [parameters["bottom0.weight"]])
        assert slope.any()
