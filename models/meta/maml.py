"""MAML (Finn et al. 2017) with its second order: the outer gradient knows how the inner gradient depends on the tower.

The support's meta inputs are constants, as a store of meta inputs makes them: the second order is that of the tower.
"""

from models import base
from models.meta import adapters, low_rank


def adapter(given: adapters.Given) -> adapters.Adapter:
    """Gradient descent that autograd follows."""
    settings, rule = given.settings, low_rank.sgd(given.settings.inner_rate)

    def adapt(fast: base.Parameters, tasks: adapters.Tasks) -> low_rank.Change:
        return low_rank.adapt(fast, tasks, rule, settings.inner_steps, given.keep, given.plan)

    return adapters.Adapter({}, adapters.without_parameters, adapt, low_rank.logits)
