import pytest
import torch

from models import base, wide

WIDTH, CATEGORIES, NUMBERS, OBJECTIVES, ROWS = 8, 3, 5, 2, 11


def drawn(kind: int, user: int = 0) -> tuple[wide.Plan, dict[str, torch.Tensor], torch.Tensor]:
    plan = wide.Plan(kind, CATEGORIES, WIDTH, NUMBERS if kind == wide.FM else 0, user, 1, OBJECTIVES)
    generator = torch.Generator().manual_seed(kind)
    shapes = wide.shapes(plan)
    parameters = base.views(torch.randn(base.size(shapes), generator=generator), shapes)
    return plan, parameters, torch.randn(ROWS, CATEGORIES * (WIDTH + 1) + NUMBERS, generator=generator)


@pytest.mark.parametrize(("kind", "user"), [(wide.OFF, 0), (wide.PRODUCT, 0), (wide.PRODUCT, -1), (wide.FM, 0)])
def test_the_kernels_and_their_gradients_are_those_of_torch(kind: int, user: int) -> None:
    plan, parameters, x = drawn(kind, user)
    slope = torch.randn(ROWS, OBJECTIVES, generator=torch.Generator().manual_seed(1))
    found = []
    for way in (wide.logits, wide.by_torch) if kind != wide.OFF else (wide.logits, wide.logits):
        own = {name: view.clone().requires_grad_() for name, view in parameters.items()}
        entering = x.clone().requires_grad_()
        out = way(own, entering, plan)
        if out.requires_grad:
            (out * slope).sum().backward()  # type: ignore[no-untyped-call]
        # Numbers are no parameters, and the kernels give them no gradient.
        embedded = CATEGORIES * WIDTH
        dx = torch.zeros_like(x) if entering.grad is None else entering.grad
        dx = torch.cat([dx[:, :embedded], dx[:, embedded + NUMBERS :]], 1)
        found.append([out.detach(), dx, *(torch.zeros(()) if v.grad is None else v.grad for v in own.values())])
    for ours, wanted in zip(*found, strict=True):
        torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=1e-5)


def test_other_types_than_float32_are_left_to_torch() -> None:
    plan, parameters, x = drawn(wide.FM)
    exact = wide.logits({name: view.double() for name, view in parameters.items()}, x.double(), plan)
    assert exact.dtype == torch.float64
    torch.testing.assert_close(wide.logits(parameters, x, plan).double(), exact, atol=1e-4, rtol=1e-5)
