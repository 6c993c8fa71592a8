import numpy as np
import pytest
import torch

from learner import step
from tests import minibatches, networks


def test_it_equals_a_plain_loop_over_rows_objectives_and_experts() -> None:
    network, parameters, inputs = networks.drawn("mmoe", experts=3, hidden=(12, 10, 8), own_towers=False, wide="off")
    found = networks.logits(network, parameters, inputs)
    p, dense = parameters, network.geometry.dense
    for i in range(networks.ROWS):
        x, slot, earned = inputs.x[i, :dense], int(inputs.slot[i]), inputs.earned[i]
        hidden = []
        for k in range(3):
            first = torch.relu(x @ p["expert0.weight"][k] + p["expert0.bias"].view(3, -1)[k])
            hidden.append(torch.relu(first @ p["expert1.weight"][k] + p["expert1.bias"].view(3, -1)[k]))
        for o in range(2):
            at = slice(o * 3, o * 3 + 3)
            own = x @ p["own.gate.weight"][slot][:, at] + p["own.gate.bias"][slot, at]
            share = torch.softmax(x @ p["gate.weight"][:, at] + p["gate.bias"][at] + earned * own, 0)
            mixed = sum((share[k] * hidden[k] for k in range(3)), torch.zeros(10))
            top = torch.relu(mixed @ p["tower.weight"] + p["tower.bias"])
            assert torch.allclose(found[i, o], top @ p["output.weight"][o] + p["output.bias"][o], atol=1e-4)


def test_shares_of_experts_sum_to_one_for_every_objective() -> None:
    network, parameters, inputs = networks.drawn("mmoe", experts=5)
    gate = network.inspect(parameters, inputs)["gate"]
    assert gate.shape == (networks.ROWS, 2, 5)
    assert torch.allclose(gate.sum(-1), torch.ones(networks.ROWS, 2), atol=1e-6)
    assert (gate > 0).all()


def test_rows_of_one_scenario_teach_no_other_scenarios_own_parameters() -> None:
    network, parameters, inputs = networks.drawn("mmoe")
    assert set(map(tuple, networks.touched(network, parameters, inputs, 2).values())) == {(2,)}
    assert not any(networks.touched(network, parameters, inputs, 0).values())


def test_a_scenarios_gate_starts_as_the_shared_one() -> None:
    network, _, inputs = networks.drawn("mmoe")
    parameters = networks.initial(network)
    as_nobody = inputs._replace(slot=torch.zeros_like(inputs.slot), earned=torch.zeros_like(inputs.earned))
    assert torch.equal(networks.logits(network, parameters, inputs), networks.logits(network, parameters, as_nobody))


def test_experts_may_have_widths_of_their_own() -> None:
    network, _, _ = networks.drawn("mmoe", expert_hidden=(9, 7, 5), experts=2)
    assert network.shapes["expert2.weight"] == (2, 7, 5)
    assert network.shapes["tower.weight"] == (5, 8)


@pytest.mark.parametrize("wide", ["off", "fm"])
@pytest.mark.parametrize("own_towers", [True, False])
def test_the_written_trunk_equals_autograd_with_another_wide_part_and_without_own_towers(wide: str, own_towers: bool) -> None:
    settings = minibatches.settings(2, model={"name": "mmoe", "wide": wide, "own_towers": own_towers})
    written, plain = (step.Trainer(settings, compiled=compiled) for compiled in (True, False))
    assert (written.choice.engine, plain.choice.engine) == ("written", "autograd")
    batch = minibatches.minibatch(settings, 3, support=4)
    said = [trainer.step(batch, 0) for trainer in (written, plain)]
    np.testing.assert_allclose(said[0].adapted, said[1].adapted, atol=1e-5)
    np.testing.assert_allclose(written.gradient.numbers, plain.gradient.numbers, atol=1e-5)
