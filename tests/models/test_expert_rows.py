import itertools

import numpy as np
import pytest
import torch

from models import expert_rows


@pytest.mark.parametrize("rows", [1, 6, 257, 515])
def test_experts_their_mixtures_and_their_gradients_are_those_of_torch(rows: int) -> None:
    generator, experts, widths = torch.Generator().manual_seed(rows), 3, (20, 24, 9)
    x, slope = (torch.randn(*shape, generator=generator) for shape in ((rows + 4, widths[0]), (rows, 2, widths[-1])))
    layers = [torch.randn(experts, a, b, generator=generator) * 0.3 for a, b in itertools.pairwise(widths)]
    biases = [torch.randn(experts * b, generator=generator) for b in widths[1:]]
    shares = torch.rand(rows + 4, 2, experts, generator=generator)
    wanted = [t.clone().requires_grad_() for t in (x, shares, *layers, *biases)]
    above = wanted[0].expand(experts, -1, -1)
    for weight, bias in zip(wanted[2:4], wanted[4:], strict=True):
        above = torch.relu(torch.baddbmm(bias.view(experts, 1, -1), above, weight))
    mixed = torch.bmm(wanted[1], above.transpose(0, 1))
    (mixed[:rows] * slope).sum().backward()  # type: ignore[no-untyped-call]

    own = tuple((w.numpy(), b.numpy()) for w, b in zip(layers, biases, strict=True))
    found = tuple(np.empty((experts, rows + 4, b), np.float32) for b in widths[1:])
    hidden = np.empty((rows + 4, 2, widths[-1]), np.float32)
    read = np.pad(x.numpy(), ((0, 0), (0, 3)))[:, : widths[0]]
    expert_rows.forward(read, own, shares.numpy(), found, hidden)
    torch.testing.assert_close(torch.from_numpy(hidden), mixed, atol=1e-4, rtol=1e-4)
    dshares, dx = np.ones((rows, 2, experts), np.float32), np.ones((rows, widths[0] + 3), np.float32)[:, : widths[0]]
    filled = tuple((np.ones_like(weight), np.ones_like(bias)) for weight, bias in own)
    scratch = np.empty(expert_rows.room_needed(own), np.float32)
    expert_rows.backward(read, own, found, shares.numpy(), slope.numpy(), dshares, filled, dx, scratch)
    ours = [dx, dshares, *(weight for weight, _ in filled), *(bias for _, bias in filled)]
    theirs = [t.grad for t in wanted]
    for one, other in zip(ours, [theirs[0][:rows], theirs[1][:rows], *theirs[2:]], strict=True):  # type: ignore[index]
        torch.testing.assert_close(torch.from_numpy(one), other, atol=2e-4 * rows**0.5, rtol=1e-4)
