import numpy as np
import pytest
import torch

from models import expert_gates


@pytest.mark.parametrize("rows", [1, 9, 300])
def test_shares_of_experts_and_their_gradients_are_those_of_torch(rows: int) -> None:
    generator, (inputs, objectives, experts) = torch.Generator().manual_seed(rows), (13, 2, 3)
    outputs = objectives * experts
    shapes = (rows, inputs), (inputs, outputs), (outputs,), (4, inputs, outputs), (4, outputs), (rows, objectives, experts)
    x, weight, bias, own, own_bias, slope = (torch.randn(*shape, generator=generator) for shape in shapes)
    # Nobody is in slot 2, and slot 1 has more rows than a block.
    slot = torch.tensor([0, 1, 1, 3])[torch.arange(rows) % 4]
    earned = torch.rand(4, generator=generator)[slot]
    named = [t.clone().requires_grad_() for t in (x, weight, bias, own, own_bias)]
    change = torch.bmm(named[0].unsqueeze(1), named[3][slot]).squeeze(1) + named[4][slot]
    logits = named[0] @ named[1] + named[2] + earned.unsqueeze(1) * change
    wanted = torch.softmax(logits.view(rows, objectives, experts), -1)
    (wanted * slope).sum().backward()  # type: ignore[no-untyped-call]
    found = np.empty(slope.shape, np.float32)
    expert_gates.forward(*[*(t.numpy() for t in (x, weight, bias, own, own_bias, slot, earned)), found])
    np.testing.assert_allclose(found, wanted.detach().numpy(), atol=1e-5)
    dx = np.ones((rows, inputs), np.float32)
    fills = [np.full(t.shape, np.nan, np.float32) for t in (weight, bias, own, own_bias)]
    given = [t.numpy() for t in (x, weight, own, slot, earned)]
    expert_gates.backward(*[*given, found, slope.numpy().copy(), dx, *fills])
    for own_gradient, reference in zip((dx - 1, *fills), named, strict=True):
        assert reference.grad is not None
        np.testing.assert_allclose(own_gradient, reference.grad.numpy(), atol=1e-4, rtol=1e-4)


def test_a_logit_that_is_no_number_leaves_no_share_a_number() -> None:
    x = np.array([[np.nan, 1.0]], np.float32)
    shares = np.empty((1, 1, 2), np.float32)
    weight, own = np.ones((2, 2), np.float32), np.zeros((1, 2, 2), np.float32)
    bias, own_bias = np.zeros(2, np.float32), np.zeros((1, 2), np.float32)
    expert_gates.forward(x, weight, bias, own, own_bias, np.zeros(1, np.int64), np.ones(1, np.float32), shares)
    assert np.isnan(shares).all()
