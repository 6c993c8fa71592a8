import itertools

import numpy as np
import pytest
import torch

from learner import step
from models import base
from state import config
from tests import minibatches, networks


def test_a_regression_is_the_sum_of_weights_of_ids_and_numbers() -> None:
    network, drawn, inputs = networks.drawn("lr")
    g, parameters = network.geometry, {name: view.detach() for name, view in drawn.items()}
    found = networks.logits(network, parameters, inputs)
    for i, row in enumerate(inputs.x):
        numbers = row[g.embedded : g.dense] @ parameters["numbers.weight"] + parameters["output.bias"]
        assert found[i, 0].item() == pytest.approx(float(row[g.dense :].sum() + numbers[0]), abs=1e-4)
        second = sum(float(row[g.span(name)][0]) for name in g.categories)
        assert found[i, 1].item() == pytest.approx(second + float(numbers[1]), abs=1e-4)


def test_a_regression_needs_a_weight_per_id_for_every_objective() -> None:
    with pytest.raises(config.ConfigError, match=r"model\.embedding_width: 1 is too few for 3 objectives of lr"):
        networks.drawn("lr", objectives=3, embedding_width=1)


def test_a_factorisation_machine_is_the_sum_over_pairs() -> None:
    network, parameters, inputs = networks.drawn("fm", objectives=1, wide="off")
    g = network.geometry
    numbers = inputs.x[:, g.embedded : g.dense]
    vectors = [inputs.x[:, g.span(name)] for name in g.categories]
    vectors += [numbers[:, [j]] * parameters["wide.numbers"][j] for j in range(len(g.numbers))]
    pairs = sum(((a * b).sum(1) for a, b in itertools.combinations(vectors, 2)), torch.zeros(networks.ROWS))
    first = inputs.x[:, g.dense :].sum(1) + numbers @ parameters["wide.first"]
    expected = first * parameters["wide.scale"][0] + pairs * parameters["wide.scale"][1] + parameters["output.bias"]
    assert torch.allclose(networks.logits(network, parameters, inputs)[:, 0], expected, atol=1e-3)


@pytest.mark.parametrize("name", ["fm", "lr"])
def test_adaptation_moves_the_bias_alone(name: str) -> None:
    settings = minibatches.settings(2, model={"name": name}, meta={"inner_rate": 0.5})
    trainer, batch = step.Trainer(settings), minibatches.minibatch(settings, support=5, lists=1)
    for i in range(3):
        trainer.step(minibatches.minibatch(settings, i), i)
    said, known = trainer.score(batch), trainer.score(batch._replace(
        ids=batch.s_ids, x=batch.s_x, label=batch.s_label, weight=np.ones_like(batch.s_label), n_items=np.array([5]),
    ))  # fmt: skip
    slope = (known.unadapted - batch.s_label).mean(0)
    moved = np.log(said.adapted / (1 - said.adapted)) - np.log(said.unadapted / (1 - said.unadapted))
    assert moved == pytest.approx(np.broadcast_to(-0.5 * slope, moved.shape), abs=1e-4)


def test_floors_have_no_parameters_for_scenarios() -> None:
    for name in ("fm", "lr"):
        network, parameters, inputs = networks.drawn(name)
        unseen = base.Inputs(inputs.x, torch.zeros_like(inputs.slot), torch.zeros_like(inputs.earned))
        assert torch.equal(networks.logits(network, parameters, inputs), networks.logits(network, parameters, unseen))
