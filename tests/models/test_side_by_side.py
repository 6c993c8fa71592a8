import pytest
import torch

from models import side_by_side


@pytest.mark.parametrize("rows", [0, 1, 5, 128, 301])
@pytest.mark.parametrize("shared", [True, False])
def test_rectified_layers_and_their_gradients_are_those_of_torch(rows: int, shared: bool) -> None:
    generator = torch.Generator().manual_seed(rows)
    shapes = ((rows, 40) if shared else (4, rows, 40), (4, 40, 24), (96,), (4, rows, 24))
    x, weight, bias, slope = (torch.randn(*shape, generator=generator) for shape in shapes)
    one, two = ([t.clone().requires_grad_() for t in (x, weight, bias)] for _ in range(2))
    found = side_by_side.rectified(one[0], one[1], one[2])
    every = two[0].expand(4, -1, -1) if shared else two[0]
    wanted = torch.relu(torch.baddbmm(two[2].view(4, 1, -1), every, two[1]))
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-5)
    (found * slope).sum().backward()  # type: ignore[no-untyped-call]
    (wanted * slope).sum().backward()  # type: ignore[no-untyped-call]
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-4, rtol=1e-5)


def test_rows_that_need_no_gradient_get_none() -> None:
    weight, bias = torch.randn(2, 3, 4).requires_grad_(), torch.zeros(8)
    side_by_side.rectified(torch.randn(5, 3), weight, bias).sum().backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    assert bias.grad is None


def test_mixtures_and_their_gradients_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_by_side, "usable", lambda *_: True)
    shares, found = torch.rand(7, 2, 4).requires_grad_(), torch.randn(4, 7, 5).requires_grad_()
    mixed, wanted = side_by_side.mixture(shares, found), torch.bmm(shares, found.transpose(0, 1))
    torch.testing.assert_close(mixed, wanted)
    slope = torch.randn_like(wanted)
    ours, theirs = (torch.autograd.grad((out * slope).sum(), (shares, found)) for out in (mixed, wanted))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_other_types_than_float32_are_left_to_torch() -> None:
    assert not side_by_side.usable(torch.zeros(2, dtype=torch.float64))
