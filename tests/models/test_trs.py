import numpy as np
import pytest
import torch

from learner import step
from models import base
from state import config, ids
from tests import minibatches, networks

OWN = """
[scenarios]
slots = 3
prior_rows = 20
[model]
name = "trs"
embedding_width = 4
hidden = [12, 8]
common_features = ["user", "item", "scenario"]
[embedding]
capacity = 4096
[features]
categories = [
  { name = "user", source = "user_id" },
  { name = "item", source = "item_id" },
  { name = "scenario", source = "scenario" },
  { name = "query", source = "context.query" },
  { name = "channel", source = "context.channel" },
]
numbers = [{ name = "rank", source = "item.rank" }]
"""
QUERY, CHANNEL = 3, 4


def unaligned(seed: int, scenario: int) -> base.Batch:
    """Rows of search (1), which alone has a query and a rank, or of browse (2), which alone has a channel."""
    settings = config.parse(OWN)
    batch = minibatches.minibatch(settings, seed, scenario=scenario)
    for found, numbers in ((batch.ids, batch.x), (batch.s_ids, batch.s_x)):
        found[:, CHANNEL if scenario == 1 else QUERY] = ids.PAD
        if scenario == 2:
            numbers[:] = np.nan
    return batch


@pytest.mark.parametrize("group", [1, 3])
def test_it_equals_a_plain_loop_over_rows(group: int) -> None:
    network, p, inputs = networks.drawn("trs", experts=2, own_experts=group, common_features=("user", "price"), wide="off")
    found = network.trunk(p, inputs).hidden
    g = network.geometry
    for i in range(networks.ROWS):
        x, slot, earned = inputs.x[i, : g.dense], int(inputs.slot[i]), inputs.earned[i]
        common = torch.cat([x[g.span("user")], x[[g.embedded + g.numbers.index("price")]]])
        shared = [torch.relu(common @ p["expert0.weight"][k] + p["expert0.bias"].view(2, -1)[k]) for k in range(2)]
        bias = p["expert.own.0.bias"].view(4, -1)[slot]
        own = torch.relu(x @ p["expert.own.0.weight"][slot] + bias).view(group, -1)
        for o in range(2):
            mine = own[0]
            if group > 1:
                inner = (x @ p["inner.own.0.weight"][slot] + p["inner.own.0.bias"].view(4, -1)[slot]).view(2, group)[o]
                mine = torch.softmax(inner, 0) @ own
            at = slice(o * 3, o * 3 + 3)
            change = x @ p["own.gate.weight"][slot][:, at] + p["own.gate.bias"][slot, at]
            odds = torch.exp(x @ p["gate.weight"][:, at] + p["gate.bias"][at] + earned * change)
            odds = odds * torch.stack([torch.tensor(1.0), torch.tensor(1.0), earned])
            share = odds / odds.sum() * (1 + earned * p["own.open"][slot, o])
            expected = share[0] * shared[0] + share[1] * shared[1] + (1 - share[0] - share[1]) * mine
            assert torch.allclose(found[i, o], expected, atol=1e-4)


def test_shares_sum_to_one_and_nobody_has_an_own_expert() -> None:
    network, parameters, inputs = networks.drawn("trs")
    gate = network.inspect(parameters, inputs)["gate"]
    assert gate.shape == (networks.ROWS, 2, 5)
    assert torch.allclose(gate.sum(-1), torch.ones(networks.ROWS, 2), atol=1e-5)
    assert not gate[inputs.slot == 0][..., -1].any()


def test_a_closed_scenario_is_its_own_expert_alone_and_can_open_itself() -> None:
    network, parameters, inputs = networks.drawn("trs")
    with torch.no_grad():
        parameters["own.open"][3] = -1
    mine = base.Inputs(*(part[inputs.slot == 3] for part in inputs))
    gate = network.inspect(parameters, mine)["gate"]
    assert gate[..., -1].tolist() == torch.ones(len(mine.x), 2).tolist()
    [slope] = torch.autograd.grad(networks.logits(network, parameters, mine).sum(), [parameters["own.open"]])
    assert slope[3].all()


def test_rows_of_one_scenario_teach_no_other_scenarios_expert() -> None:
    network, parameters, inputs = networks.drawn("trs", own_experts=2)
    assert set(map(tuple, networks.touched(network, parameters, inputs, 1).values())) == {(1,)}
    assert not any(networks.touched(network, parameters, inputs, 0).values())


def test_a_scenarios_own_features_change_nothing_for_other_scenarios() -> None:
    settings = config.parse(OWN)
    trainer = step.Trainer(settings)
    for i in range(6):
        trainer.step(unaligned(i, 1 + i % 2), i)
    browse = unaligned(50, 2)
    before = trainer.score(browse)
    search = unaligned(51, 1)
    known = trainer.table.map.find(search.ids)[:, QUERY]
    trainer.table.table[known] += 1000
    trainer.table.moments[1:] += 1000
    trainer.table.mean[:] = -1000
    own = base.views(torch.from_numpy(trainer.dense), trainer.model.shapes)
    own["expert.own.0.weight"][1] += 1
    after = trainer.score(browse)
    assert after.unadapted.tolist() == before.unadapted.tolist()
    assert after.adapted.tolist() == before.adapted.tolist()
    assert not np.allclose(trainer.score(search).unadapted, step.Trainer(settings).score(search).unadapted)


def test_absent_features_reach_the_network_as_zeros_and_their_weights_rest() -> None:
    settings = config.parse(OWN)
    trainer = step.Trainer(settings)
    for i in range(4):
        trainer.step(unaligned(i, 1 + i % 2), i)
    g = base.geometry(settings)
    own = trainer.gradient.views["expert.own.0.weight"][2]
    assert not own[g.span("query")].any()
    assert not own[g.embedded].any()
    assert own[g.span("channel")].any()


def test_shared_experts_read_only_the_common_features() -> None:
    network, parameters, inputs = networks.drawn("trs", common_features=("user", "item"))
    unseen = inputs._replace(slot=torch.zeros_like(inputs.slot), earned=torch.zeros_like(inputs.earned))
    assert network.shapes["expert0.weight"] == (4, 8, 12)
    x = unseen.x.clone().requires_grad_()
    shared = network.trunk(parameters, unseen._replace(x=x)).hidden
    with torch.no_grad():
        parameters["gate.weight"].zero_()
    [slope] = torch.autograd.grad(network.trunk(parameters, unseen._replace(x=x)).hidden.sum(), [x])
    assert shared.shape == (networks.ROWS, 2, 12)
    assert slope[:, :8].any()
    assert not slope[:, 8:].any()


def test_an_unknown_common_feature_is_named_with_what_is_allowed() -> None:
    with pytest.raises(config.ConfigError, match=r'model.common_features: "clor" is no feature; allowed: user, item'):
        networks.drawn("trs", common_features=("clor",))


def test_a_star_tower_multiplies_the_shared_one_and_starts_as_it() -> None:
    network, parameters, inputs = networks.drawn("trs", star_tower=True, own_towers=False, wide="off")
    meta = network.trunk(parameters, inputs)
    factor = 1 + inputs.earned.view(-1, 1, 1, 1) * parameters["own.tower.weight"].view(4, 2, 12, 8)[inputs.slot]
    expected = torch.einsum("noh,nohk->nok", meta.hidden, parameters["tower.weight"] * factor)
    own_bias = inputs.earned.view(-1, 1, 1) * parameters["own.tower.bias"][inputs.slot]
    assert torch.allclose(meta.hidden @ parameters["tower.weight"] + meta.shift, expected + own_bias, atol=1e-4)
    assert "own.tower.weight" not in networks.drawn("trs", own_towers=False)[0].shapes


def test_with_gates_the_own_expert_equals_the_pepnet_of_each_rows_slot() -> None:
    network, p, inputs = networks.drawn("trs", own_gates=True, own_towers=False, hidden=(12, 10, 8), wide="off")
    single, _, _ = networks.drawn("pepnet", hidden=(12, 10, 8), wide="off")
    found, shares = network.trunk(p, inputs), network.inspect(p, inputs)["gate"]
    hidden, gate = network.gated.forward(p, inputs)
    for slot in range(4):
        mine = base.Inputs(*(part[inputs.slot == slot] for part in inputs))
        taken = {name: view for name, view in p.items() if name in single.shapes}
        for name, shape in single.shapes.items():
            own = {"hidden0": "expert.own.0", "hidden1": "expert.own.1"}.get(name.split(".")[0], name.rpartition(".")[0] + ".own")
            if name not in taken:
                taken[name] = p[f"{own}.{name.rpartition('.')[2]}"].view(4, *shape)[slot]
        expected = single.trunk(taken, mine)
        assert torch.allclose(hidden[inputs.slot == slot], expected.hidden, atol=1e-4)
        assert torch.allclose(gate[inputs.slot == slot], expected.gate, atol=1e-5)
    assert torch.allclose(found.gate, 1 + shares[..., -1:] * (gate - 1))


def test_gates_are_learned_by_rows_of_their_own_scenario_only() -> None:
    network, parameters, inputs = networks.drawn("trs", own_gates=True)
    assert set(map(tuple, networks.touched(network, parameters, inputs, 1).values())) == {(1,)}
    assert not any(networks.touched(network, parameters, inputs, 0).values())


def test_a_group_of_own_experts_with_gates_is_refused() -> None:
    with pytest.raises(config.ConfigError, match=r"own_experts: is 2, must be 1 with model\.own_gates"):
        networks.drawn("trs", own_experts=2, own_gates=True)
