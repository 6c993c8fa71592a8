import numpy as np
import pytest
import torch

from models import tower_layer


@pytest.mark.parametrize("owned", [True, False])
@pytest.mark.parametrize("rows", [1, 9, 300])
def test_the_hidden_layer_and_its_gradients_are_those_of_torch(rows: int, owned: bool) -> None:
    generator, (inputs, width, objectives) = torch.Generator().manual_seed(rows), (13, 21, 2)
    groups = 4 * objectives
    shapes = (
        (rows * objectives, inputs),
        (inputs, width),
        (width,),
        (groups, inputs, width),
        (groups, width),
        (rows * objectives, width),
    )
    hidden, weight, bias, own, own_bias, slope = (torch.randn(*shape, generator=generator) for shape in shapes)
    # Nobody is in slot 2, and slot 1 has more rows than a block.
    slot = torch.tensor([0, 1, 1, 3])[torch.arange(rows) % 4]
    earned = torch.rand(4, generator=generator)[slot]
    named = [t.clone().requires_grad_() for t in (hidden, weight, bias, own, own_bias)]
    at = (slot.unsqueeze(1) * objectives + torch.arange(objectives)).view(-1)
    change = torch.bmm(named[0].unsqueeze(1), named[3][at]).squeeze(1) + named[4][at]
    wanted = named[0] @ named[1] + named[2] + (earned.repeat_interleave(objectives).unsqueeze(1) * change if owned else 0)
    (wanted * slope).sum().backward()  # type: ignore[no-untyped-call]
    mine, mine_bias = (t.numpy() if owned else t.numpy()[:0] for t in (own, own_bias))
    z, dhidden = np.full(slope.shape, np.nan, np.float32), np.ones(hidden.shape, np.float32)
    tower_layer.forward(hidden.numpy(), weight.numpy(), bias.numpy(), mine, mine_bias, slot.numpy(), earned.numpy(), z)
    np.testing.assert_allclose(z, wanted.detach().numpy(), atol=1e-5, rtol=1e-5)
    fills = [np.full(shape, np.nan, np.float32) for shape in (weight.shape, bias.shape, mine.shape, mine_bias.shape)]
    tower_layer.backward(hidden.numpy(), weight.numpy(), mine, slot.numpy(), earned.numpy(), slope.numpy(), dhidden, *fills)
    for found, reference in zip((dhidden - 1, *fills), named[: 5 if owned else 3], strict=False):
        assert reference.grad is not None
        np.testing.assert_allclose(found, reference.grad.numpy(), atol=1e-4, rtol=1e-4)
    assert not owned or not fills[2][2 * objectives : 3 * objectives].any()


def test_no_rows_have_no_gradient() -> None:
    weight, own, nothing = np.ones((3, 4), np.float32), np.ones((4, 3, 4), np.float32), np.zeros((0, 3), np.float32)
    fills = [np.full(shape, np.nan, np.float32) for shape in ((3, 4), (4,), (4, 3, 4), (4, 4))]
    dz, slot, earned = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32)
    tower_layer.backward(nothing, weight, own, slot, earned, dz, nothing.copy(), *fills)
    assert not any(part.any() for part in fills)
