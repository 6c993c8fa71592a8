"""What the mode `auto` would have decided: the learner's own policy, told what adapting a plain model gained list by list."""

from typing import NamedTuple

import numpy as np

from learner import evidence, policy
from state import config as configuration
from thousandfold.bench import protocol
from thousandfold.bench.meta import gains

ALL = 0
"""The policy is asked about the whole log as one scenario."""


class Decision(NamedTuple):
    """Of a log of `lists` lists: how many were adapted, whether it ended so, and when it first changed (NaN: it never did)."""

    lists: int
    adapted: int
    on: bool
    first_change: float


def decide(
    config: configuration.Config, inputs: protocol.Inputs, run: gains.Run, *, begins_on: bool = False
) -> list[Decision]:  # fmt: skip
    """One a seed. `run` should be fine-tuning alone: while a scenario is off, its model learns without meta-learning."""
    return [_decided(config, gain, begins_on) for gain in _gains(inputs, run)]


def _gains(inputs: protocol.Inputs, run: gains.Run) -> list[policy.F64]:
    label, n_items = inputs.label[:, :1], np.diff(inputs.start)
    weight = np.isfinite(label).astype(np.float32)
    return [
        evidence.gains(n_items, label, weight, adapted[:, None], unadapted[:, None])
        for adapted, unadapted in zip(run.adapted, run.unadapted, strict=True)
    ]


def _decided(config: configuration.Config, gain: policy.F64, begins_on: bool) -> Decision:
    judge, scenario, adapted, first = policy.Policy(config.meta), np.array([ALL], np.uint64), 0, float("nan")
    judge.scenarios[ALL] = policy.Scenario("all", on=begins_on)
    for at, one in enumerate(gain):
        adapted += judge.scenarios[ALL].on
        judge.update(scenario, one[None], {})
        if np.isnan(first) and judge.scenarios[ALL].changes:
            first = at + 1.0
    return Decision(len(gain), adapted, judge.scenarios[ALL].on, first)
