"""Which of the ways to do the same work a process takes, and what keeps it from the fastest.

The learner has, from fast to slow: `native`, the whole network by hand; `written`, a trunk whose gradient is written out, with
compiled towers; `compiled`, autograd through the trunk alone; `autograd`, for everything; and beside them `cuda`. Serving has
`native`; `compiled`, towers in native code under a trunk that torch runs; and `torch`.
"""

from typing import NamedTuple

from state import config


class Choice(NamedTuple):
    """An engine, and the setting that rules out the fastest, "" where it is that."""

    engine: str
    reason: str

    def __str__(self) -> str:
        """For a log."""
        return f"{self.engine}, because of {self.reason}" if self.reason else self.engine


def obstacle(settings: config.Config) -> str:
    """The first setting that only autograd, and in serving torch, can follow; "" without one.

    Hand-written and compiled passes know binary objectives of every scenario with their own loss, and first-order MAML on
    support rows of equal weight without decay.
    """
    for i, o in enumerate(settings.objectives):
        if o.kind != "binary":
            return f'objectives[{i}].kind = "{o.kind}"'
        for key, value in (("scenarios", o.scenarios), ("loss", o.loss)):
            if value:
                return f"objectives[{i}].{key}"
    if settings.meta.algorithm != "fomaml":
        return f'meta.algorithm = "{settings.meta.algorithm}"'
    named = {"meta.half_life_s": settings.meta.half_life_s, "meta.inner_decay": settings.meta.inner_decay}
    return next((key for key, value in named.items() if value), "")


def unnative(settings: config.Config) -> str:
    """What keeps a configuration without a native network from having one."""
    if settings.model.native is False:
        return "model.native = false"
    return obstacle(settings) or f'model.name = "{settings.model.name}", which has no native network as it is configured'


def towerless(settings: config.Config) -> str:
    """What keeps a model from compiled towers that no other setting keeps from them."""
    return f'model.name = "{settings.model.name}", which has no tower'
