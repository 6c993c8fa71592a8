"""Experts and their gates, side by side: shared ones that read every row, and own ones that a row's scenario brings.

A gate belongs to a scenario and an objective: its logits are the shared gate's, changed by the scenario's own weights as far as
its rows have earned them. Own experts enter a softmax with prior odds `earned`, so that a scenario without rows is mixed from
shared experts alone and nothing jumps when it gets its slot.
"""

import torch

from models import base, parts
from state import config


def widths(settings: config.Config, inputs: int) -> tuple[int, ...]:
    """Widths of an expert from its inputs on: `model.expert_hidden`, or the hidden layers before the tower's, at least one."""
    model = settings.model
    return inputs, *(model.expert_hidden or model.hidden[:-1] or model.hidden)


def own_shapes(name: str, slots: int, networks: int, sizes: tuple[int, ...]) -> base.Shapes:
    """`networks` experts for every slot; each layer's weights lie in the order of the slots."""
    found: base.Shapes = {}
    for i in range(len(sizes) - 1):
        stack = (slots, sizes[0], networks * sizes[1]) if i == 0 else (slots * networks, sizes[i], sizes[i + 1])
        found |= {f"{name}.{i}.weight": stack, f"{name}.{i}.bias": (slots * networks * sizes[i + 1],)}
    return found


def own(parameters: base.Parameters, name: str, x: torch.Tensor, slot: torch.Tensor, networks: int, depth: int) -> torch.Tensor:
    """Outputs (n, networks, H) of the own experts of each row's slot; x (n, inputs)."""
    at = slot
    for i in range(depth):
        weight = parameters[f"{name}.{i}.weight"]
        bias = parameters[f"{name}.{i}.bias"].view(len(weight), -1)
        x = torch.relu(parts.slot_layer(x, weight, bias, at, x.new_ones(len(x))))
        if i == 0:
            x = x.view(len(slot) * networks, -1)
            at = (slot.unsqueeze(1) * networks + torch.arange(networks)).view(-1)
    return x.view(len(slot), networks, -1)


def gate_shapes(name: str, slots: int, inputs: int, outputs: int) -> base.Shapes:
    """A gate that every slot may change."""
    return parts.layer(name, inputs, outputs) | {
        f"own.{name}.weight": (slots, inputs, outputs),
        f"own.{name}.bias": (slots, outputs),
    }


def gate(parameters: base.Parameters, name: str, x: torch.Tensor, inputs: base.Inputs) -> torch.Tensor:
    """Logits (n, outputs) of the gate as each row's scenario has changed it; x (n, inputs of the gate)."""
    own = parameters[f"own.{name}.weight"], parameters[f"own.{name}.bias"]
    return parts.linear(parameters, name, x) + parts.slot_layer(x, *own, inputs.slot, inputs.earned)


def odds(logits: torch.Tensor, own_experts: int, inputs: base.Inputs) -> torch.Tensor:
    """Logits (n, ..., experts), the last `own_experts` of them with prior odds of what the row's scenario has earned."""
    prior = inputs.earned.log().view(-1, *[1] * (logits.dim() - 1))
    return torch.cat([logits[..., :-own_experts], logits[..., -own_experts:] + prior], -1)
