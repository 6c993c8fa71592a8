"""What a user's own model must keep, tried on a few rows when it is built, so that an error names its cause."""

from typing import Any

import torch

from models import adaptation, base, scenario_slots
from state import config

ROWS = 3
MEMBERS = ("shapes", "objectives", "initial", "trunk", "tower", "fast_parameters", "inspect", "written", "native")
TOLERANCE = 1e-4


def model(settings: config.Config, found: Any) -> base.Model:
    """`found` as a model, after scoring a few random rows with it.

    Raises:
        config.ConfigError: it lacks a part of `base.Model`, shapes do not fit, a row's logit depends on the rows beside it, or
            its tower is not the one that adaptation knows.
    """

    def refuse(problem: str) -> config.ConfigError:
        return config.ConfigError(f'model.name: "{settings.model.name}" {problem}')

    for member in MEMBERS:
        if not hasattr(found, member):
            raise refuse(f"lacks `{member}`; see models.base.Model, and models.parts.Network for the usual ones")
    made: base.Model = found
    geometry = base.geometry(settings)
    if made.objectives != geometry.objectives:
        raise refuse(f"has objectives = {made.objectives}, the configuration needs {geometry.objectives} logit columns")
    slots = settings.scenarios.slots + 1
    for name, shape in made.shapes.items():
        if scenario_slots.OWN in name.split(".") and (not shape or shape[0] % slots):
            raise refuse(
                f"declares {name} of {tuple(shape)}; what scenarios own has {slots} times as many rows as each owns "
                "(scenarios.slots, and nobody's), else call it otherwise"
            )
    flat = made.initial(0)
    if flat.shape != (base.size(made.shapes),):
        raise refuse(f"initial() gave a vector of {tuple(flat.shape)}, its shapes need {(base.size(made.shapes),)}")
    generator = torch.Generator().manual_seed(0)
    parameters = base.views(torch.randn(flat.shape, generator=generator) * 0.1, made.shapes)
    absent = [name for name in made.fast_parameters() if name not in made.shapes]
    if absent:
        raise refuse(f"fast_parameters() names {', '.join(absent)}, which its shapes lack")
    fast = {name: parameters[name] for name in made.fast_parameters()}
    rows = base.Inputs(
        torch.randn(ROWS, geometry.row, generator=generator), torch.arange(ROWS).clamp(max=1), torch.full((ROWS,), 0.5)
    )
    try:
        with torch.no_grad():
            meta = made.trunk(parameters, rows)
            logit = made.tower(fast, meta)
            alone = made.tower(fast, made.trunk(parameters, base.Inputs(*(part[:1] for part in rows))))
            known = base.tower(adaptation.with_tower(fast), meta)
    except Exception as error:
        raise refuse(f"cannot score {ROWS} rows of {geometry.row} gathered numbers: {type(error).__name__}: {error}") from error
    if logit.shape != (ROWS, geometry.objectives):
        raise refuse(f"gives logits of {tuple(logit.shape)} for {ROWS} rows, {(ROWS, geometry.objectives)} are needed")
    if not torch.allclose(logit[:1], alone, atol=TOLERANCE):
        raise refuse("scores a row differently beside other rows; it must not look at a batch's statistics")
    if not torch.allclose(logit, known, atol=TOLERANCE):
        raise refuse("has a tower that adaptation does not know; end in models.base.tower, all else belongs in trunk()")
    return made
