"""A model that served one scenario becomes that scenario's own expert in a cross-domain model, without loss (TRS, C4).

The tower, the wide part, ids and embeddings, and the moments of numbers are taken over as they are; the old network becomes the
own expert of the scenario's slot, which counts in full from the start and is closed to the shared experts (`models.trs`). So
the scenario is predicted as before, and learns from there on with everybody else. Features that the old model did not know have
weights of zero in the own expert.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from models import base, embedding, experts, id_map, moments, own_gains, parts, registry, scenario_slots
from models.meta import registry as meta
from state import config, ids

Arrays = Mapping[str, npt.NDArray[Any]]
SLOT = 1
IN_FULL = 2**30
"""A scenario with so many times `scenarios.prior_rows` rows has earned a share of 1 to the last bit of a float32."""
EXPERTS = {"shared_bottom": "bottom", "mmoe": "expert"}
"""Models that can become an expert, and what their layers are called."""


class _Old(NamedTuple):
    """A model that served one scenario: its parameters, and the slot that it gave the scenario, with what that has earned."""

    settings: config.Config
    parameters: dict[str, torch.Tensor]
    slot: int
    earned: float

    @property
    def group(self) -> int:
        """Networks side by side."""
        return self.settings.model.experts if self.settings.model.name == "mmoe" else 1


def migrate(old: config.Config, arrays: Arrays, new: config.Config, scenario: str) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a trs model in which `scenario` is served as the old model's `arrays` serve it.

    What the old model's adaptation had learned beside the tower (`meta.algorithm`) starts anew, and so do the moments of the
    dense parameters.

    Raises:
        config.ConfigError: the two configurations do not fit; the message names the setting of the new one and what it must be.
    """
    refuse(old, new)
    old = scenario_slots.as_trained(old, arrays)
    slots = scenario_slots.Slots(old.scenarios)
    slots.load(arrays)
    mine = slots.find(np.array([ids.of(scenario)], np.uint64))
    flat = torch.from_numpy(np.array(arrays["dense"], np.float32))
    parameters = base.views(flat, registry.build(old).shapes)
    found = _Old(old, parameters, int(mine[0]), float(slots.earned(mine)[0]))
    dense = _dense(found, new).numpy()
    return {
        "dense": dense, "dense.trained": dense, "moments": _moments(old, arrays["moments"], new),
        "moments.observed": _observed(old, arrays["moments.observed"], new, int(mine[0])), **_table(old, arrays, new),
        **_slots(new.scenarios, scenario), **_gains(old, arrays, new, int(mine[0])),
    }  # fmt: skip


def refuse(old: config.Config, new: config.Config) -> None:
    """Raise ConfigError unless the old configuration's model can become an expert of the new one's."""
    if old.model.name not in EXPERTS or new.model.name != "trs":
        raise config.ConfigError(
            f'model.name: "{old.model.name}" cannot become an expert of "{new.model.name}"; '
            f'allowed: {", ".join(sorted(EXPERTS))} into "trs"'
        )
    if old.model.name == "shared_bottom" and len(old.model.hidden) == 1:
        raise config.ConfigError("model.hidden: the old model has no layer before its tower that could become an expert")
    known = old.features.categories
    names, wanted = ([c.name for c in f.features.categories] for f in (old, new))
    if new.features.categories[: len(known)] != known:
        raise config.ConfigError(
            f"features.categories: {', '.join(wanted)}; must start with the old model's ({', '.join(names)}), unchanged, "
            "new ones last"
        )
    before, after = base.geometry(old), base.geometry(new)
    missing = [name for name in before.numbers if name not in after.numbers]
    if missing or after.scenario < 0:
        lacks = ", ".join(missing) if missing else "a category of the scenario"
        raise config.ConfigError(f"features: the new configuration lacks {lacks}; it must have all that the old model reads")
    group = old.model.experts if old.model.name == "mmoe" else 1
    sizes = old.model.hidden[:-1] if old.model.name == "shared_bottom" else experts.widths(old, 0)[1:]
    for setting, own, must in (
        ("objectives", new.objectives, old.objectives),
        ("model.embedding_width", new.model.embedding_width, old.model.embedding_width),
        ("model.wide", new.model.wide, old.model.wide),
        ("model.hidden, its last", new.model.hidden[-1], old.model.hidden[-1]),
        ("model.own_experts", new.model.own_experts, group),
        ("model.expert_hidden", experts.widths(new, 0)[1:], sizes),
        ("model.own_towers", new.model.own_towers or not old.model.own_towers, True),
        ("model.moments", new.model.moments, old.model.moments),
        ("scenarios.prior_rows", *(c.scenarios.prior_rows if c.model.moments == "scenario" else 0.0 for c in (new, old))),
        ("model.star_tower", new.model.star_tower and old.model.own_towers, False),
    ):
        if own != must:
            raise config.ConfigError(f"{setting}: is {own}, must be {must} as in the old model")


def _dense(old: _Old, new: config.Config) -> torch.Tensor:
    model = registry.build(new)
    flat = meta.initial(model, meta.build(new, model), new.learner.seed)
    views, given, objectives = base.views(flat, model.shapes), old.parameters, model.objectives
    numbers = base.geometry(old.settings).numbers
    for name in ("tower.weight", "tower.bias", "output.weight", "output.bias", "wide.scale"):
        if name in given:
            views[name].copy_(given[name])
    for name in ("wide.first", "wide.numbers"):
        if name in given:
            views[name].zero_()[[base.geometry(new).numbers.index(n) for n in numbers]] = given[name]
    for name in ("tower.weight", "tower.bias", "output.weight", "output.bias"):
        own = f"own.{name}"
        if own in given:
            n = objectives if name == "tower.weight" else 1
            views[own][SLOT * n : SLOT * n + n] = old.earned * given[own][old.slot * n : old.slot * n + n]
    views["own.open"][SLOT] = -1
    _expert(old, new, views, objectives)
    return flat


def _expert(old: _Old, new: config.Config, views: dict[str, torch.Tensor], objectives: int) -> None:
    """Fill the own expert of the scenario's slot."""
    prefix, group, given = EXPERTS[old.settings.model.name], old.group, old.parameters
    before = base.geometry(old.settings)
    inputs = parts.columns(base.geometry(new), (*before.categories, *before.numbers))
    for i in range(len(experts.widths(new, 0)) - 1):
        weight, bias = given[f"{prefix}{i}.weight"], given[f"{prefix}{i}.bias"]
        weight = weight.view(group, *weight.shape[-2:])
        own, own_bias = views[f"expert.own.{i}.weight"], views[f"expert.own.{i}.bias"]
        own_bias.view(-1, len(bias))[SLOT] = bias
        if i == 0:
            own[SLOT] = 0
            own[SLOT, inputs] = weight.transpose(0, 1).flatten(1)
        else:
            own[SLOT * group : SLOT * group + group] = weight
    if group > 1:
        gate = views["inner.own.0.weight"][SLOT].zero_()
        gate[inputs] = given["gate.weight"] + old.earned * given["own.gate.weight"][old.slot]
        bias = given["gate.bias"] + old.earned * given["own.gate.bias"][old.slot]
        views["inner.own.0.bias"].view(-1, objectives * group)[SLOT] = bias


def _moments(old: config.Config, shared: npt.NDArray[Any], new: config.Config) -> npt.NDArray[np.float64]:
    before, after = base.geometry(old).numbers, base.geometry(new).numbers
    out = np.zeros((3, len(after)))
    out[:, [after.index(name) for name in before]] = shared
    return out


def _observed(old: config.Config, observed: npt.NDArray[Any], new: config.Config, slot: int) -> npt.NDArray[np.float64]:
    """The moments of the scenario that is taken over; a scenario without a slot had none of its own."""
    before, after = base.geometry(old).numbers, base.geometry(new).numbers
    out = np.zeros((new.scenarios.slots + 1, moments.KEPT, len(after)))
    if slot:
        out[SLOT][:, [after.index(name) for name in before]] = observed[slot]
    return out


def _table(old: config.Config, arrays: Arrays, new: config.Config) -> dict[str, npt.NDArray[Any]]:
    """Embeddings and the map of ids; the shared rows of new fields are put in after those of the old ones."""
    fields, all_fields = (int(embedding.columns(c).field_of.max()) + 1 for c in (old, new))
    more, rows = all_fields - fields, len(arrays["table"])
    if rows - fields > new.embedding.capacity:
        raise config.ConfigError(f"embedding.capacity: must be at least {rows - fields}, the rows of the old model")
    fresh = np.zeros((more, arrays["table"].shape[1]), np.float32)
    squares = np.full((more, 2), new.optimizer.embedding_accumulator, np.float32)
    out = {name: np.array(arrays[name]) for name in ("map.keys", "map.seen", "map.values", "map.counts", "map.free")}
    out["map.values"][out["map.values"] > 0] += more
    out["map.counts"][id_map.HIGH] += more
    out["map.free"] += more
    for name, added in (("table", fresh), ("accumulator", squares)):
        out[name] = np.concatenate([arrays[name][:fields], added, arrays[name][fields:]])
    return out


def _gains(old: config.Config, arrays: Arrays, new: config.Config, slot: int) -> dict[str, npt.NDArray[Any]]:
    """What the scenario makes of the embeddings, with its sums of gradients: without those it would be lost at once."""
    out, before, after = own_gains.Gains(new).arrays(), base.geometry(old).embedded, base.geometry(new).embedded
    for name, own in out.items():
        mine = arrays[name][slot]
        own[SLOT, :before], own[SLOT, after : after + len(mine) - before] = mine[:before], mine[before:]
    return out


def _slots(settings: config.Scenarios, scenario: str) -> dict[str, npt.NDArray[Any]]:
    slots = scenario_slots.Slots(settings)
    slots.admit(np.array([ids.of(scenario)], np.uint64))
    slots.rows[SLOT] = math.ceil(settings.prior_rows * IN_FULL)
    return slots.arrays()
