"""The table of models: adding one is one file and one line here."""

from collections.abc import Callable

from models import adasparse, base, dupn, fm, hamur, lr, m2m, mmoe, pepnet, ple, sar_net, sass, shared_bottom, single, star, trs
from state import config

MODELS: dict[str, Callable[[config.Config], base.Model]] = {
    "adasparse": adasparse.AdaSparse,
    "dupn": dupn.DUPN,
    "fm": fm.FactorisationMachine,
    "hamur": hamur.Hamur,
    "lr": lr.LogisticRegression,
    "m2m": m2m.M2M,
    "mmoe": mmoe.MMoE,
    "pepnet": pepnet.PEPNet,
    "ple": ple.PLE,
    "sar_net": sar_net.SarNet,
    "sass": sass.Sass,
    "shared_bottom": shared_bottom.SharedBottom,
    "single": single.Single,
    "star": star.Star,
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
