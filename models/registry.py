"""The table of models: adding one is one file and one line here."""

from collections.abc import Callable

from models import (
    adasparse,
    base,
    cold,
    dupn,
    fm,
    hamur,
    losses,
    lr,
    m2m,
    mmoe,
    pepnet,
    ple,
    plugins,
    probe,
    sar_net,
    sass,
    shared_bottom,
    single,
    star,
    trs,
    two_tower,
)
from models.meta import registry as meta
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
    "two_tower": two_tower.TwoTower,
}


def build(settings: config.Config) -> base.Model:
    """The model that the configuration names: one of the table, or a user's own by its path (`models.plugins`).

    Raises:
        config.ConfigError: there is no such model, or it breaks the contract (`models.probe.model`).
    """
    name = settings.model.name
    own = plugins.named("model.name", name) if plugins.is_path(name) else None
    if own is None and name not in MODELS:
        raise config.ConfigError(
            f'model.name: "{name}" is unknown; allowed: {", ".join(sorted(MODELS))}, or "package.module:Model" of your own'
        )
    if not settings.features.categories:
        raise config.ConfigError("features.categories: a model needs at least one category; declare user and item at least")
    if own is None:
        return MODELS[name](settings)
    if not callable(own):
        raise config.ConfigError(f'model.name: "{name}" is not a class or function that takes the configuration')
    return probe.model(settings, own(settings))


def check(settings: config.Config) -> None:
    """Build what the configuration asks for, and import and try what is the user's own: before a process has data.

    Whether the machine has the device of `learner.device` is not asked.

    Raises:
        config.ConfigError: the model does not go with the features, a generator or a native network is asked for where there is
            none, or a model or a loss of the user's is missing or breaks its contract.
    """
    losses.plan(settings.objectives)
    model = build(settings)
    adapter = meta.build(settings, model)
    cold.layout(settings)
    if settings.model.native is True:
        meta.network(settings, model, meta.initial(model, adapter, settings.learner.seed))
