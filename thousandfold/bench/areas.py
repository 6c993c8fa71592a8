"""Areas under the curve with the say that every user has in them, so that paired differences have errors without resamples.

Rows of one user are not independent, so the error of an area, and of a difference of two on the same rows, is that of a sum over
users: the influence of a user is what the area changes by, to first order, as the user's rows count more. For the AUC these are
DeLong's placements summed by user (DeLong et al. 1988; Obuchowski 1997), for the GAUC those of a ratio of sums.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Column = npt.NDArray[Any]


class Rows(NamedTuple):
    """Labels 0 or 1, groups, and users as codes below `users`, (R,) each."""

    label: Column
    group: Column
    user: Column
    users: int


class Area(NamedTuple):
    """An area, NaN where it does not exist, and the influence (U,) of each user on it, which sums to zero."""

    value: float
    influence: F64


class Difference(NamedTuple):
    """The mean over runs of one area less another; its standard error, NaN with fewer than two users."""

    value: float
    stderr: float


def ascending(score: Column) -> I64:
    """(R,) rows in order of score, as `auc` wants them; a part of the rows is a part of this."""
    return np.argsort(score, kind="stable")


def grouped(group: Column, score: Column) -> I64:
    """(R,) rows by group, then in order of score, as `gauc` wants them."""
    return np.lexsort((score, group))


def auc(rows: Rows, score: Column, order: I64) -> Area:
    """Of the rows in `order`, which is in order of score. Ties count half."""
    s, positive = score[order], rows.label[order] > 0
    plus, minus = int(positive.sum()), int(len(s) - positive.sum())
    if not plus or not minus:
        return Area(math.nan, np.zeros(rows.users))
    ties, sizes = _runs(s[1:] != s[:-1])
    tied = np.add.reduceat(positive, ties, dtype=np.int64)
    below = np.cumsum(tied) - tied / 2
    beaten = np.repeat(ties + sizes / 2 - (np.cumsum(tied) - tied / 2), sizes) / minus
    above = np.repeat(plus - below, sizes) / plus
    own = np.where(positive, beaten, above)
    value = float(beaten[positive].mean())
    share = (own - value) / np.where(positive, plus, minus)
    return Area(value, _by_user(rows, order, share))


def gauc(rows: Rows, score: Column, order: I64) -> Area:
    """The AUC of each group with both labels, weighted by rows; `order` is by group, then score.

    A group's influence goes to the user of its first row.
    """
    if not len(order):
        return Area(math.nan, np.zeros(rows.users))
    g, s, y = rows.group[order], score[order], (rows.label[order] > 0).astype(np.float64)
    starts, count = _runs(g[1:] != g[:-1])
    ties, sizes = _runs((g[1:] != g[:-1]) | (s[1:] != s[:-1]))
    rank = np.repeat(ties + (sizes + 1) / 2, sizes) - np.repeat(starts, count)
    plus = np.add.reduceat(y, starts)
    both = (plus > 0) & (plus < count)
    if not both.any():
        return Area(math.nan, np.zeros(rows.users))
    won = np.add.reduceat(y * rank, starts) - plus * (plus + 1) / 2
    areas, weight = won[both] / (plus * (count - plus))[both], count[both]
    value = float(np.average(areas, weights=weight))
    return Area(value, _by_user(rows, order[starts[both]], weight * (areas - value) / weight.sum()))


def _by_user(rows: Rows, at: I64, share: F64) -> F64:
    return np.bincount(rows.user[at], share, rows.users).astype(np.float64)


def _runs(new: npt.NDArray[np.bool_]) -> tuple[I64, I64]:
    """Starts and lengths of the runs between which `new` (R - 1,) is true."""
    starts = np.flatnonzero(np.r_[True, new])
    return starts, np.diff(np.r_[starts, len(new) + 1])


def difference(one: Sequence[Area], other: Sequence[Area]) -> Difference:
    """Runs of one less runs of the other, in pairs (same rows, same seed); what has no partner is left out.

    The variance is that of users (all runs see the same ones, so their influences are averaged) and, over the number of runs,
    that of the runs themselves.
    """
    pairs = list(zip(one, other, strict=False))
    values = [a.value - b.value for a, b in pairs]
    value = float(np.mean(values))
    influence = np.mean([a.influence - b.influence for a, b in pairs], axis=0)
    users = int(np.count_nonzero(np.any([a.influence != 0 for pair in pairs for a in pair], axis=0)))
    if not math.isfinite(value) or users < 2:
        return Difference(value, math.nan)
    variance = users / (users - 1) * float(influence @ influence)
    if len(pairs) > 1:
        variance += float(np.var(values, ddof=1)) / len(pairs)
    return Difference(value, math.sqrt(variance))


def mean(runs: Sequence[Area]) -> Difference:
    """An area by itself, with its error."""
    return difference(runs, [Area(0.0, np.zeros_like(a.influence)) for a in runs])
