"""Defects of public implementations of these models, each as a test that every entry of MODELS passes."""

import numpy as np
import pytest
import torch

from learner import step
from models import base, registry
from tests import minibatches, networks

every_model = pytest.mark.parametrize("name", sorted(registry.MODELS))


def company(inputs: base.Inputs, seed: int) -> base.Inputs:
    """The same first row among others, in other scenarios and a hundred times as large."""
    x = 100 * torch.randn(inputs.x.shape, generator=torch.Generator().manual_seed(seed))
    x[0] = inputs.x[0]
    slot = torch.cat([inputs.slot[:1], inputs.slot[1:].roll(seed)])
    return base.Inputs(x, slot, torch.cat([inputs.earned[:1], inputs.earned[1:].roll(seed)]))


def alone(inputs: base.Inputs) -> base.Inputs:
    return base.Inputs(*(part[:1] for part in inputs))


def assert_no_company_matters(name: str, objectives: int = 2) -> None:
    network, parameters, inputs = networks.drawn(name, objectives)
    inputs = base.Inputs(*(part.roll(-3, 0) for part in inputs))
    wanted = networks.logits(network, parameters, alone(inputs))
    for seed in range(3):
        found = networks.logits(network, parameters, company(inputs, seed))[:1]
        assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-4)


@every_model
def test_what_a_gate_says_reaches_the_logit(name: str) -> None:
    """A public PPNet computes its gates and multiplies nothing with them."""
    network, parameters, inputs = networks.drawn(name)
    before, gates = networks.logits(network, parameters, inputs), network.inspect(parameters, inputs)
    if not gates:
        pytest.skip("has no gates")
    for gate, value in gates.items():
        weight = torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
        slopes = torch.autograd.grad((value * weight).sum(), [*parameters.values()], materialize_grads=True, retain_graph=True)
        own = {n: s for n, s in zip(parameters, slopes, strict=True) if s.any()}
        assert own, gate
        for parameter, slope in own.items():
            moved = {**parameters, parameter: parameters[parameter] + slope / slope.norm()}
            assert not torch.allclose(network.inspect(moved, inputs)[gate], value, atol=1e-6), (gate, parameter)
            assert not torch.allclose(networks.logits(network, moved, inputs), before, atol=1e-5), (gate, parameter)


@every_model
def test_every_parameter_moves_a_logit(name: str) -> None:
    """A public AdaptDHM has biases that it never adds."""
    network, parameters, inputs = networks.drawn(name)
    before = networks.logits(network, parameters, inputs)
    for parameter, value in parameters.items():
        other = torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
        found = networks.logits(network, {**parameters, parameter: value + other}, inputs)
        assert not torch.allclose(found, before, atol=1e-5), parameter


@every_model
def test_every_number_of_an_embedding_that_a_score_depends_on_has_a_gradient(name: str) -> None:
    """A public PPNet leaves the embeddings of its context at the values that they were drawn with."""
    network, parameters, inputs = networks.drawn(name, wide="off")
    x = inputs.x.clone().requires_grad_()
    found = networks.logits(network, parameters, inputs._replace(x=x))
    slope = torch.autograd.grad(found.square().sum(), x)[0]
    geometry = network.geometry
    end = geometry.dense + geometry.places * geometry.width
    numbers = range(geometry.embedded, geometry.dense)
    for j in (column for column in range(end) if column not in numbers):
        moved = inputs.x.clone()
        moved[:, j] += 1
        depends = not torch.allclose(networks.logits(network, parameters, inputs._replace(x=moved)), found, atol=1e-6)
        assert bool(slope[:, j].any()) == depends, j


@every_model
def test_every_embedding_that_is_read_is_trained(name: str) -> None:
    settings = minibatches.settings(2, model={"name": name, "wide": "off"})
    trainer, batch = step.Trainer(settings), minibatches.minibatch(settings, lists=20)
    trainer.step(batch, 0)
    network, parameters, inputs = networks.drawn(name, wide="off")
    x = inputs.x.clone().requires_grad_()
    read = torch.autograd.grad(networks.logits(network, parameters, inputs._replace(x=x)).sum(), x)[0].any(0)
    geometry = base.geometry(settings)
    rows = np.unique(trainer.table.map.find(np.array(batch.ids[:, :4])))
    before = trainer.table.table.copy()
    for i in range(4):
        trainer.step(batch, 1 + i)
    changed = (trainer.table.table != before)[rows]
    assert read[: geometry.embedded].any() == changed[:, : geometry.width].any()
    if read[: geometry.embedded].all():
        assert changed[:, : geometry.width].all(1).mean() > 0.99
    else:
        assert changed.any(1).all()


@every_model
def test_no_score_depends_on_the_rest_of_the_batch(name: str) -> None:
    """A public STAR normalises by the current moments of a batch that mixes scenarios."""
    assert_no_company_matters(name)


@every_model
def test_a_rows_logit_has_no_gradient_to_other_rows(name: str) -> None:
    network, parameters, inputs = networks.drawn(name)
    x = inputs.x.clone().requires_grad_()
    slope = torch.autograd.grad(networks.logits(network, parameters, inputs._replace(x=x))[5].sum(), x)[0]
    assert torch.nonzero(slope.any(1)).flatten().tolist() == [5]


@every_model
def test_a_row_is_scored_in_training_as_it_is_alone(name: str) -> None:
    settings = minibatches.settings(2, model={"name": name})
    batch = minibatches.minibatch(settings, 3)
    whole, single = step.Trainer(settings), step.Trainer(settings)
    for trainer in (whole, single):
        for i in range(3):
            trainer.step(minibatches.minibatch(settings, 10 + i), i)
    first = int(batch.n_items[0])
    together, own = whole.step(batch, 9), single.step(minibatches.alone(batch, [0]), 9)
    assert own.unadapted == pytest.approx(together.unadapted[:first], abs=1e-5)
    assert own.adapted == pytest.approx(together.adapted[:first], abs=1e-5)


@every_model
def test_a_logit_has_either_sign(name: str) -> None:
    """A public STAR puts a rectifier on the logit."""
    network, parameters, inputs = networks.drawn(name, wide="off")
    found = networks.logits(network, parameters, inputs).detach()
    assert float(found.min()) < 0 < float(found.max())


def test_star_has_no_moments_of_the_current_batch() -> None:
    assert_no_company_matters("star")
    network, parameters, inputs = networks.drawn("star", wide="off")
    shifted = inputs._replace(x=inputs.x + 3)
    # Moments of the batch would take a shift of every row away again.
    assert not torch.allclose(
        networks.logits(network, parameters, inputs), networks.logits(network, parameters, shifted), atol=1e-2
    )


def test_m2m_does_not_attend_across_the_batch() -> None:
    assert_no_company_matters("m2m")
    network, parameters, inputs = networks.drawn("m2m")
    order = torch.randperm(networks.ROWS, generator=torch.Generator().manual_seed(0))
    found = networks.logits(network, parameters, base.Inputs(*(part[order] for part in inputs)))
    assert torch.allclose(found, networks.logits(network, parameters, inputs)[order], rtol=1e-4, atol=1e-4)


def test_hamur_normalises_a_row_by_nothing_but_itself() -> None:
    assert_no_company_matters("hamur")
    network, parameters, inputs = networks.drawn("hamur")
    # With moments of the batch a batch of equal rows has no variance, and all of it is normalised away.
    same = base.Inputs(*(part[[5, 5, 5]] for part in inputs))
    found = networks.logits(network, parameters, same)
    assert torch.allclose(found, networks.logits(network, parameters, inputs)[5], rtol=1e-4, atol=1e-4)


def test_epnets_gate_has_a_hidden_layer() -> None:
    """A public EPNet is one linear layer and a sigmoid, so that scenario and input never meet in it."""
    network, parameters, inputs = networks.drawn("pepnet")
    assert network.shapes["epnet.in.weight"][1] == network.model.gate_hidden
    embedded, numbers = inputs.x[:, : network.geometry.embedded], inputs.x[:, network.geometry.embedded : network.geometry.dense]

    def logit(embedding: torch.Tensor) -> torch.Tensor:
        gate = network._embedding_gate(parameters, embedding, numbers)
        return torch.logit(gate.double() / network.model.gamma, eps=1e-7)

    other = torch.zeros_like(embedded)
    other[:, network.geometry.span("scenario")] = 1
    bend = logit(embedded + other) - 2 * logit(embedded) + logit(embedded - other)
    assert float(bend.detach().abs().max()) > 1e-2
