"""Models of one scenario, as experts side by side with a gate: the form in which a cross-domain model takes them over.

A shared bottom is one expert, and so is PEPNet, which brings its gates along (`models.own_pepnet`). An MMoE is its experts and
its gate. PLE of one level (CGC, Tang et al. 2020, section 4.2) is all its experts, with a gate per objective that is closed for
the experts of the others; the prior odds of the scenario's own are part of the gate's bias. A second level of PLE reads
mixtures: it is no mixture of experts of the input.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from models import base, experts, registry, scenario_slots
from models.meta import registry as meta
from state import config, ids

Arrays = Mapping[str, npt.NDArray[Any]]
BOTTOMS = {"shared_bottom": "bottom", "pepnet": "hidden"}
"""Models that are one expert, and what its layers are called."""
NAMES = ("mmoe", "pepnet", "ple", "shared_bottom")
CLOSED = -1e4
"""Logit of a share that is exactly zero."""


class Donor(NamedTuple):
    """A model that served one scenario: its snapshot, and the slot that it gave the scenario, with what that has earned."""

    settings: config.Config
    arrays: Arrays
    scenario: str
    parameters: dict[str, torch.Tensor]
    slot: int
    earned: float


class Experts(NamedTuple):
    """Layers of G experts, weights (G, inputs, outputs) and biases (G, outputs), and the gate (inputs, O, G) with bias (O, G)."""

    weights: list[torch.Tensor]
    biases: list[torch.Tensor]
    gate: torch.Tensor
    bias: torch.Tensor


def load(settings: config.Config, arrays: Arrays, scenario: str) -> Donor:
    """The model of a snapshot's arrays."""
    settings = scenario_slots.as_trained(settings, arrays)
    slots = scenario_slots.Slots(settings.scenarios)
    slots.load(arrays)
    mine = slots.find(np.array([ids.of(scenario)], np.uint64))
    model = registry.build(settings)
    flat = torch.from_numpy(np.array(arrays["dense"], np.float32))
    parameters = base.views(flat, meta.shapes(model, meta.build(settings, model)))
    return Donor(settings, arrays, scenario, parameters, int(mine[0]), float(slots.earned(mine)[0]))


def problem(settings: config.Config) -> str:
    """Why this model cannot become an expert, as "setting: what must be", or an empty string."""
    model = settings.model
    if model.name not in NAMES:
        return f'model.name: "{model.name}" cannot become an expert; allowed: {", ".join(NAMES)}'
    if model.name in BOTTOMS and len(model.hidden) == 1:
        return "model.hidden: the old model has no layer before its tower that could become an expert"
    if model.name == "pepnet" and model.objective_towers and base.geometry(settings).objectives > 1:
        return "model.objective_towers: every objective of the old model has hidden layers of its own, which no expert has"
    if any(o.layers for o in settings.objectives):
        return "objectives.layers: objectives of the old model have further layers before the tower, which no expert has"
    if model.name == "ple" and model.levels > 1:
        return f"model.levels: is {model.levels}, must be 1: a second level reads what the first one mixed, which no expert does"
    if model.embedding_widths:
        return "model.embedding_widths: embeddings of several widths cannot be merged"
    if model.own_rows:
        return "model.own_rows: the old model has own rows already; take the models that it was made of"
    return ""


def gated(settings: config.Config) -> tuple[bool, bool]:
    """Whether the model gates its embeddings, and its layers."""
    model = settings.model
    return model.name == "pepnet" and model.use_epnet, model.name == "pepnet" and model.use_ppnet


def widths(settings: config.Config) -> tuple[int, ...]:
    """Outputs of an expert's layers."""
    model = settings.model
    return model.hidden[:-1] if model.name in BOTTOMS else experts.widths(settings, 0)[1:]


def group(settings: config.Config) -> int:
    """G, experts side by side."""
    model = settings.model
    if model.name == "ple":
        return model.experts + (base.geometry(settings).objectives + 1) * model.own_experts
    return model.experts if model.name == "mmoe" else 1


def has_towers(settings: config.Config) -> bool:
    """Whether the scenario's tower is a change of a shared one."""
    return settings.model.own_towers and settings.model.name != "pepnet"


def side_by_side(donor: Donor) -> Experts:
    """The experts of a model that `problem` finds nothing wrong with."""
    name, given = donor.settings.model.name, donor.parameters
    if name == "ple":
        return _ple(donor)
    prefix, depth, many = BOTTOMS.get(name, "expert"), len(widths(donor.settings)), group(donor.settings)
    weights = [given[f"{prefix}{i}.weight"] for i in range(depth)]
    stacked = [weight.view(many, *weight.shape[-2:]) for weight in weights]
    biases = [given[f"{prefix}{i}.bias"].view(many, -1) for i in range(depth)]
    inputs, objectives = stacked[0].shape[1], base.geometry(donor.settings).objectives
    if name != "mmoe":
        return Experts(stacked, biases, torch.zeros(inputs, objectives, 1), torch.zeros(objectives, 1))
    gate = given["gate.weight"] + donor.earned * given["own.gate.weight"][donor.slot]
    bias = given["gate.bias"] + donor.earned * given["own.gate.bias"][donor.slot]
    return Experts(stacked, biases, gate.view(inputs, objectives, many), bias.view(objectives, many))


def gates(donor: Donor, gamma: float, width: int) -> dict[str, torch.Tensor]:
    """PEPNet's gates under its names. Those that the model has not are 1, whatever their hidden layers of this width say."""
    hidden, g = donor.settings.model.hidden, base.geometry(donor.settings)
    shapes = {"epnet.out": (width, g.embedded)} | {f"ppnet.out{i}": (g.objectives, width, n) for i, n in enumerate(hidden)}
    found = {name: view for name, view in donor.parameters.items() if name.startswith(("epnet.", "ppnet."))}
    for name, shape in shapes.items():
        if f"{name}.weight" not in found:
            outputs = math.prod(shape) // width
            found |= {f"{name}.weight": torch.zeros(shape), f"{name}.bias": torch.full((outputs,), -math.log(gamma - 1))}
    return found


def _ple(donor: Donor) -> Experts:
    """Shared experts, then those of each objective, then the scenario's own."""
    given, model, at = donor.parameters, donor.settings.model, donor.slot
    shared, each, objectives = model.experts, model.own_experts, base.geometry(donor.settings).objectives
    weights, biases = [], []
    for i in range(len(widths(donor.settings))):
        common, objective = (given[f"{name}0.{i}.weight"] for name in ("shared", "objective"))
        own, outputs = given[f"scenario.own.0.{i}.weight"], common.shape[2]
        mine = own[at].view(-1, each, outputs).transpose(0, 1) if i == 0 else own[at * each : at * each + each]
        weights.append(torch.cat([common, objective, mine]))
        own_bias = given[f"scenario.own.0.{i}.bias"].view(-1, each, outputs)[at]
        stacks = [given[f"{name}0.{i}.bias"].view(-1, outputs) for name in ("shared", "objective")]
        biases.append(torch.cat([*stacks, own_bias]))
    gates = slice(at * objectives, at * objectives + objectives)
    weight = given["gate0.weight"] + donor.earned * given["own.gate0.weight"][gates]
    bias = given["gate0.bias"].view(objectives, -1) + donor.earned * given["own.gate0.bias"][at]
    gate = torch.zeros(weight.shape[1], objectives, len(weights[0]))
    closed = torch.full((objectives, len(weights[0])), CLOSED)
    odds = max(math.log(donor.earned), CLOSED) if donor.earned > 0 else CLOSED
    for o in range(objectives):
        theirs = slice(shared + o * each, shared + (o + 1) * each)
        for place, source in ((slice(0, shared), slice(0, shared)), (theirs, slice(shared, shared + each))):
            gate[:, o, place], closed[o, place] = weight[o][:, source], bias[o, source]
        gate[:, o, -each:], closed[o, -each:] = weight[o][:, -each:], bias[o, -each:] + odds
    return Experts(weights, biases, gate, closed)
