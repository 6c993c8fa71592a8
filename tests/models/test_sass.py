import torch

from models import base
from tests import networks


def test_it_equals_a_plain_loop_over_rows_and_layers() -> None:
    network, p, inputs = networks.drawn("sass", hidden=(12, 10, 9, 8), own_towers=False, wide="off")
    found, dense = networks.logits(network, p, inputs), network.geometry.dense
    for i in range(networks.ROWS):
        slot, earned = int(inputs.slot[i]), inputs.earned[i]
        bias = torch.relu(inputs.x[i, network.scenario] @ p["bias.in.weight"] + p["bias.in.bias"])
        common = own = inputs.x[i, :dense]
        for k in range(3):
            weight, shift = p[f"global{k}.weight"], p[f"global{k}.bias"]
            change = own @ p[f"own.layer{k}.weight"][slot] + p[f"own.layer{k}.bias"].view(4, -1)[slot]
            common, own = torch.relu(common @ weight + shift), torch.relu(own @ weight + shift + earned * change)
            gates = torch.sigmoid(torch.cat([common, own, bias]) @ p[f"gates{k}.weight"] + p[f"gates{k}.bias"])
            adaptive, update = gates.chunk(2)
            own = update * (adaptive * common) + (1 - update) * own
        for o in range(2):
            top = torch.relu(own @ p["tower.weight"] + p["tower.bias"]) @ p["output.weight"][o] + p["output.bias"][o]
            logit = top + (bias @ p["bias.out.weight"] + p["bias.out.bias"])[o]
            assert torch.allclose(found[i, o], logit, rtol=1e-3, atol=1e-2)


def forced(parameters: dict[str, torch.Tensor], adaptive: float, update: float) -> dict[str, torch.Tensor]:
    """The parameters with gates that say the same whatever they see."""
    out = dict(parameters)
    for name, view in parameters.items():
        if name.startswith("gates"):
            half = len(view) // 2
            silent = torch.zeros_like(view)
            out[name] = silent if view.dim() > 1 else torch.cat([silent[:half] + adaptive, silent[half:] + update])
    return out


def test_closed_gates_leave_the_scenario_to_itself_and_open_ones_hand_it_the_global_layer() -> None:
    network, p, inputs = networks.drawn("sass", hidden=(12, 10, 8), own_towers=False)
    far = 60.0
    as_nobody = inputs._replace(slot=torch.zeros_like(inputs.slot), earned=torch.zeros_like(inputs.earned))
    opened = forced(p, far, far)
    assert torch.allclose(network.trunk(opened, inputs).hidden, network.trunk(opened, as_nobody).hidden, atol=1e-5)
    closed = forced(p, far, -far)
    mine = inputs.earned > 0
    apart = (network.trunk(closed, inputs).hidden - network.trunk(closed, as_nobody).hidden).abs().amax((1, 2))
    assert (apart[mine] > 1e-3).all()
    assert (apart[~mine] == 0).all()
    assert float(network.trunk(forced(p, -far, far), inputs).hidden.detach().abs().max()) < 1e-5


def test_what_is_transferred_is_what_both_gates_let_through() -> None:
    network, parameters, inputs = networks.drawn("sass", hidden=(12, 10, 9, 8))
    found = network.inspect(parameters, inputs)
    assert set(found) == {f"{name}{i}" for name in ("adaptive", "update", "transferred") for i in range(3)}
    for i in range(3):
        assert torch.equal(found[f"transferred{i}"], found[f"adaptive{i}"] * found[f"update{i}"])
        assert ((found[f"transferred{i}"] >= 0) & (found[f"transferred{i}"] <= 1)).all()


def test_the_bias_network_adds_at_the_output_what_the_scenario_says() -> None:
    network, p, inputs = networks.drawn("sass", wide="off", scenario_features=("scenario", "price"))
    silent = p | {n: torch.zeros_like(v) for n, v in p.items() if n.startswith("bias.out")}
    difference = networks.logits(network, p, inputs) - networks.logits(network, silent, inputs)
    read = base.Inputs(inputs.x[:, network.scenario], inputs.slot, inputs.earned)
    bias = torch.relu(read.x @ p["bias.in.weight"] + p["bias.in.bias"])
    assert torch.allclose(difference, bias @ p["bias.out.weight"] + p["bias.out.bias"], atol=1e-4)
    assert network.geometry.embedded in network.scenario.tolist()
