"""The table of models: adding one is one file and one line here."""

from collections.abc import Callable

from models import base, dupn, fm, lr, mmoe, pepnet, ple, shared_bottom, single, trs
from state import config

MODELS: dict[str, Callable[[config.Config], base.Model]] = {
    "dupn": dupn.DUPN,
    "fm": fm.FactorisationMachine,
    "lr": lr.LogisticRegression,
    "mmoe": mmoe.MMoE,
    "pepnet": pepnet.PEPNet,
    "ple": ple.PLE,
    "shared_bottom": shared_bottom.SharedBottom,
    "single": single.Single,
    "trs": trs.TRS,
}


def build(settings: config.Config) -> base.Model:
    """The model that the configuration names.

    Raises:
        config.ConfigError: there is no such model.
    """
    if settings.model.name not in MODELS:
        raise config.ConfigError(f'model.name: "{settings.model.name}" is unknown; allowed: {", ".join(sorted(MODELS))}')
    if not settings.features.categories:
        raise config.ConfigError("features.categories: a model needs at least one category; declare user and item at least")
    return MODELS[settings.model.name](settings)
