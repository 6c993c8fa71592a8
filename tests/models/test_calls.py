"""A pass makes as many calls however many scenarios and objectives there are: experts and towers are one product per layer."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from models import base, registry
from tests import minibatches, networks

FEW, MANY = 3, 11


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what reaches torch's kernels, views and all."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


def calls(name: str, slots: int, objectives: int) -> int:
    """Of a pass forward and back over the same rows, in the first slots."""
    settings = minibatches.settings(objectives, model={"name": name, "embedding_width": 24}, scenarios={"slots": slots})
    network: Any = registry.build(settings)
    parameters = {n: view.requires_grad_() for n, view in base.views(network.initial(0), network.shapes).items()}
    rows, generator = networks.ROWS, torch.Generator().manual_seed(0)
    x, slot = torch.randn(rows, network.geometry.row, generator=generator), torch.arange(rows) % FEW
    counter = Counter()
    with counter:
        loss = networks.logits(network, parameters, base.Inputs(x, slot, torch.full((rows,), 0.5))).square().sum()
        torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return counter.calls


@pytest.mark.parametrize("name", sorted(registry.MODELS))
def test_scenarios_and_objectives_add_no_call(name: str) -> None:
    assert calls(name, MANY, 2) == calls(name, FEW, 2)
    # Of few objectives torch copies less before a product, according to which of its axes is the shortest.
    assert calls(name, FEW, 20) == calls(name, FEW, 16)
