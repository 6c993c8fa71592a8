import itertools

import pytest
import torch

from models import base, pepnet
from tests import minibatches, networks


def parts(**model: object) -> tuple[pepnet.PEPNet, dict[str, torch.Tensor], torch.Tensor]:
    network = pepnet.PEPNet(minibatches.settings(model=dict(model)))
    parameters = base.views(network.initial(0), network.shapes)
    for view in parameters.values():
        view.requires_grad_()
    return network, parameters, torch.randn(7, network.geometry.row, generator=torch.Generator().manual_seed(1)).requires_grad_()


def read(x: torch.Tensor) -> base.Inputs:
    return base.Inputs(x, torch.zeros(len(x), dtype=torch.long), torch.zeros(len(x)))


def embedding_gradient(output: torch.Tensor, x: torch.Tensor, network: pepnet.PEPNet) -> dict[str, bool]:
    slope = torch.autograd.grad(output.sum(), x, retain_graph=True)[0]
    return {name: bool(slope[:, network.geometry.span(name)].any()) for name in network.geometry.categories}


def test_the_embedding_gate_teaches_only_the_scenario_embedding() -> None:
    network, parameters, x = parts()
    entry = network._epnet(parameters, x[:, :16], x[:, 16:18])
    gated_user = entry[:, network.geometry.span("user")]
    assert embedding_gradient(gated_user, x, network) == {"user": True, "item": False, "scenario": True, "genres": False}


def test_the_hidden_gates_teach_only_the_personal_embeddings() -> None:
    network, parameters, x = parts()
    embedded = x[:, : network.geometry.embedded]
    gates = network._ppnet(parameters, embedded, torch.cat([embedded, x[:, 16:18]], 1))
    assert embedding_gradient(torch.cat([g.flatten(1) for g in gates], 1), x, network) == {
        "user": True, "item": True, "scenario": False, "genres": False,
    }  # fmt: skip


def test_without_stopped_gradients_everything_is_taught() -> None:
    network, parameters, x = parts(stop_gradient=False)
    embedded = x[:, : network.geometry.embedded]
    gates = network._ppnet(parameters, embedded, torch.cat([embedded, x[:, 16:18]], 1))
    assert all(embedding_gradient(torch.cat([g.flatten(1) for g in gates], 1), x, network).values())


def test_gates_lie_between_zero_and_gamma_and_centre_on_one() -> None:
    network, parameters, x = parts()
    gates = network._ppnet(parameters, x[:, :16], torch.cat([x[:, :16], x[:, 16:18]], 1))
    values = torch.cat([g.detach().flatten() for g in gates])
    assert 0 < values.min() < values.max() < 2
    assert float(values.mean()) == pytest.approx(1, abs=0.15)


def test_each_objective_has_gates_and_an_output_of_its_own_and_shares_the_hidden_weights() -> None:
    network = pepnet.PEPNet(minibatches.settings(3))
    assert network.shapes["tower.weight"] == (12, 8)
    assert network.shapes["output.weight"] == (3, 8)
    meta = network.trunk(base.views(network.initial(0), network.shapes), read(torch.randn(5, network.geometry.row)))
    assert meta.hidden.shape == (5, 3, 12)
    assert not torch.equal(meta.gate[:, 0], meta.gate[:, 1])


def test_the_wide_part_is_the_first_order_weights_and_the_user_item_product() -> None:
    network, parameters, x = parts()
    offset = network.trunk(parameters, read(x)).offset[:, 0]
    assert torch.allclose(offset, x[:, 18:].sum(1) + (x[:, :4] * x[:, 4:8]).sum(1), atol=1e-6)


def test_the_wide_part_can_be_a_whole_factorisation_machine() -> None:
    settings = minibatches.settings(1, model={"wide": "fm"})
    network = pepnet.PEPNet(settings)
    parameters = base.views(network.initial(0), network.shapes)
    parameters["wide.first"].copy_(torch.randn(network.wide.numbers))
    x, g = torch.randn(5, network.geometry.row), network.geometry
    numbers = x[:, g.embedded : g.dense]
    vectors = [x[:, g.span(name)] for name in g.categories]
    vectors += [numbers[:, [j]] * parameters["wide.numbers"][j] for j in range(len(g.numbers))]
    expected = x[:, g.dense :].sum(1) + numbers @ parameters["wide.first"]
    expected += sum(((a * b).sum(1) for a, b in itertools.combinations(vectors, 2)), torch.zeros(5))
    assert torch.allclose(network.trunk(parameters, read(x)).offset[:, 0], expected, atol=1e-4)


@pytest.mark.parametrize(("epnet", "ppnet"), [(True, True), (True, False), (False, True), (False, False)])
def test_it_equals_a_plain_loop_over_rows_and_objectives_with_and_without_either_gate(epnet: bool, ppnet: bool) -> None:
    network, p, inputs = networks.drawn("pepnet", hidden=(12, 10, 8), wide="off", use_epnet=epnet, use_ppnet=ppnet)
    found, g = networks.logits(network, p, inputs), network.geometry
    for i in range(networks.ROWS):
        embedded, numbers = inputs.x[i, : g.embedded], inputs.x[i, g.embedded : g.dense]
        x = torch.cat([embedded, numbers])
        if epnet:
            hidden = torch.relu(x @ p["epnet.in.weight"] + p["epnet.in.bias"])
            x = torch.cat([embedded * 2 * torch.sigmoid(hidden @ p["epnet.out.weight"] + p["epnet.out.bias"]), numbers])
        for o in range(2):
            h = x
            for k, name in enumerate(("hidden0", "hidden1", "tower")):
                h = torch.relu(h @ p[f"{name}.weight"] + p[f"{name}.bias"])
                if ppnet:
                    seen = torch.cat([x, embedded[g.span("user")], embedded[g.span("item")]])
                    every = torch.relu(seen @ p["ppnet.in.weight"] + p["ppnet.in.bias"]).view(3, 2, -1)
                    logit = every[k, o] @ p[f"ppnet.out{k}.weight"][o] + p[f"ppnet.out{k}.bias"].view(2, -1)[o]
                    h = h * 2 * torch.sigmoid(logit)
            assert torch.allclose(found[i, o], h @ p["output.weight"][o] + p["output.bias"][o], rtol=1e-3, atol=1e-2)
