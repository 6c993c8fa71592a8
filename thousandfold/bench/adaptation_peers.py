"""Meta-gradients of one small network by several ways: this library's second order, `torch.func.vmap`, and a loop over clones.

The network is 64-64-32-1. Its first layer is the trunk, which support rows do not change (they are constants there) and which
learns from the loss of the query rows; the other two are the tower, which is adapted to each task. The loss is the library's own:
that of all query rows under the plain tower, and that of the same rows under their task's tower, each a mean.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from models import base, losses
from models.meta import adapters, maml
from state import config

INPUTS, ENTRY, WIDTH = 64, 64, 32
SUPPORT, QUERY, RATE = 16, 4, 0.1
Parameters = dict[str, torch.Tensor]
Gradients = Callable[[], list[torch.Tensor]]
"""Returns gradients in the order of `SHAPES`."""
SHAPES: base.Shapes = {
    "trunk.weight": (INPUTS, ENTRY), "trunk.bias": (ENTRY,), "tower.weight": (ENTRY, WIDTH), "tower.bias": (WIDTH,),
    "output.weight": (1, WIDTH), "output.bias": (1,),
}  # fmt: skip
TURNED = ("trunk.weight", "tower.weight")
"""What torch's own layers hold the other way round."""


class Tasks(NamedTuple):
    """T tasks: support rows (T, K, 64) with labels (T, K), query rows (T, Q, 64) with labels (T, Q)."""

    support: torch.Tensor
    known: torch.Tensor
    query: torch.Tensor
    asked: torch.Tensor


def tasks(count: int, seed: int = 0) -> Tasks:
    """Random rows, two of five labels positive."""
    random = torch.Generator().manual_seed(seed)

    def rows(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        return (
            torch.randn(count, n, INPUTS, generator=random),
            (torch.rand(count, n, generator=random) < 0.4).float(),
        )

    return Tasks(*rows(SUPPORT), *rows(QUERY))


def parameters(seed: int = 0) -> Parameters:
    """Weights of unit gain, biases of zero."""
    random = torch.Generator().manual_seed(seed)
    out = {}
    for name, shape in SHAPES.items():
        entry = shape[-1] if name == "output.weight" else shape[0]
        out[name] = torch.randn(shape, generator=random) / entry**0.5 if len(shape) > 1 else torch.zeros(shape)
    return out


def closed_form(given: Tasks, start: Parameters, steps: int) -> Gradients:
    """The library's second order: autograd through inner steps of low rank."""
    own = {name: p.clone().requires_grad_() for name, p in start.items()}
    settings = config.MetaLearning(algorithm="maml", inner_rate=RATE, inner_steps=steps, weight=1.0)
    adapter = maml.adapter(adapters.Given(settings, adapters.Tower(ENTRY, WIDTH, 1), losses.BINARY))
    share = torch.full(given.known.shape, 1 / SUPPORT)

    def run() -> list[torch.Tensor]:
        with torch.no_grad():
            support = _entered(own, given.support)
        query = _entered(own, given.query)
        change = adapter.adapt(own, adapters.Tasks(support, given.known.unsqueeze(-1), share))
        logit = torch.stack([base.tower(own, query), adapter.logits(own, change, query)])[..., 0]
        loss = 2 * functional.binary_cross_entropy_with_logits(logit, given.asked.expand_as(logit))
        return list(torch.autograd.grad(loss, list(own.values())))

    return run


def _entered(own: Parameters, rows: torch.Tensor) -> base.MetaInput:
    hidden = torch.relu(rows @ own["trunk.weight"] + own["trunk.bias"]).unsqueeze(-2)
    nothing, shape = hidden.new_zeros(()), hidden.shape[:-1]
    return base.MetaInput(hidden, hidden.new_ones(*shape, 1), nothing.expand(shape), nothing.expand(*shape, 1))


class _Network(torch.nn.Module):
    def __init__(self, start: Parameters) -> None:
        super().__init__()
        self.trunk, self.hidden, self.output = (torch.nn.Linear(a, b) for a, b in ((INPUTS, ENTRY), (ENTRY, WIDTH), (WIDTH, 1)))
        for p, (name, value) in zip(self.parameters(), start.items(), strict=True):
            p.data = (value.T if name in TURNED else value).clone().contiguous()

    def entered(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.trunk(x))

    def forward(self, entered: torch.Tensor) -> torch.Tensor:
        logit: torch.Tensor = self.output(torch.relu(self.hidden(entered)))[..., 0]
        return logit


def _as_here(gradients: Iterable[torch.Tensor | None]) -> list[torch.Tensor]:
    """Gradients of a `_Network` as they are laid out here."""
    found = zip(SHAPES, gradients, strict=True)
    return [g.T if name in TURNED else g for name, g in found if g is not None]


def by_vmap(given: Tasks, start: Parameters, steps: int, second: bool) -> Gradients:
    """`vmap(grad)` over tasks, as torch's documentation does it: weights are built for every task."""
    network, score = _Network(start), functional.binary_cross_entropy_with_logits
    own = {name: p.detach() for name, p in network.named_parameters()}
    fast = [name for name in own if not name.startswith("trunk")]

    def inner(weights: Parameters, entered: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return score(functional_call(network, weights, (entered,)), label)

    def task(weights: Parameters, known: torch.Tensor, y: torch.Tensor, query: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        for _ in range(steps):
            slope = grad(inner)(weights, known, y)
            weights = {name: p - RATE * (slope[name] if second else slope[name].detach()) for name, p in weights.items()}
        return inner(weights, query, z)

    def outer(weights: Parameters, d: Tasks) -> torch.Tensor:
        trunk = weights["trunk.weight"], weights["trunk.bias"]
        known, query = (torch.relu(functional.linear(x, *trunk)) for x in (d.support, d.query))
        tower = {name: weights[name] for name in fast}
        meta = vmap(task, (None, 0, 0, 0, 0))(tower, known.detach(), d.known, query, d.asked).mean()
        return inner(tower, query, d.asked) + meta

    whole = grad(outer)
    return lambda: _as_here(whole(own, given).values())


def by_loop(given: Tasks, start: Parameters, steps: int) -> Gradients:
    """A Python loop over tasks, each with its own clone of the tower that autograd adapts, as learn2learn's MAML does."""
    network, score = _Network(start), functional.binary_cross_entropy_with_logits
    shared = {name: p for name, p in network.named_parameters() if not name.startswith("trunk")}

    def run() -> list[torch.Tensor]:
        network.zero_grad()
        for t in range(len(given.support)):
            known, query = network.entered(given.support[t]).detach(), network.entered(given.query[t])
            own = {name: p.clone() for name, p in shared.items()}
            for _ in range(steps):
                loss = score(functional_call(network, own, (known,)), given.known[t])
                slopes = torch.autograd.grad(loss, list(own.values()))
                own = {name: p - RATE * s for (name, p), s in zip(own.items(), slopes, strict=True)}
            both = score(functional_call(network, own, (query,)), given.asked[t]) + score(network(query), given.asked[t])
            torch.autograd.backward(both / len(given.support))
        return _as_here(p.grad for p in network.parameters())

    return run
