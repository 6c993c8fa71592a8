"""The closed form against the plain reading of the algorithm: copy the tower, take gradient steps on the support, score."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from models import adaptation, base

H1, H2, RATE = 5, 4, 0.3


def meta(generator: torch.Generator, *shape: int, objectives: int) -> base.MetaInput:
    return base.MetaInput(
        torch.randn(*shape, objectives, H1, generator=generator),
        torch.rand(*shape, objectives, H2, generator=generator) * 2,
        torch.randn(*shape, objectives, generator=generator),
        torch.randn(*shape, objectives, H2, generator=generator),
    )


def towers(generator: torch.Generator, objectives: int) -> dict[str, torch.Tensor]:
    shapes = {"tower.weight": (H1, H2), "tower.bias": (H2,), "output.weight": (objectives, H2), "output.bias": (objectives,)}
    return {name: torch.randn(shape, generator=generator).requires_grad_() for name, shape in shapes.items()}


def plainly(
    fast: dict[str, torch.Tensor], support: base.MetaInput, label: torch.Tensor, query: base.MetaInput, steps: int
) -> torch.Tensor:
    """One task, first order: weights copied and moved, gradients of the inner steps constant."""
    own = dict(fast)
    for _ in range(steps):
        logit = base.tower(own, support)
        loss = functional.binary_cross_entropy_with_logits(logit, label, reduction="sum") / len(label)
        slopes = torch.autograd.grad(loss, list(own.values()), retain_graph=True)
        own = {name: value - RATE * slope for (name, value), slope in zip(own.items(), slopes, strict=True)}
    return base.tower(own, query)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("objectives", [1, 3])
def test_scores_and_gradients_equal_a_loop_over_tasks_with_autograd(steps: int, objectives: int) -> None:
    generator = torch.Generator().manual_seed(steps)
    sizes, most = [1, 4, 7], 7
    fast = towers(generator, objectives)
    support, query = meta(generator, 3, most, objectives=objectives), meta(generator, 3, 6, objectives=objectives)
    leaves = [part.requires_grad_() for part in query]
    label = (torch.rand(3, most, objectives, generator=generator) < 0.5).float()
    weight = torch.tensor([[1 / n if k < n else 0 for k in range(most)] for n in sizes])
    one = adaptation.logits(fast, adaptation.adapt(fast, support, label, weight, RATE, steps), query)
    pieces = []
    for t, n in enumerate(sizes):
        own = base.MetaInput(*(part[t, :n] for part in support))
        pieces.append(plainly(fast, own, label[t, :n], base.MetaInput(*(part[t] for part in query)), steps))
    other = torch.stack(pieces)
    assert torch.allclose(one, other, atol=1e-5)
    target = torch.randn(other.shape, generator=generator)
    every = [*fast.values(), *leaves]
    for a, b in zip(
        torch.autograd.grad((one * target).sum(), every), torch.autograd.grad((other * target).sum(), every), strict=True
    ):
        assert torch.allclose(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("rate", "steps", "rows"), [(0.0, 1, 3), (0.3, 0, 3), (0.3, 2, 0)])
def test_zero_rate_zero_steps_or_no_support_change_nothing(rate: float, steps: int, rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    fast, query = towers(generator, 2), meta(generator, 1, 4, objectives=2)
    support, label = meta(generator, 1, 3, objectives=2), torch.ones(1, 3, 2)
    weight = torch.tensor([[1 / rows if k < rows else 0.0 for k in range(3)]])
    change = adaptation.adapt(fast, support, label, weight, rate, steps)
    assert torch.allclose(adaptation.logits(fast, change, query), base.tower(fast, query), atol=1e-6)
    assert not any(part.any() for part in change[1:])


def test_adapting_lowers_the_support_loss_and_mutates_nothing() -> None:
    generator = torch.Generator().manual_seed(2)
    fast, support = towers(generator, 1), meta(generator, 1, 8, objectives=1)
    label = (torch.rand(1, 8, 1, generator=generator) < 0.5).float()
    before = {name: value.detach().clone() for name, value in fast.items()}
    losses = []
    for steps in range(4):
        change = adaptation.adapt(fast, support, label, torch.full((1, 8), 1 / 8), 0.05, steps)
        logit = adaptation.logits(fast, change, support).detach()
        losses.append(float(functional.binary_cross_entropy_with_logits(logit, label)))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 1e-3
    assert all(torch.equal(before[name], fast[name]) for name in fast)


def test_merged_tasks_equal_single_ones_whatever_the_padding() -> None:
    generator = torch.Generator().manual_seed(4)
    fast = towers(generator, 2)
    support, query = meta(generator, 2, 9, objectives=2), meta(generator, 2, 5, objectives=2)
    label = (torch.rand(2, 9, 2, generator=generator) < 0.5).float()
    sizes = [3, 9]
    weight = torch.tensor(np.array([[1 / n if k < n else 0 for k in range(9)] for n in sizes], np.float32))
    together = adaptation.logits(fast, adaptation.adapt(fast, support, label, weight, RATE, 3), query)
    for t, n in enumerate(sizes):
        own = base.MetaInput(*(part[t : t + 1, :n] for part in support))
        change = adaptation.adapt(fast, own, label[t : t + 1, :n], torch.full((1, n), 1 / n), RATE, 3)
        alone = adaptation.logits(fast, change, base.MetaInput(*(part[t : t + 1] for part in query)))
        assert torch.allclose(together[t], alone[0], atol=1e-6)
