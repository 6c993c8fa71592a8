import torch

from tests import networks


def test_it_equals_a_plain_loop_that_builds_every_rows_weights() -> None:
    network, p, inputs = networks.drawn("m2m", hidden=(12, 10, 8), experts=3, wide="off")
    found, dense, width = networks.logits(network, p, inputs), network.geometry.dense, network.width

    def meta(name: str, knowledge: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        weight = (knowledge @ p[f"{name}.weight.weight"] + p[f"{name}.weight.bias"]).view(len(x), -1)
        return x @ weight + knowledge @ p[f"{name}.bias.weight"] + p[f"{name}.bias.bias"]

    for i in range(networks.ROWS):
        row = inputs.x[i]
        knowledge = torch.relu(row[network.scenario] @ p["knowledge.weight"] + p["knowledge.bias"])
        hidden = []
        for e in range(3):
            h = row[:dense]
            for k in range(2):
                h = torch.relu(h @ p[f"expert{k}.weight"][e] + p[f"expert{k}.bias"].view(3, -1)[e])
            hidden.append(h)
        for o in range(2):
            pairs = [torch.cat([h, p["view"][o]]) for h in hidden]
            scores = [torch.relu(meta("attention", knowledge, pair)) @ p["attention.out"][o] for pair in pairs]
            share = torch.softmax(torch.stack(scores), 0)
            taken = sum((share[e] * hidden[e] for e in range(3)), torch.zeros(width))
            top = torch.relu(meta("residual", knowledge, taken) + taken)
            logit = torch.relu(top @ p["tower.weight"] + p["tower.bias"]) @ p["output.weight"][o] + p["output.bias"][o]
            assert torch.allclose(found[i, o], logit, rtol=1e-3, atol=1e-3)


def test_scenarios_generate_weights_of_their_own() -> None:
    network, p, inputs = networks.drawn("m2m", wide="off", scenario_features=("scenario",))
    x = inputs.x[:1].repeat(2, 1)
    before = network.trunk(p, inputs._replace(x=x, slot=inputs.slot[:2], earned=inputs.earned[:2]))
    same = {n: torch.zeros_like(v) if n.endswith(("weight.weight", "bias.weight")) else v for n, v in p.items()}
    x = x.clone()
    x[1, network.geometry.span("scenario")] += 1
    pair = inputs._replace(x=x, slot=inputs.slot[:2], earned=inputs.earned[:2])
    assert torch.allclose(before.hidden[0], before.hidden[1])
    one, other = network.trunk(p, pair).hidden
    assert not torch.allclose(one, other, atol=1e-3)
    # Without what the knowledge generates, scenarios differ by the experts' inputs alone.
    zeroed = same | {"knowledge.weight": torch.zeros_like(p["knowledge.weight"])}
    assert torch.equal(network.trunk(same, pair).hidden, network.trunk(zeroed, pair).hidden)


def test_the_attention_is_a_share_of_a_rows_own_experts() -> None:
    network, parameters, inputs = networks.drawn("m2m", experts=5)
    share = network.inspect(parameters, inputs)["experts"]
    assert share.shape == (networks.ROWS, 2, 5)
    assert torch.allclose(share.sum(2), torch.ones(networks.ROWS, 2), atol=1e-6)
    assert not torch.allclose(share[:, 0], share[:, 1], atol=1e-3)
