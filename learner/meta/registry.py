"""The table of meta-learning algorithms: how each adapts (`models.meta`), and what its outer gradient comes from."""

from collections.abc import Callable
from typing import NamedTuple

from learner.meta import outer, reptile
from models.meta import adapters, registry
from state import config


class MetaLearner(NamedTuple):
    """An algorithm: adaptation, for a model and a configuration, and outer loss."""

    adapter: Callable[[adapters.Given], adapters.Adapter]
    outer: Callable[[config.MetaLearning], outer.Loss]


def _query(_: config.MetaLearning) -> outer.Loss:
    return outer.query


OTHERS = {"reptile": reptile.loss}
"""Algorithms whose outer gradient is not that of the adapted query loss."""
META_LEARNERS = {name: MetaLearner(adapter, OTHERS.get(name, _query)) for name, adapter in registry.ADAPTERS.items()}
"""By `meta.algorithm`."""
