"""Models that served one scenario each become those scenarios' own experts in a cross-domain model, without loss (TRS, C4).

Each old network (`models.donors`) becomes the own expert of its scenario's slot, which counts in full from the start and is
closed to the shared experts (`models.trs`); PEPNet's gates become those of its scenario. Its tower becomes columns of the tower
that nobody else reads: the scenario's own gates are 0 on the others' columns, and so is every gradient behind them, so that an
adapted tower predicts as before too. Scales of the wide part are the scenario's own. Ids have a row for each scenario
(`models.own_rows`); gains and the moments of numbers come along (`models.migrated_inputs`). So every scenario is predicted as
before, and learns from there on with everybody else: the gradients of `own.open` and of the closed gates are not zero. Features
that an old model did not know have weights of zero in its expert.
"""

from collections.abc import Sequence
from typing import Any

import torch

from models import base, donors, migrated_inputs, parts, pepnet, registry, starts
from models.meta import registry as meta
from state import config


def migrate(given: Sequence[donors.Donor], new: config.Config) -> migrated_inputs.Made:
    """The arrays of a trs model that serves the scenario of every given model as that does.

    What the old models' adaptations had learned beside the tower (`meta.algorithm`) starts anew, and so do the moments of the
    dense parameters.

    Raises:
        config.ConfigError: the configurations do not fit; the message names the setting of the new one and what it must be.
    """
    refuse([(donor.settings, donor.scenario) for donor in given], new)
    dense = _dense(given, new).numpy()
    return {
        "dense": dense, "dense.trained": dense, **migrated_inputs.standard(given, new), **migrated_inputs.table(given, new),
        **migrated_inputs.slots(new.scenarios, [donor.scenario for donor in given]), **migrated_inputs.gains(given, new),
        starts.SEEN: starts.settled(base.geometry(new).objectives),
    }  # fmt: skip


def refuse(given: Sequence[tuple[config.Config, str]], new: config.Config) -> None:
    """Raise ConfigError unless the models of these configurations and scenarios can become experts of the new one's."""
    if new.model.name != "trs":
        raise config.ConfigError(f'model.name: the new model is "{new.model.name}"; allowed: "trs", which has own experts')
    names = [scenario for _, scenario in given]
    if twice := [name for name in names if names.count(name) > 1]:
        raise config.ConfigError(f'--scenario: "{twice[0]}" is named twice; every model brings a scenario of its own')
    if len(given) > new.scenarios.slots:
        raise config.ConfigError(f"scenarios.slots: is {new.scenarios.slots}, must be at least {len(given)}")
    for old, scenario in given:
        if found := donors.problem(old):
            raise config.ConfigError(f"{found} (scenario {scenario})")
        _refuse_features(old, new)
        _refuse_gates(old, new)
        _refuse_shapes(old, new)
    _refuse_together([old for old, _ in given], new)


def _refuse_features(old: config.Config, new: config.Config) -> None:
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


def _refuse_shapes(old: config.Config, new: config.Config) -> None:
    for setting, own, must in (
        ("objectives", new.objectives, old.objectives),
        ("model.embedding_width", new.model.embedding_width, old.model.embedding_width),
        ("model.embedding_widths", new.model.embedding_widths, old.model.embedding_widths),
        ("model.wide", new.model.wide, old.model.wide),
        ("model.expert_hidden", donors.widths(new), donors.widths(old)),
        ("model.own_towers", new.model.own_towers or not donors.has_towers(old), True),
        ("model.objective_towers", new.model.objective_towers or not old.model.objective_towers, True),
        ("model.star_tower", new.model.star_tower and donors.has_towers(old), False),
    ):
        if own != must:
            raise config.ConfigError(f"{setting}: is {own}, must be {must} as in the old model")
    if new.model.own_experts < donors.group(old):
        raise config.ConfigError(
            f"model.own_experts: is {new.model.own_experts}, must be at least {donors.group(old)}, the experts of an old model"
        )


def _refuse_gates(old: config.Config, new: config.Config) -> None:
    """What gates of the old model, or their absence, ask of the new one."""
    gated, model = donors.gated(old), new.model
    if any(gated) and not model.own_gates:
        raise config.ConfigError("model.own_gates: is False, must be True: the old model is a PEPNet with gates")
    if not model.own_gates:
        return
    if donors.group(old) > 1:
        raise config.ConfigError(
            f"model.own_gates: is True, must be False: the old model is {donors.group(old)} experts with a gate over them, "
            "which cannot be merged with a PEPNet that has gates of its own"
        )
    if not all(gated) and model.gamma <= 1:
        raise config.ConfigError(
            f"model.gamma: is {model.gamma}, must be above 1: the old model lacks gates, and theirs must be 1"
        )
    for name in ("gamma", "gate_hidden", *(("personal_features",) if gated[1] else ())):
        own, must = getattr(model, name), getattr(old.model, name)
        if any(gated) and own != must:
            raise config.ConfigError(f"model.{name}: is {own}, must be {must} as in the old model")


def _refuse_together(given: Sequence[config.Config], new: config.Config) -> None:
    """What several models need of the new one, and what one does."""
    model, several = new.model, len(given) > 1
    total = sum(old.model.hidden[-1] for old in given)
    owned = model.own_towers or model.star_tower
    if model.hidden[-1] < total or (not owned and model.hidden[-1] != total):
        least = "at least " if owned else ""
        raise config.ConfigError(
            f"model.hidden, its last: is {model.hidden[-1]}, must be {least}{total}: the old models' together"
        )
    known = [c for old in given for c in old.features.categories]
    scenario = [c.name for c in known if c.source == "scenario"]
    if model.own_rows and any(c.share in scenario for c in known):
        raise config.ConfigError("features.categories: none may share the scenario's embeddings, of which every model has others")
    owners = list(dict.fromkeys(c.name for c in known if not c.share and c.name not in scenario))
    lacks = [name for name in owners if name not in model.own_rows]
    if lacks and (several or len(lacks) < len(owners)):
        raise config.ConfigError(
            f"model.own_rows: lacks {', '.join(lacks)}; models that were trained apart have other embeddings for the same id; "
            f"set it to {[*owners]}, and declare further categories for what scenarios shall share"
        )
    if model.moments == "shared" and (several or given[0].model.moments != "shared"):
        raise config.ConfigError('model.moments: is "shared", must be "scenario": the old models standardise numbers differently')
    if several and not owned:
        raise config.ConfigError("model.own_towers: is False, must be True: every scenario keeps its own tower")
    if several and model.wide == "fm" and base.geometry(new).numbers:
        raise config.ConfigError(
            'model.wide: "fm" has one vector per number for all scenarios, so only one model with it can be taken over'
        )


def _dense(given: Sequence[donors.Donor], new: config.Config) -> torch.Tensor:
    model = registry.build(new)
    flat = meta.initial(model, meta.build(new, model), new.learner.seed)
    views = base.views(flat, model.shapes)
    _wide(given, new, views)
    views["output.bias"].copy_(torch.stack([donor.parameters["output.bias"] for donor in given]).mean(0))
    at = 0
    for slot, donor in enumerate(given, 1):
        width = donor.settings.model.hidden[-1]
        _tower(donor, views, slot, slice(at, at + width))
        at += width
        views["own.open"][slot] = -1
        _expert(donor, new, views, slot)
        if new.model.own_gates:
            _gates(donor, new, views, slot, slice(at - width, at))
    return flat


def _wide(given: Sequence[donors.Donor], new: config.Config, views: dict[str, torch.Tensor]) -> None:
    """Shared scales are the mean of those that the models have, own ones what is missing; numbers' weights are of one model."""
    if "wide.scale" not in views:
        return
    scales = torch.stack([donor.parameters["wide.scale"] for donor in given])
    views["wide.scale"].copy_(scales.mean(0))
    views["own.wide.scale"][1 : len(given) + 1] = scales - views["wide.scale"]
    for name in ("wide.first", "wide.numbers"):
        if name in views:
            known = base.geometry(given[0].settings).numbers
            views[name].zero_()[[base.geometry(new).numbers.index(n) for n in known]] = given[0].parameters[name]


def _tower(donor: donors.Donor, views: dict[str, torch.Tensor], slot: int, columns: slice) -> None:
    """Columns of the tower that only this slot reads, and it reads no other."""
    parameters, objectives = donor.parameters, len(views["output.bias"])
    for name in ("tower.weight", "tower.bias", "output.weight", "objective.tower.weight", "objective.tower.bias"):
        if name in parameters:
            views[name][..., columns] = parameters[name]
    if "own.output.weight" not in views:
        return
    views["own.output.weight"][slot] = -1
    views["own.output.weight"][slot][:, columns] = 0
    views["own.output.bias"][slot] = parameters["output.bias"] - views["output.bias"]
    if "own.tower.weight" not in parameters:
        return
    for name in ("tower.weight", "tower.bias", "output.weight"):
        n = objectives if name == "tower.weight" else 1
        own = donor.earned * parameters[f"own.{name}"][donor.slot * n : donor.slot * n + n]
        views[f"own.{name}"][slot * n : slot * n + n][..., columns] = own
    views["own.output.bias"][slot] += donor.earned * parameters["own.output.bias"][donor.slot]


def _expert(donor: donors.Donor, new: config.Config, views: dict[str, torch.Tensor], slot: int) -> None:
    """Fill the own experts of a slot: if it has more than the model brings, those share what one of them had."""
    found, group = donors.side_by_side(donor), new.model.own_experts
    place = torch.arange(group) % len(found.weights[0])
    before = base.geometry(donor.settings)
    inputs = parts.columns(base.geometry(new), (*before.categories, *before.numbers))
    for i, (weight, bias) in enumerate(zip(found.weights, found.biases, strict=True)):
        own, own_bias = views[f"expert.own.{i}.weight"], views[f"expert.own.{i}.bias"]
        own_bias.view(-1, group, bias.shape[1])[slot] = bias[place]
        if i == 0:
            own[slot] = 0
            own[slot, inputs] = weight[place].transpose(0, 1).flatten(1)
        else:
            own[slot * group : slot * group + group] = weight[place]
    if group > 1:
        gate = views["inner.own.0.weight"][slot].zero_()
        gate[inputs] = found.gate[..., place].flatten(1)
        shared_by = torch.bincount(place)[place].log()
        views["inner.own.0.bias"].view(-1, len(found.bias), group)[slot] = found.bias[:, place] - shared_by


def _gates(donor: donors.Donor, new: config.Config, views: dict[str, torch.Tensor], slot: int, columns: slice) -> None:
    """Fill the gates of a slot: of the tower's its own columns count; layers before gates that are 1 stay as they were drawn."""
    given, last = donors.gates(donor, new.model.gamma, new.model.gate_hidden), len(donor.settings.model.hidden) - 1
    before, after = base.geometry(donor.settings), base.geometry(new)
    inputs = parts.columns(after, (*before.categories, *before.numbers)).tolist()
    personal = range(after.dense, after.dense + len(pepnet.spans(after, new.model.personal_features)) * after.width)
    everything = slice(None)
    places: dict[str, tuple[Any, slice]] = {
        "epnet.in": (inputs, everything),
        "epnet.out": (everything, slice(before.embedded)),
        "ppnet.in": ([*inputs, *personal], everything),
    }
    places |= {f"ppnet.out{i}": (everything, columns if i == last else everything) for i in range(last + 1)}
    for name, (rows, outputs) in places.items():
        if f"{name}.weight" not in given:
            continue
        weight, bias = views[f"{name}.own.weight"], views[f"{name}.own.bias"]
        stack = len(weight) // (new.scenarios.slots + 1)
        mine = slice(slot * stack, slot * stack + stack)
        own, own_bias = weight[mine].zero_(), bias.view(len(weight), -1)[mine].zero_()
        own[:, rows, outputs] = given[f"{name}.weight"].view(stack, *given[f"{name}.weight"].shape[-2:])
        own_bias[:, outputs] = given[f"{name}.bias"].view(stack, -1)
