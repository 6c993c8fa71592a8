import torch

from tests import networks


def test_it_equals_a_plain_loop_over_rows_with_each_weight_times_the_scenarios_own() -> None:
    network, p, inputs = networks.drawn("star", hidden=(12, 10, 8), wide="off")
    found, dense = networks.logits(network, p, inputs), network.geometry.dense
    for i in range(networks.ROWS):
        slot, earned = int(inputs.slot[i]), inputs.earned[i]
        x = inputs.x[i, :dense] * p["norm.scale"] * (1 + earned * p["own.norm.scale"][slot])
        x += p["norm.shift"] + earned * p["own.norm.shift"][slot]
        for k in range(2):
            weight = p[f"star{k}.weight"] * (1 + earned * p[f"own.star{k}.weight"][slot])
            x = torch.relu(x @ weight + p[f"star{k}.bias"] + earned * p[f"own.star{k}.bias"].view(4, -1)[slot])
        seen = torch.relu(inputs.x[i, network.scenario] @ p["auxiliary.in.weight"] + p["auxiliary.in.bias"])
        auxiliary = seen @ p["auxiliary.out.weight"] + p["auxiliary.out.bias"]
        for o in range(2):
            weight = p["tower.weight"] * (1 + earned * p["own.tower.weight"][slot * 2 + o])
            top = torch.relu(x @ weight + p["tower.bias"] + earned * p["own.tower.bias"][slot, o])
            out = p["output.weight"][o] * (1 + earned * p["own.output.weight"][slot, o])
            logit = top @ out + p["output.bias"][o] + earned * p["own.output.bias"][slot, o] + auxiliary[o]
            assert torch.allclose(found[i, o], logit, rtol=1e-4, atol=1e-3)


def test_a_scenarios_own_weights_start_at_one() -> None:
    network, _, inputs = networks.drawn("star")
    parameters = networks.initial(network)
    nobody = inputs._replace(slot=torch.zeros_like(inputs.slot), earned=torch.zeros_like(inputs.earned))
    assert torch.equal(networks.logits(network, parameters, inputs), networks.logits(network, parameters, nobody))


def test_the_auxiliary_network_reads_the_scenario_alone() -> None:
    network, p, inputs = networks.drawn("star", wide="off", scenario_features=("scenario",))
    silent = {name: torch.zeros_like(view) if name.startswith(("output", "own.output")) else view for name, view in p.items()}
    x = inputs.x.clone()
    x[:, : network.geometry.dense] = 0
    x[:, network.geometry.span("scenario")] = inputs.x[:, network.geometry.span("scenario")]
    found = networks.logits(network, silent, inputs)
    assert torch.allclose(networks.logits(network, silent, inputs._replace(x=x)), found, atol=1e-5)
    assert len(torch.unique(found[:, 0])) > 3


def test_the_share_that_is_a_scenarios_own_is_nothing_until_it_is_earned() -> None:
    network, parameters, inputs = networks.drawn("star")
    share = network.inspect(parameters, inputs)["own0"]
    assert (share[inputs.earned == 0] == 0).all()
    assert ((share[inputs.earned > 0] > 0) & (share[inputs.earned > 0] < 1)).all()
