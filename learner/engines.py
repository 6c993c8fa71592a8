"""The engine behind a trainer: the fastest that knows the configuration."""

import torch

from learner import passes, sampled_softmax
from learner.meta import registry as meta_learners
from models import base, two_tower
from models.engines import Choice, obstacle, towerless, unnative
from models.meta import adapters
from models.meta import registry as meta
from state import config


def choose(
    settings: config.Config, model: base.Model, adapter: adapters.Adapter, flat: torch.Tensor, gradient: base.Gradient,
    native: bool = True, compiled: bool = True,
) -> tuple[passes.Engine, Choice]:  # fmt: skip
    """An engine over the parameters `flat`, which fills `gradient`, and why it is that one.

    `native` and `compiled` as for `learner.step.Trainer`.

    Raises:
        config.ConfigError: there is no native network or no device although it is asked for.
    """
    if settings.retrieval.loss == "softmax" and isinstance(model, two_tower.TwoTower):
        return sampled_softmax.SampledSoftmax(model, settings, flat, gradient), Choice("autograd", 'retrieval.loss = "softmax"')
    drops = settings.model.dropout > 0
    network = meta.network(settings, model, flat) if native and not drops else None
    outer = meta_learners.META_LEARNERS[settings.meta.algorithm].outer(settings.meta)
    place = passes.device(settings)
    if place != "cpu":
        return passes.OnDevice(settings, outer, flat, gradient, place), Choice(
            place, f'learner.device = "{settings.learner.device}"'
        )
    if network is not None:
        return passes.Native(network, gradient), Choice("native", "")
    if drops:
        return passes.Autograd(model, adapter, outer, settings, flat, gradient.flat), Choice("autograd", "model.dropout")
    reason = unnative(settings) if native else "a trainer without the native network"
    towers = "tower.weight" in model.fast_parameters()
    if compiled and towers and not obstacle(settings):
        engine = passes.compiled(model, settings, flat, gradient)
        return engine, Choice("written" if isinstance(engine, passes.Written) else "compiled", reason)
    if not obstacle(settings):
        reason = "a trainer without compiled towers" if towers else towerless(settings)
    return passes.Autograd(model, adapter, outer, settings, flat, gradient.flat), Choice("autograd", reason)
