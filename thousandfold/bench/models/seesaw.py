"""Is one model better than another in a scenario? Areas under the curve on the same rows, paired by a bootstrap of users."""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from state.kernels import kernel
from thousandfold.bench import figures

F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
RESAMPLES = 200
LEAST_OF_A_KIND = 20
"""Positives and negatives below which an area is too rough for an error from resamples."""


class Difference(NamedTuple):
    """AUC of one less AUC of the other, its standard error and a two-sided p-value; all NaN where an AUC does not exist."""

    value: float
    stderr: float
    p: float

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval."""
        return self.value - 1.96 * self.stderr

    @property
    def high(self) -> float:
        """Upper end of the 95 % interval."""
        return self.value + 1.96 * self.stderr


@kernel
def _areas(score: F32, label: F32, user: I32, weight: I32, out: F64) -> None:
    """AUC of each resample of rows in ascending order of score; ties count half, NaN with one class."""
    for b in range(len(weight)):
        won, plus, minus, at = 0.0, 0.0, 0.0, 0
        while at < len(score):
            tied_plus, tied_minus, value = 0.0, 0.0, score[at]
            while at < len(score) and score[at] == value:
                if label[at] > 0:
                    tied_plus += weight[b, user[at]]
                else:
                    tied_minus += weight[b, user[at]]
                at += 1
            won += tied_plus * (minus + tied_minus / 2)
            minus += tied_minus
            plus += tied_plus
        out[b] = won / (plus * minus) if plus > 0 and minus > 0 else np.nan


def resampled(label: F32, score: F32, user: I32, weight: I32) -> F64:
    """(B,) AUC when the rows of user code u count `weight[b, u]` times."""
    out = np.empty(len(weight))
    order = np.argsort(score, kind="stable")
    _areas(score[order], label[order], user[order], weight, out)
    return out


def weights(users: int, seed: int, resamples: int = RESAMPLES) -> I32:
    """(B, U) how often each user is drawn when as many are drawn with replacement."""
    random = np.random.default_rng(seed)
    drawn = [np.bincount(random.integers(0, users, users), minlength=users) for _ in range(resamples)]
    return np.array(drawn, np.int32).reshape(resamples, users)


class Area(NamedTuple):
    """The AUC of each run (seed) of one model on some rows, and of each resample, averaged over runs."""

    runs: list[float]
    resamples: F64


def area(label: F32, runs: list[F32], user: I32, weight: I32) -> Area:
    """Of `runs`, one array of scores (R,) per seed."""
    mean = np.mean([resampled(label, score, user, weight) for score in runs], axis=0)
    return Area([figures.auc(label, score) for score in runs], mean)


def difference(one: Area, other: Area) -> Difference:
    """`one` less `other`, both over the same rows and resamples.

    The error adds two variances: of users (Efron and Tibshirani 1993, ch. 6, of the paired difference) and, with several runs,
    of the seeds. p by the normal approximation, since 200 resamples do not resolve .01 by counting.
    """
    value = float(np.mean(one.runs) - np.mean(other.runs))
    if not math.isfinite(value):
        return Difference(math.nan, math.nan, math.nan)
    differences = one.resamples - other.resamples
    differences = differences[np.isfinite(differences)]
    variance = float(np.var(differences, ddof=1)) if len(differences) > 1 else math.nan
    variance += sum(float(np.var(a.runs, ddof=1)) / len(a.runs) for a in (one, other) if len(a.runs) > 1)
    if variance == 0:
        return Difference(value, 0.0, 1.0 if value == 0 else 0.0)
    stderr = math.sqrt(variance)
    return Difference(value, stderr, math.erfc(abs(value) / stderr / math.sqrt(2)))
