"""A model that has learned some objectives becomes one with more: what it has learned stays, the new heads are fresh (D5).

Parameters whose shapes depend on the number of outputs hold the outputs along one axis: as they are, within something (the
objectives of a scenario), or with something within them (the experts of an objective). Which places of the axis belong to new
outputs is asked of the gradients: an old output's logit depends on none of them. So every model can be extended, a user's own
too, and the old objectives are predicted as before.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from models import base, registry, starts
from models.meta import registry as meta
from state import config

Arrays = Mapping[str, npt.NDArray[Any]]
Bools = npt.NDArray[np.bool_]
FLAT = ("dense", "dense.trained", "adam.mean", "adam.square")
"""Arrays with a number for each dense parameter."""
CLOSE = 1e-5
ROWS_OF_SLOT = 4


class _Side(NamedTuple):
    """A model of either configuration, with what adaptation adds to its dense vector."""

    settings: config.Config
    model: base.Model
    shapes: base.Shapes

    @property
    def outputs(self) -> int:
        """Logit columns."""
        return self.model.objectives

    def views(self, flat: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.float32]]:
        """Dense parameters by name, as views."""
        found = base.views(torch.from_numpy(flat), self.shapes)
        return {name: view.numpy() for name, view in found.items()}


def extend(old: config.Config, arrays: Arrays, new: config.Config, fresh: Arrays) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a model of the new configuration that says of the old objectives what the old model's `arrays` say.

    `fresh` are those of a new model: the new heads start as there, and so does what an adaptation has learned of all outputs at
    once. The optimiser goes on with what it knows of the old parameters.

    Raises:
        config.ConfigError: the two configurations differ in more than objectives at the end, or the model mixes its outputs.
    """
    refuse(old, new)
    before, after = _side(old), _side(new)
    arrays = starts.complete(arrays, before.outputs)
    kept = {name: _kept(before, after, name, seen) for name, seen in _seen(before, after).items()}
    kept = {name: places for name, places in kept.items() if places is not None}
    made = {name: _copied(arrays, fresh, name) for name in fresh}
    if any(name.startswith("cold.rows.") and made[name] is fresh[name] for name in fresh):
        # Rows that wait for a second one are whole or nothing; their labels are of the old objectives.
        made |= {name: fresh[name] for name in fresh if name.startswith("cold.rows.") or name == "cold.count"}
    for name in FLAT:
        flat = np.array(fresh[name], np.float32)
        views, learned = after.views(flat), before.views(np.array(arrays[name], np.float32))
        for parameter, places in kept.items():
            views[parameter][places] = learned[parameter]
        made[name] = flat
    _check(before, after, made["dense"], arrays["dense"])
    return made


def refuse(old: config.Config, new: config.Config) -> None:
    """Raise ConfigError unless the new configuration is the old one with objectives at the end."""
    names, wanted = ([o.name for o in c.objectives] for c in (old, new))
    if new.objectives[: len(old.objectives)] != old.objectives or len(wanted) == len(names):
        raise config.ConfigError(
            f"objectives: {', '.join(wanted)}; must be the old ones ({', '.join(names)}), unchanged and in their order, "
            "and after them the new ones"
        )
    for setting, own, must in (
        ("features", new.features, old.features),
        ("model", new.model, old.model),
        ("embedding", new.embedding, old.embedding),
        ("scenarios.slots", new.scenarios.slots, old.scenarios.slots),
        ("meta.algorithm", new.meta.algorithm, old.meta.algorithm),
        ("meta.rank", new.meta.rank, old.meta.rank),
        ("meta.context", new.meta.context, old.meta.context),
        ("optimizer.dense", new.optimizer.dense, old.optimizer.dense),
    ):
        if own != must:
            raise config.ConfigError(f"{setting}: must be as it was without the new objective; change it in a step of its own")


def _side(settings: config.Config) -> _Side:
    model = registry.build(settings)
    return _Side(settings, model, meta.shapes(model, meta.build(settings, model)))


def _copied(arrays: Arrays, fresh: Arrays, name: str) -> npt.NDArray[Any]:
    """An array of the old model, where it has one of the same form."""
    found = arrays.get(name)
    return fresh[name] if found is None or found.shape[1:] != fresh[name].shape[1:] else found


def _seen(before: _Side, after: _Side) -> dict[str, tuple[Bools, Bools] | None]:
    """Parameters that both have; of those that grow in the model, the places that logits of old and of new outputs depend on."""
    missing = [name for name in before.shapes if name not in after.shapes]
    if missing:
        raise config.ConfigError(
            f'model.name: "{after.settings.model.name}" has no {", ".join(missing)} with more objectives; it cannot be extended'
        )
    found: dict[str, tuple[Bools, Bools] | None] = dict.fromkeys(before.shapes)
    grown = [name for name in before.model.shapes if before.shapes[name] != after.shapes[name]]
    leaves, logit = _tried(after)
    sides = [_slopes(part, [leaves[name] for name in grown]) for part in (logit[:, : before.outputs], logit[:, before.outputs :])]
    return found | {name: (one, other) for name, one, other in zip(grown, *sides, strict=True)}


def _tried(side: _Side) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Parameters that ask for gradients, and logits (n, outputs) of made-up rows of every slot."""
    model = side.model
    generator = torch.Generator().manual_seed(0)
    flat = model.initial(0)
    flat = (flat + 0.1 * torch.randn(flat.shape, generator=generator)).requires_grad_()
    leaves = {name: view.detach().requires_grad_() for name, view in base.views(flat, model.shapes).items()}
    return leaves, _logits(model, leaves, _made_up(side.settings, generator))


def _made_up(settings: config.Config, generator: torch.Generator) -> base.Inputs:
    """Rows of every slot, some of each."""
    slot = torch.arange(settings.scenarios.slots + 1).repeat(ROWS_OF_SLOT)
    x = torch.randn(len(slot), base.geometry(settings).row, generator=generator)
    return base.Inputs(x, slot, torch.full((len(slot),), 0.5))


def _logits(model: base.Model, parameters: base.Parameters, rows: base.Inputs) -> torch.Tensor:
    return model.tower({name: parameters[name] for name in model.fast_parameters()}, model.trunk(parameters, rows))


def _slopes(logit: torch.Tensor, leaves: list[torch.Tensor]) -> list[Bools]:
    """Which numbers of each leaf the logits depend on."""
    weighted = (logit * torch.linspace(0.5, 1.5, logit.numel()).view_as(logit)).sum()
    found = torch.autograd.grad(weighted, leaves, retain_graph=True, materialize_grads=True)
    return [(slope != 0).numpy() for slope in found]


def _kept(before: _Side, after: _Side, name: str, seen: tuple[Bools, Bools] | None) -> Any:
    """An index of the new parameter that gives the places of the old one; None where it starts anew."""
    was, now = before.shapes[name], after.shapes[name]
    if was == now:
        return ...
    axes = [axis for axis in range(len(now)) if was[axis] != now[axis]] if len(was) == len(now) else []
    if seen is None:
        exact = len(axes) == 1 and (was[axes[0]], now[axes[0]]) == (before.outputs, after.outputs)
        return _along(axes[0], np.arange(before.outputs)) if exact else None
    found = [mask for axis in axes[:1] for mask in _masks(was[axis], now[axis], before.outputs, after.outputs)]
    fits = [mask for mask in found if len(axes) == 1 and _fits(mask, axes[0], *seen)]
    if len(fits) != 1:
        raise config.ConfigError(
            f'model.name: "{after.settings.model.name}" cannot be extended: what the new objective has of {name} {list(now)} '
            "takes part in the others, as in ple with model.levels above 1; train a model with all objectives from a replay"
        )
    return _along(axes[0], np.flatnonzero(fits[0]))


def _masks(was: int, now: int, old: int, new: int) -> Iterator[Bools]:
    """What an axis of (a, outputs, b) flattened may be: the places of the old outputs, for every b."""
    times, rest = divmod(was, old)
    if rest or times * new != now:
        return
    found = {tuple(np.arange(now) // b % new < old) for b in range(1, times + 1) if times % b == 0}
    yield from (np.array(mask) for mask in sorted(found))


def _fits(kept: Bools, axis: int, old: Bools, new: Bools) -> bool:
    """Whether old logits depend on nothing that is not kept, and new logits on nothing that is."""
    others = tuple(k for k in range(old.ndim) if k != axis)
    return not (old.any(others) & ~kept).any() and not (new.any(others) & kept).any()


def _along(axis: int, places: npt.NDArray[np.int64]) -> tuple[Any, ...]:
    return (*(slice(None) for _ in range(axis)), places)


def _check(before: _Side, after: _Side, dense: npt.NDArray[Any], learned: npt.NDArray[Any]) -> None:
    """Raise ConfigError if an old objective is predicted otherwise than before."""
    rows = _made_up(before.settings, torch.Generator().manual_seed(1))
    with torch.no_grad():
        said, was = (
            _logits(side.model, base.views(torch.from_numpy(np.array(flat, np.float32)), side.shapes), rows)
            for side, flat in ((after, dense), (before, learned))
        )
    if not torch.allclose(said[:, : before.outputs], was, atol=CLOSE, rtol=CLOSE):
        raise config.ConfigError(
            f'model.name: "{after.settings.model.name}" cannot be extended: with one more objective the others are predicted '
            "otherwise, so it mixes them; train a model with all objectives from a replay"
        )
