"""Meta-SGD (Li et al. 2017): every parameter has an inner rate of its own, learned, which may even turn its direction.

The rates of the hidden weights factorise into an input's and an output's, so that the change keeps its low rank and no weights
are built per task. All are inner_rate x (1 + a) with a learned from zero, of the hidden weights the product of two such factors.
"""

from models import base
from models.meta import adapters, low_rank


def adapter(given: adapters.Given) -> adapters.Adapter:
    """Gradient descent at learned rates."""
    settings, (inputs, width, outputs) = given.settings, given.tower
    shapes: base.Shapes = {
        "meta.rate.enter": (inputs,), "meta.rate.error": (width,), "meta.rate.bias": (width,),
        "meta.rate.output": (outputs, width), "meta.rate.output_bias": (outputs,),
    }  # fmt: skip

    def adapt(fast: base.Parameters, tasks: adapters.Tasks) -> low_rank.Change:
        enter, error, bias, output, output_bias = (1 + fast[name] for name in shapes)
        rate = settings.inner_rate
        rule = low_rank.Rule(
            lambda h: h * enter, lambda e: e * (rate * error), lambda g: g * (rate * bias), lambda g: g * (rate * output),
            lambda g: g * (rate * output_bias),
        )  # fmt: skip
        return low_rank.adapt(fast, tasks, rule, settings.inner_steps, given.keep, given.plan)

    return adapters.Adapter(shapes, adapters.without_parameters, adapt, low_rank.logits)
