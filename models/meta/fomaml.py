"""First-order MAML (Finn et al. 2017): gradient steps on the tower, whose outcome the outer loss sees as a constant shift."""

from models import adaptation, base
from models.meta import adapters


def adapter(given: adapters.Given) -> adapters.Adapter:
    """The closed form of `models.adaptation`, which models with a native network run natively."""

    def adapt(fast: base.Parameters, tasks: adapters.Tasks) -> adaptation.Adapted:
        s = given.settings
        return adaptation.adapt(fast, *tasks, s.inner_rate, s.inner_steps, given.plan, given.keep)

    return adapters.Adapter({}, adapters.without_parameters, adapt, adaptation.logits)
