"""What the mode `auto` decides while it learns: the learner's own policy and trial, told what each block gained by adaptation."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from learner import evidence, policy, step
from models import base
from state import config as configuration
from thousandfold.bench import kept, protocol, quality
from thousandfold.bench.meta import gains

F32 = npt.NDArray[np.float32]
AUTO = "auto"


class Decision(NamedTuple):
    """Of a log of `lists` lists: how many were adapted, whether it ended so, and when it first changed (NaN: it never did)."""

    lists: int
    adapted: int
    on: bool
    first_change: float


class Automatic(step.Trainer):
    """A learner whose scenarios are all `auto`: what a block gained decides from the next one on."""

    def __init__(self, config: configuration.Config, *, begins_on: bool, scenarios: npt.NDArray[np.uint64]) -> None:
        super().__init__(config)
        self.policy, self.lists = policy.Policy(config.meta), 0
        self.first_change = float("nan")
        self.granted: list[npt.NDArray[np.bool_]] = []
        """(L,) of every block: whether its lists are adapted."""
        for key in np.unique(scenarios).tolist() if begins_on else ():
            self.policy.scenarios[key] = policy.Scenario(f"{key:016x}", on=True)
            self.modes.grant(key, True)

    def score(self, batch: base.Batch) -> step.Scores:
        """See `step.Trainer`; then tell the policy, list by list, and do what it says."""
        said = super().score(batch)
        self.granted.append(~self.modes.on_trial(batch.scenario))
        first = (slice(None), slice(1))
        gain = evidence.gains(batch.n_items, batch.label[first], batch.weight[first], said.adapted[first], said.unadapted[first])
        for scenario, one in zip(batch.scenario, gain, strict=True):
            self.lists += 1
            self.policy.update(np.array([scenario]), one[None], {})
            if np.isnan(self.first_change) and any(state.changes for state in self.policy.scenarios.values()):
                self.first_change = float(self.lists)
        for key, state in self.policy.differing(self.modes.granted):
            self.modes.grant(key, state.on)
        return said


def run(
    config: configuration.Config, inputs: protocol.Inputs, seeds: int, progress: quality.Progress, store: gains.Store, *,
    begins_on: bool = False,
) -> tuple[gains.Run, list[Decision]]:  # fmt: skip
    """What serving says under `auto` and by the plain tower, and what was decided, one a seed."""
    of, name, passes = kept.digest(inputs), f"{AUTO}, begun on" if begins_on else AUTO, []
    for seed in range(seeds):
        own = quality.override(quality.override(config, "learner.seed", seed), "meta.mode", AUTO)
        tell = progress.stage(f"{name}, seed {seed}")
        passes.append(kept.arrays(*store, of, name, own, lambda c=own, t=tell: _pass(c, inputs, t, begins_on)))  # type: ignore[misc]
    decided = [Decision(len(p["granted"]), int(p["granted"].sum()), bool(p["ends_on"]), float(p["first_change"])) for p in passes]
    return gains.Run([p["served"] for p in passes], [p["unadapted"] for p in passes], 0.0), decided


def _pass(config: configuration.Config, inputs: protocol.Inputs, tell: protocol.Tell, begins_on: bool) -> kept.Arrays:
    trainer = Automatic(config, begins_on=begins_on, scenarios=inputs.scenario)
    said = protocol.run(config, inputs, tell, trainer)
    granted = np.concatenate(trainer.granted)
    rows, plain = np.repeat(granted, np.diff(inputs.start)), said.unadapted[:, 0]
    return {
        "served": np.where(rows, said.adapted[:, 0], plain), "unadapted": plain, "granted": granted,
        "ends_on": np.asarray(bool(trainer.modes.granted)), "first_change": np.asarray(trainer.first_change),
    }  # fmt: skip
