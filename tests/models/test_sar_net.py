import pytest
import torch

from tests import networks


def test_it_equals_a_plain_loop_over_rows_and_experts() -> None:
    network, p, inputs = networks.drawn(
        "sar_net", hidden=(12, 10, 8), experts=3, own_experts=2, own_towers=False, wide="off"
    )  # fmt: skip
    found, g = networks.logits(network, p, inputs), network.geometry
    for i in range(networks.ROWS):
        slot, earned, row = int(inputs.slot[i]), inputs.earned[i], inputs.x[i]
        seen = row[network.scenario] @ p["attention.weight"] + p["attention.bias"]
        share = torch.softmax(torch.stack([row[g.span(c)] @ seen[: g.width] for c in g.categories]) + seen[g.width :], 0)
        fields = [len(g.categories) * share[k] * row[g.span(c)] for k, c in enumerate(g.categories)]
        x = torch.cat([*fields, row[g.embedded : g.dense]])
        x = x * (1 + earned * p["own.transform.scale"][slot]) + earned * p["own.transform.shift"][slot]
        hidden = []
        for e in range(5):
            h = x
            for k in range(2):
                weight, bias = p[f"expert{k}.weight"][e], p[f"expert{k}.bias"].view(5, -1)[e]
                if e >= 3:
                    weight = weight + earned * p[f"own.expert{k}.weight"][slot * 2 + e - 3]
                    bias = bias + earned * p[f"own.expert{k}.bias"].view(8, -1)[slot * 2 + e - 3]
                h = torch.relu(h @ weight + bias)
            hidden.append(h)
        gates = (torch.cat([row[network.scenario], row[: g.dense]]) @ p["gate.weight"] + p["gate.bias"]).view(2, 5)
        for o in range(2):
            gate = torch.softmax(gates[o], 0)
            top = torch.relu(sum((gate[e] * hidden[e] for e in range(5)), torch.zeros(10)) @ p["tower.weight"] + p["tower.bias"])
            assert torch.allclose(found[i, o], top @ p["output.weight"][o] + p["output.bias"][o], rtol=1e-4, atol=1e-3)


def test_equal_attention_leaves_the_fields_as_they_are() -> None:
    network, parameters, inputs = networks.drawn("sar_net")
    silent = parameters | {n: torch.zeros_like(parameters[n]) for n in ("attention.weight", "attention.bias")}
    assert torch.allclose(network.inspect(silent, inputs)["attention"], torch.ones(networks.ROWS, 4))
    attention = network.inspect(parameters, inputs)["attention"]
    assert attention.std() > 0.1
    assert torch.allclose(attention.sum(1), torch.full((networks.ROWS,), 4.0), atol=1e-5)


def test_shares_of_shared_and_own_experts_sum_to_one() -> None:
    network, parameters, inputs = networks.drawn("sar_net", experts=3, own_experts=2)
    share = network.inspect(parameters, inputs)["experts"]
    assert share.shape == (networks.ROWS, 2, 5)
    assert torch.allclose(share.sum(2), torch.ones(networks.ROWS, 2), atol=1e-6)


@pytest.mark.parametrize("hidden", [(8,), (12, 8), (12, 10, 8)])
def test_with_any_depth_it_has_experts(hidden: tuple[int, ...]) -> None:
    network, _, _ = networks.drawn("sar_net", hidden=hidden)
    assert network.shapes["expert0.weight"] == (5, network.geometry.dense, hidden[0])
