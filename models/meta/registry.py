"""The table of adaptations, and how a model's dense vector is laid out with theirs."""

from collections.abc import Callable

import torch

from models import base, engines, losses
from models.meta import adapters, anil, bias, cavia, film, fomaml, learned_update, maml, meta_sgd, paml, ridge
from state import config

ADAPTERS: dict[str, Callable[[adapters.Given], adapters.Adapter]] = {
    "anil": anil.adapter,
    "bias": bias.adapter,
    "cavia": cavia.adapter,
    "film": film.adapter,
    "fomaml": fomaml.adapter,
    "learned_update": learned_update.adapter,
    "maml": maml.adapter,
    "meta_sgd": meta_sgd.adapter,
    "paml": paml.adapter,
    "reptile": fomaml.adapter,
    "ridge": ridge.adapter,
}
"""By `meta.algorithm`. Reptile differs from first-order MAML in what it learns from, not in how it adapts."""
SEED = 0x6D657461
"""Mixed into the seed of the model, so that the two draw different numbers."""


def build(settings: config.Config, model: base.Model) -> adapters.Adapter:
    """The adaptation that the configuration names, for a model."""
    given = adapters.Given(settings.meta, adapters.tower_of(model), losses.plan(settings.objectives))
    return ADAPTERS[settings.meta.algorithm](given)


def network(settings: config.Config, model: base.Model, flat: torch.Tensor) -> base.NativeTrunk | None:
    """The native network over the model's parameters that `model.native` asks for; None: torch does the work.

    Raises:
        config.ConfigError: `model.native` is true, and there is no native network for this configuration.
    """
    wanted = settings.model.native
    if wanted is False:
        return None
    found = None if engines.obstacle(settings) else model.native(flat)
    if found is None and wanted is True:
        raise config.ConfigError(
            f'model.native: true, but a native network is ruled out by {engines.unnative(settings)}; set it to "auto" or false'
        )
    return found


def shapes(model: base.Model, adapter: adapters.Adapter) -> base.Shapes:
    """The whole dense vector: the model's parameters, then the adaptation's."""
    return model.shapes | adapter.shapes


def initial(model: base.Model, adapter: adapters.Adapter, seed: int) -> torch.Tensor:
    """What the dense vector starts from."""
    flat = model.initial(seed)
    if not adapter.shapes:
        return flat
    more = torch.zeros(base.size(adapter.shapes))
    adapter.start(base.views(more, adapter.shapes), torch.Generator().manual_seed(seed ^ SEED))
    return torch.cat([flat, more])


def fast(parameters: base.Parameters, model: base.Model, adapter: adapters.Adapter) -> dict[str, torch.Tensor]:
    """The fast parameters and the adaptation's, of all."""
    return {name: parameters[name] for name in (*model.fast_parameters(), *adapter.shapes)}
