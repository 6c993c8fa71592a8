"""Predictions of real traffic from a model that learned from traffic without most of its negatives.

A producer that keeps a share w of the rows without an action makes every action look more likely than it is. A single
probability p is put right as p / (p + (1 - p) / w) (He et al., Practical Lessons from Predicting Clicks on Ads at Facebook,
ADKDD 2014, section 6.3). With several objectives a row was dropped only where none of them was positive: each probability
counts for as many real rows as the sampled row stands for, 1 / (q + (1 - q) / w), where q is the chance of any action. The
greatest of the probabilities is taken for q: exact where one action precedes all others, as a click does a purchase, else a
little low. Only binary objectives are corrected.
"""

import numpy as np
import numpy.typing as npt

from models import losses
from models.moments import OTHERS
from state import config as configuration
from state import ids

F32 = npt.NDArray[np.float32]


class Correction:
    """`scenarios.negative_sampling` of a configuration, undone in predictions."""

    def __init__(self, config: configuration.Config) -> None:
        shares = config.scenarios.negative_sampling
        self._others = shares.get(OTHERS, 1.0)
        self._shares = {ids.of(name): share for name, share in shares.items() if name != OTHERS}
        both = zip(config.objectives, losses.plan(config.objectives).parts, strict=True)
        self._binary = [(part.at, frozenset(map(ids.of, o.scenarios))) for o, part in both if part.kind == "binary"]

    def apply(self, scores: F32, scenario: int) -> F32:
        """Predictions (R, outputs) as of real traffic, for the hash of a scenario; the same array where nothing was dropped."""
        share = self._shares.get(scenario, self._others)
        at = [column for column, known in self._binary if not known or scenario in known]
        if share == 1.0 or not at:
            return scores
        sampled = scores[:, at].astype(np.float64)
        acted = sampled.max(1, keepdims=True)
        out = scores.copy()
        out[:, at] = sampled / (acted + (1.0 - acted) / share)
        return out
