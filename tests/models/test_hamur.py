import torch
from torch.nn import functional

from tests import networks


def test_it_equals_a_plain_loop_that_builds_every_adapters_weights() -> None:
    network, p, inputs = networks.drawn("hamur", hidden=(12, 10, 8), adapter_rank=3, adapter_width=5, wide="off")
    found, dense = networks.logits(network, p, inputs), network.geometry.dense
    for i in range(networks.ROWS):
        slot, earned, x = int(inputs.slot[i]), inputs.earned[i], inputs.x[i, :dense]

        def mine(name: str, slot: int = slot, earned: torch.Tensor = earned) -> torch.Tensor:
            return p[name] + earned * p[f"own.{name}"][slot]

        hyper = torch.relu(x @ p["hyper.in.weight"] + p["hyper.in.bias"])
        instance = (hyper @ p["hyper.out.weight"] + p["hyper.out.bias"]).view(3, 3) / 3**0.5
        for k in range(2):
            x = torch.relu(x @ p[f"hidden{k}.weight"] + p[f"hidden{k}.bias"])
            name = f"adapter{k}"
            narrow = mine(f"{name}.narrow.left.weight") @ instance @ mine(f"{name}.narrow.right.weight")
            widen = mine(f"{name}.widen.left.weight") @ instance @ mine(f"{name}.widen.right.weight")
            middle = torch.sigmoid(x @ narrow + mine(f"{name}.narrow.right.bias"))
            added = functional.layer_norm(middle @ widen + mine(f"{name}.widen.right.bias"), x.shape)
            scale = p[f"{name}.scale"] * (1 + earned * p[f"own.{name}.scale"][slot])
            x = x + added * scale + mine(f"{name}.shift")
        for o in range(2):
            top = torch.relu(x @ p["tower.weight"] + p["tower.bias"])
            assert torch.allclose(found[i, o], top @ p["output.weight"][o] + p["output.bias"][o], rtol=1e-3, atol=1e-3)


def test_adapters_start_small() -> None:
    network, _, inputs = networks.drawn("hamur")
    share = network.inspect(networks.initial(network), inputs)["adapter0"]
    assert float(share.min()) > 0
    assert float(share.mean()) < 0.3


def test_instances_of_one_scenario_have_adapters_of_their_own() -> None:
    network, p, inputs = networks.drawn("hamur", hidden=(12, 8))
    same = {n: torch.zeros_like(v) if n == "hidden0.weight" else v for n, v in p.items()}
    rows = inputs.slot == 2
    alike = inputs._replace(x=inputs.x[rows], slot=inputs.slot[rows], earned=inputs.earned[rows])
    layers = network._layers(same, alike)
    assert torch.allclose(layers[0][0][0], layers[0][0][1])
    assert not torch.allclose(layers[0][1][0], layers[0][1][1], atol=1e-3)
