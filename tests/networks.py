"""A network with every parameter drawn, and rows of several scenarios for it, for the tests of models."""

from typing import Any

import torch

from models import base, registry
from tests import minibatches

ROWS = 24


def drawn(name: str, objectives: int = 2, seed: int = 0, **model: Any) -> tuple[Any, dict[str, torch.Tensor], base.Inputs]:
    """The model, its parameters (none of them zero, each recording its gradient) and `ROWS` rows in slots 0 to 3."""
    network: Any = registry.build(minibatches.settings(objectives, model=model | {"name": name}))
    generator = torch.Generator().manual_seed(seed)
    parameters = base.views(0.5 * torch.randn(base.size(network.shapes), generator=generator), network.shapes)
    for view in parameters.values():
        view.requires_grad_()
    slot = torch.arange(ROWS) % 4
    earned = torch.tensor([0.0, 0.3, 0.8, 1.0])[slot]
    width = network.geometry.row
    return network, parameters, base.Inputs(torch.randn(ROWS, width, generator=generator), slot, earned)


def logits(network: Any, parameters: base.Parameters, inputs: base.Inputs) -> torch.Tensor:
    """Logits (n, O) of the plain tower."""
    found: torch.Tensor = network.tower(parameters, network.trunk(parameters, inputs))
    return found


def touched(network: Any, parameters: dict[str, torch.Tensor], inputs: base.Inputs, slot: int) -> dict[str, list[int]]:
    """For each parameter that scenarios own: the slots whose share gets a gradient from the rows of one slot."""
    mine = base.Inputs(*(part[inputs.slot == slot] for part in inputs))
    loss = logits(network, parameters, mine).square().sum()
    owned = {name: p for name, p in parameters.items() if "own." in name}
    slopes = torch.autograd.grad(loss, list(owned.values()))
    return {
        name: torch.nonzero(slope.reshape(4, -1).abs().sum(1)).flatten().tolist()
        for name, slope in zip(owned, slopes, strict=True)
    }


def initial(network: Any) -> dict[str, torch.Tensor]:
    """The parameters that the network starts from."""
    return base.views(network.initial(0), network.shapes)
