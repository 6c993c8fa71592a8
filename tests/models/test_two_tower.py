"""Two towers: neither looks at the other's columns, and a logit is an inner product, adapted or not."""

import pytest
import torch

from models import adaptation, base, registry, two_tower
from state import config
from tests import minibatches, networks


def settings() -> config.Config:
    text = (
        minibatches.TEXT
        + """
statistics = [
  { name = "seen", key = ["item"], kind = "count" },
  { name = "both", key = ["item", "user"], kind = "count" },
  { name = "active", key = ["user"], kind = "count" },
  { name = "genre_seen", key = ["genres"], kind = "count" },
]
places = [{ name = "rank", of = "price" }]
recent = [{ name = "since", match = "any", value = "age" }]
"""
    )
    return config.parse(text.replace("[model]", '[model]\nname = "two_tower"'))


def test_columns_belong_to_the_side_that_their_source_or_key_says() -> None:
    told = two_tower.sides(settings())
    item = {name for name, side in told.items() if side == two_tower.ITEM}
    assert item == {"item", "genres", "price", "year", "seen", "genre_seen"}
    assert set(told) - item == {"user", "scenario", "active", "since"}


def test_a_logit_is_the_inner_product_of_a_user_and_an_item_that_do_not_see_each_other() -> None:
    network, parameters, inputs = networks.drawn("two_tower")
    x = inputs.x
    swapped = x.roll(1, 0)
    mixed = x.clone()
    mixed[:, network.columns[two_tower.ITEM]] = swapped[:, network.columns[two_tower.ITEM]]
    hidden = network.user(parameters, x)
    vector, bias = network.item(parameters, swapped)
    assert torch.equal(network.user(parameters, mixed), hidden)
    logit = networks.logits(network, parameters, inputs._replace(x=mixed))
    for o in range(2):
        product = (two_tower.vectors(parameters, hidden, o) * vector).sum(1) + bias[:, o] + parameters["output.bias"][o]
        assert logit[:, o].detach().numpy() == pytest.approx(product.detach().numpy(), abs=1e-4)


def test_adapted_vectors_give_the_logits_of_the_adapted_tower() -> None:
    network, parameters, inputs = networks.drawn("two_tower", objectives=1)
    with torch.no_grad():
        meta = network.trunk(parameters, inputs)
        tasks = base.MetaInput(*(part.view(4, 6, *part.shape[1:]) for part in meta))
        label, weight = (torch.arange(24).view(4, 6, 1) % 2).float(), torch.full((4, 6), 1 / 6)
        change = adaptation.adapt(parameters, tasks, label, weight, 0.3, 2)
        wanted = adaptation.logits(parameters, change, tasks)[..., 0]
        hidden = network.user(parameters, inputs.x).view(4, 6, -1)
        for k in range(6):
            user = two_tower.adapted_vectors(parameters, change, hidden[:, k])
            said = (user * tasks.gate[:, k, 0]).sum(1) + tasks.offset[:, k, 0] + parameters["output.bias"] + change.bias[:, 0]
            assert said.numpy() == pytest.approx(wanted[:, k].numpy(), abs=1e-4)


def test_a_side_without_columns_is_refused() -> None:
    model = '[model]\nname = "two_tower"\nscenario_features = []\npersonal_features = []\n'
    lacking = config.parse(model + '[features]\ncategories = [{ name = "user", source = "user_id" }]')
    with pytest.raises(config.ConfigError, match="two_tower needs a column of the item's side"):
        registry.build(lacking)
