"""HAMUR (Li et al. 2023): adapters between layers whose narrow middle is generated for every instance.

The points are the parts of the paper, by name, each with its equation.

* Domain-specific adapter, the residual equation of the adapter cell: h + norm(up(act(down(h)))), narrow in the middle, beside a
  network that all share.
* Shared hyper-network, the low-rank equation of the generated weight: an instance generates a matrix I of rank x rank; the
  adapter's weights are U I V, down and up, with U and V the scenario's own. The products run through the low rank and no weight
  is ever built. U and V are the shared ones plus the scenario's change, as far as its rows have earned it.
* Domain norm: the paper normalises by the moments of a scenario's rows in the batch, and so a row's score depends on its
  company. A model that is a pure function of its parameters has no moments of hidden layers to keep running, so here a row is
  normalised by itself, over its layer (Ba et al. 2016), with a scale and shift of the scenario that start at the shared ones.
"""

import torch
from torch.nn import functional

from models import base, parts
from state import config

START = 0.1
"""The adapters' scale at first: small, so that the network starts nearly as one without."""


class Hamur(parts.Network):
    """The network as pure functions of its parameters. With a single hidden width a layer of the same stands before the tower."""

    def __init__(self, settings: config.Config) -> None:
        self.geometry = base.geometry(settings)
        self.objectives = self.geometry.objectives
        self.rank, self.narrow, self.hyper = settings.model.adapter_rank, settings.model.adapter_width, settings.model.gate_hidden
        self.widths = (self.geometry.dense, *(settings.model.hidden[:-1] or settings.model.hidden))
        self.head = parts.Head(settings, self.widths[-1], own=False)
        self.shapes = self._shapes()

    def _shapes(self) -> base.Shapes:
        slots, rank, narrow = self.head.slots, self.rank, self.narrow
        found = parts.layers("hidden", self.widths)
        found |= parts.layer("hyper.in", self.geometry.dense, self.hyper) | parts.layer("hyper.out", self.hyper, rank * rank)
        for i, width in enumerate(self.widths[1:]):
            for name, inputs, outputs in (("narrow", width, narrow), ("widen", narrow, width)):
                shared = {"left.weight": (inputs, rank), "right.weight": (rank, outputs), "right.bias": (outputs,)}
                found |= {f"adapter{i}.{name}.{part}": shape for part, shape in shared.items()}
                found |= {f"own.adapter{i}.{name}.{part}": (slots, *shape) for part, shape in shared.items()}
            found |= {f"adapter{i}.scale": (width,), f"adapter{i}.shift": (width,)}
            found |= {f"own.adapter{i}.scale": (slots, width), f"own.adapter{i}.shift": (slots, width)}
        return found | self.head.shapes()

    def initial(self, seed: int) -> torch.Tensor:
        """Fan-in normal weights, zero biases, own parameters that change nothing; small adapters."""
        flat = base.fan_in_normal(self.shapes, seed)
        views = base.views(flat, self.shapes)
        for i in range(len(self.widths) - 1):
            views[f"adapter{i}.scale"].fill_(START)
        self.head.start(views)
        return flat

    def inspect(self, parameters: base.Parameters, inputs: base.Inputs) -> dict[str, torch.Tensor]:
        """`adapter0`, ...: share of a layer's output that its adapter brings, |adapter| / (|layer| + |adapter|) (n,)."""
        found = {}
        for i, (layer, adapter) in enumerate(self._layers(parameters, inputs)):
            sizes = layer.abs().sum(1), adapter.abs().sum(1)
            found[f"adapter{i}"] = sizes[1] / (sizes[0] + sizes[1]).clamp(min=torch.finfo(torch.float32).tiny)
        return found

    def trunk(self, parameters: base.Parameters, inputs: base.Inputs) -> base.MetaInput:
        """Everything before the tower."""
        layer, adapter = self._layers(parameters, inputs)[-1]
        return self.head.meta(parameters, (layer + adapter).unsqueeze(1).expand(-1, self.objectives, -1), inputs)

    def _layers(self, parameters: base.Parameters, inputs: base.Inputs) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Of each hidden layer: its output and what its adapter adds (n, width)."""
        found, hidden = [], inputs.x[:, : self.geometry.dense]
        hyper = torch.relu(parts.linear(parameters, "hyper.in", hidden))
        instance = parts.linear(parameters, "hyper.out", hyper).view(-1, self.rank, self.rank)
        for i in range(len(self.widths) - 1):
            layer = torch.relu(parts.linear(parameters, f"hidden{i}", hidden))
            adapter = self._adapter(parameters, f"adapter{i}", layer, instance, inputs)
            hidden = layer + adapter
            found.append((layer, adapter))
        return found

    def _adapter(
        self, parameters: base.Parameters, name: str, x: torch.Tensor, instance: torch.Tensor, inputs: base.Inputs
    ) -> torch.Tensor:
        earned, slot = inputs.earned.unsqueeze(1), inputs.slot
        width = x.shape[1]
        for part in ("narrow", "widen"):
            x = torch.sigmoid(x) if part == "widen" else x
            x = _product(parameters, f"{name}.{part}.left", x, slot, earned)
            x = torch.bmm(x.unsqueeze(1), instance).squeeze(1) / self.rank**0.5
            own = parts.looked_up(parameters[f"own.{name}.{part}.right.bias"], slot)
            bias = parameters[f"{name}.{part}.right.bias"] + earned * own
            x = _product(parameters, f"{name}.{part}.right", x, slot, earned) + bias
        scale = parameters[f"{name}.scale"] * (1 + earned * parts.looked_up(parameters[f"own.{name}.scale"], slot))
        return (
            functional.layer_norm(x, (width,)) * scale
            + parameters[f"{name}.shift"]
            + earned * parts.looked_up(parameters[f"own.{name}.shift"], slot)
        )


def _product(parameters: base.Parameters, name: str, x: torch.Tensor, slot: torch.Tensor, earned: torch.Tensor) -> torch.Tensor:
    """Rows (n, inputs) times the shared weight and the change of each row's scenario."""
    return x @ parameters[f"{name}.weight"] + earned * parts.by_slot(x, parameters[f"own.{name}.weight"], slot)
