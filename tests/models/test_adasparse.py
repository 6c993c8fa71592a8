import pytest
import torch

from tests import networks


def test_it_equals_a_plain_loop_over_rows_and_neurons() -> None:
    network, p, inputs = networks.drawn("adasparse", hidden=(12, 10, 8), wide="off", prune_least=0.2, prune_most=0.5)
    found = networks.logits(network, p, inputs)
    for i in range(networks.ROWS):
        x, seen = inputs.x[i, : network.geometry.dense], inputs.x[i, network.scenario]
        for k, name in enumerate(("hidden0", "hidden1", "tower")):
            z = torch.relu(x @ p[f"{name}.weight"] + p[f"{name}.bias"])
            factor = 2 * torch.sigmoid(torch.cat([seen, z]) @ p[f"pruner{k}.weight"] + p[f"pruner{k}.bias"])
            order = factor.detach().argsort().tolist()
            for rank, j in enumerate(order):
                least, most = int(0.2 * len(z)), int(0.5 * len(z))
                if rank < least or (rank < most and float(factor[j].detach()) < 0.25):
                    factor = factor.index_fill(0, torch.tensor([j]), 0.0)
            x = z * factor
        for o in range(2):
            assert torch.allclose(found[i, o], x @ p["output.weight"][o] + p["output.bias"][o], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("least", "most"), [(0.0, 0.0), (0.15, 0.25), (0.5, 0.5), (0.2, 0.9)])
def test_the_share_that_is_left_out_of_every_rows_layer_keeps_its_bounds(least: float, most: float) -> None:
    network, parameters, inputs = networks.drawn("adasparse", hidden=(20, 10), prune_least=least, prune_most=most)
    for gate in network.inspect(parameters, inputs).values():
        zeros, width = (gate == 0).sum(1), gate.shape[1]
        assert ((zeros >= int(least * width)) & (zeros <= int(most * width))).all()


def test_a_neuron_with_a_large_factor_is_left_out_only_to_meet_the_least_share() -> None:
    network, parameters, inputs = networks.drawn("adasparse", hidden=(20, 10), prune_least=0.0, prune_most=0.99)
    gate = network.inspect(parameters, inputs)["pruner0"]
    assert (gate[gate != 0] >= network.model.prune_below).all()
    assert (gate == 0).any()
    assert (gate > 1).any()


def test_different_scenarios_leave_out_different_neurons() -> None:
    network, parameters, inputs = networks.drawn("adasparse", hidden=(20, 10), scenario_features=("scenario",))
    x = inputs.x[:1].repeat(6, 1)
    x[:, network.geometry.span("scenario")] = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)) * 3
    left_out = network.inspect(parameters, inputs._replace(x=x, slot=inputs.slot[:6], earned=inputs.earned[:6]))["pruner0"] == 0
    assert len(torch.unique(left_out, dim=0)) > 1
