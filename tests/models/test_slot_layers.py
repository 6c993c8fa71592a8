import pytest
import torch

from models import parts, slot_layers


@pytest.mark.parametrize("rows", [0, 1, 7, 300])
def test_layers_by_slot_and_their_gradients_are_those_of_torch(rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    x, weight, bias, slope = (
        torch.randn(*shape, generator=generator) for shape in ((rows, 12), (4, 12, 10), (4, 10), (rows, 10))
    )
    # Nobody is in slot 2, and slot 1 has more rows than a block.
    slot = torch.tensor([0, 1, 1, 3])[torch.arange(rows) % 4]
    earned = torch.rand(rows, generator=generator)
    one, two = ([t.clone().requires_grad_() for t in (x, weight, bias)] for _ in range(2))
    found = slot_layers.layer(one[0], one[1], one[2], slot, earned)
    wanted = earned.unsqueeze(1) * (torch.bmm(two[0].unsqueeze(1), two[1][slot]).squeeze(1) + two[2][slot])
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-5)
    (found * slope).sum().backward()  # type: ignore[no-untyped-call]
    (wanted * slope).sum().backward()  # type: ignore[no-untyped-call]
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-4, rtol=1e-5)
    assert not one[1].grad[2].any()  # type: ignore[index]


def test_torch_does_the_same_where_native_code_may_not() -> None:
    x, weight, bias = torch.randn(9, 5).double(), torch.randn(3, 5, 4).double(), torch.randn(3, 4).double()
    slot, earned = torch.arange(9) % 3, torch.rand(9)
    exact = parts.slot_layer(x, weight, bias, slot, earned.double())
    assert exact.dtype == torch.float64
    found = slot_layers.layer(x.float(), weight.float(), bias.float(), slot, earned)
    torch.testing.assert_close(found, exact.float(), atol=1e-5, rtol=1e-5)
