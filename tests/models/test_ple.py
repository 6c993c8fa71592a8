import torch

from models import base
from tests import networks


def expert(p: dict[str, torch.Tensor], name: str, k: int, x: torch.Tensor) -> torch.Tensor:
    weight = p[f"{name}.weight"]
    return torch.relu(x @ weight[k] + p[f"{name}.bias"].view(len(weight), -1)[k])


def mixed(logits: torch.Tensor, own: int, earned: torch.Tensor, found: list[torch.Tensor]) -> torch.Tensor:
    odds = torch.ones(len(found))
    odds[-own:] = earned
    share = torch.exp(logits) * odds
    return (share / share.sum()) @ torch.stack(found)


def one_row(p: dict[str, torch.Tensor], x: torch.Tensor, slot: int, earned: torch.Tensor) -> list[torch.Tensor]:
    """Two levels with 3 shared experts and 2 of each objective and scenario; two objectives."""
    shared, scenario, objective = x, x, [x, x]
    for level in range(2):
        of_all = [expert(p, f"shared{level}.0", k, shared) for k in range(3)]
        weight, bias = p[f"scenario.own.{level}.0.weight"][slot], p[f"scenario.own.{level}.0.bias"].view(4, -1)[slot]
        of_scenario = list(torch.relu(scenario @ weight + bias).view(2, -1))
        of_each = [[expert(p, f"objective{level}.0", o * 2 + k, objective[o]) for k in range(2)] for o in range(2)]
        after = []
        for o in range(2):
            own = objective[o] @ p[f"own.gate{level}.weight"][slot * 2 + o] + p[f"own.gate{level}.bias"][slot, o]
            logits = objective[o] @ p[f"gate{level}.weight"][o] + p[f"gate{level}.bias"].view(2, -1)[o] + earned * own
            after.append(mixed(logits, 2, earned, of_all + of_each[o] + of_scenario))
        if level == 0:
            own = scenario @ p["own.gate0.scenario.weight"][slot] + p["own.gate0.scenario.bias"][slot]
            logits = scenario @ p["gate0.scenario.weight"] + p["gate0.scenario.bias"] + earned * own
            scenario = mixed(logits, 2, earned, of_all + of_scenario)
            logits = shared @ p["gate0.shared.weight"] + p["gate0.shared.bias"]
            shared = mixed(logits, 2, earned, of_all + of_each[0] + of_each[1] + of_scenario)
        objective = after
    return objective


def test_two_levels_equal_a_plain_loop_and_so_do_their_gradients() -> None:
    network, parameters, inputs = networks.drawn("ple", experts=3, own_experts=2, own_towers=False, wide="off")
    found = network.trunk(parameters, inputs).hidden
    dense = network.geometry.dense
    expected = torch.stack([
        torch.stack(one_row(parameters, inputs.x[i, :dense], int(inputs.slot[i]), inputs.earned[i]))
        for i in range(networks.ROWS)
    ])  # fmt: skip
    assert torch.allclose(found, expected, atol=1e-4)
    used = [p for name, p in parameters.items() if "gate" in name or "0." in name]
    ours = torch.autograd.grad(found.square().mean(), used)
    theirs = torch.autograd.grad(expected.square().mean(), used)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(ours, theirs, strict=True))


def test_shares_sum_to_one_at_every_level_and_nobody_has_own_experts() -> None:
    network, parameters, inputs = networks.drawn("ple", experts=3, own_experts=2, levels=3)
    shares = network.inspect(parameters, inputs)
    assert sorted(shares) == ["gate0", "gate1", "gate2"]
    for gate in shares.values():
        assert gate.shape == (networks.ROWS, 2, 3 + 2 + 2)
        assert torch.allclose(gate.sum(-1), torch.ones(networks.ROWS, 2), atol=1e-6)
        assert not gate[inputs.slot == 0][..., -2:].any()
        assert gate[inputs.slot == 3][..., -2:].all()


def test_rows_of_one_scenario_teach_no_other_scenarios_own_experts() -> None:
    network, parameters, inputs = networks.drawn("ple")
    reached = networks.touched(network, parameters, inputs, 2)
    assert set(map(tuple, reached.values())) == {(2,)}
    assert not any(networks.touched(network, parameters, inputs, 0).values())


def test_an_objectives_experts_are_taught_by_no_other_objective_on_one_level() -> None:
    network, parameters, inputs = networks.drawn("ple", levels=1, own_experts=2)
    [slope] = torch.autograd.grad(network.trunk(parameters, inputs).hidden[:, 0].sum(), [parameters["objective0.0.weight"]])
    assert slope[:2].any()
    assert not slope[2:].any()


def test_one_level_has_no_gates_that_nothing_reads() -> None:
    network, _, _ = networks.drawn("ple", levels=1)
    assert not [name for name in network.shapes if "shared" in name.split(".")[-2] and name.startswith("gate")]
    assert base.size(network.shapes) < base.size(networks.drawn("ple", levels=2)[0].shapes)
