import torch

from models import base, experts


def drawn(shapes: base.Shapes, seed: int = 0) -> dict[str, torch.Tensor]:
    return base.views(torch.randn(base.size(shapes), generator=torch.Generator().manual_seed(seed)), shapes)


def read(rows: int, slots: int, width: int = 5) -> base.Inputs:
    generator = torch.Generator().manual_seed(1)
    slot = torch.randint(0, slots, (rows,), generator=generator)
    earned = torch.where(slot > 0, torch.rand(rows, generator=generator), torch.zeros(rows))
    return base.Inputs(torch.randn(rows, width, generator=generator), slot, earned)


def test_own_experts_equal_a_plain_loop_over_rows_and_networks() -> None:
    slots, networks, sizes = 4, 3, (5, 7, 6)
    parameters, inputs = drawn(experts.own_shapes("e", slots, networks, sizes)), read(20, slots)
    found = experts.own(parameters, "e", inputs.x, inputs.slot, networks, 2)
    for i, slot in enumerate(inputs.slot.tolist()):
        for k in range(networks):
            first = parameters["e.0.weight"][slot][:, k * 7 : k * 7 + 7]
            bias = parameters["e.0.bias"].view(slots, networks, 7)[slot, k]
            hidden = torch.relu(inputs.x[i] @ first + bias)
            second = parameters["e.1.weight"][slot * networks + k]
            expected = torch.relu(hidden @ second + parameters["e.1.bias"].view(slots, networks, 6)[slot, k])
            assert torch.allclose(found[i, k], expected, atol=1e-5)


def test_a_gate_is_the_shared_one_changed_as_far_as_it_was_earned() -> None:
    parameters, inputs = drawn(experts.gate_shapes("g", 4, 5, 3)), read(20, 4)
    found = experts.gate(parameters, "g", inputs.x, inputs)
    for i, (slot, earned) in enumerate(zip(inputs.slot.tolist(), inputs.earned.tolist(), strict=True)):
        weight = parameters["g.weight"] + earned * parameters["own.g.weight"][slot]
        bias = parameters["g.bias"] + earned * parameters["own.g.bias"][slot]
        assert torch.allclose(found[i], inputs.x[i] @ weight + bias, atol=1e-5)


def test_own_experts_have_the_prior_odds_that_were_earned_and_none_without_rows() -> None:
    inputs = base.Inputs(torch.zeros(3, 1), torch.tensor([0, 1, 2]), torch.tensor([0.0, 0.25, 1.0]))
    shares = torch.softmax(experts.odds(torch.zeros(3, 2, 4), 1, inputs), -1)
    assert torch.allclose(shares[:, 0, -1], torch.tensor([0.0, 0.25 / 3.25, 0.25]))
    assert torch.equal(shares[:, 0], shares[:, 1])


def test_nobodys_slot_gives_finite_gradients() -> None:
    logits = torch.randn(4, 3, requires_grad=True)
    inputs = base.Inputs(torch.zeros(4, 1), torch.zeros(4, dtype=torch.long), torch.zeros(4))
    torch.softmax(experts.odds(logits, 1, inputs), -1)[:, 0].sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert not logits.grad[:, -1].any()
