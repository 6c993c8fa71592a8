"""Exact figures of predictions: AUC, AUC within groups, logloss, calibration. Ties count half."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]


class Figures(NamedTuple):
    """Of `rows` rows. `calibration`: sum of the predictions over sum of the labels; NaN where a figure does not exist."""

    rows: int
    auc: float
    gauc: float
    logloss: float
    calibration: float


def auc(label: npt.NDArray[Any], score: npt.NDArray[Any]) -> float:
    """Probability that a positive is scored above a negative (Mann-Whitney), NaN when one kind is missing.

    >>> auc(np.array([1, 0, 1]), np.array([.9, .9, .8]))
    0.25
    """
    return _grouped(np.zeros(len(label), np.int64), label, score)


def gauc(group: npt.NDArray[Any], label: npt.NDArray[Any], score: npt.NDArray[Any]) -> float:
    """AUC of each group that has both labels, averaged with the group's rows as weights (Zhu et al. 2017).

    >>> gauc(np.array([1, 1, 1, 2, 2, 3]), np.array([1, 0, 0, 0, 1, 1]), np.array([.9, .8, .7, .6, .5, .4]))
    0.6
    """
    return _grouped(group, label, score)


def _grouped(group: npt.NDArray[Any], label: npt.NDArray[Any], score: npt.NDArray[Any]) -> float:
    if not len(label):
        return float("nan")
    order = np.lexsort((score, group))
    g, s, y = group[order], score[order], label[order].astype(np.float64)
    new_group = np.r_[True, g[1:] != g[:-1]]
    new_tie = new_group | np.r_[True, s[1:] != s[:-1]]
    ties, starts = np.flatnonzero(new_tie), np.flatnonzero(new_group)
    sizes = np.diff(np.r_[ties, len(s)])
    rank = np.repeat(ties + (sizes + 1) / 2, sizes)
    rows = np.diff(np.r_[starts, len(s)])
    plus = np.add.reduceat(y, starts)
    won = np.add.reduceat(y * (rank - np.repeat(starts, rows)), starts) - plus * (plus + 1) / 2
    both = (plus > 0) & (plus < rows)
    if not both.any():
        return float("nan")
    areas = won[both] / (plus[both] * (rows - plus)[both])
    return float(np.average(areas, weights=rows[both]))


def ndcg(group: npt.NDArray[Any], label: npt.NDArray[Any], score: npt.NDArray[Any], k: int) -> float:
    """nDCG@k of each group, averaged over groups: gain 2^label - 1, discount 1 / log2(place + 1) (Burges et al. 2005).

    Tied rows share their gains (McSherry and Najork 2008), so that a constant score is worth a random order. A group without
    gain does not count.

    >>> ndcg(np.array([1, 1, 1]), np.array([0, 2, 1]), np.array([.1, .8, .9]), 1)
    0.3333333333333333
    """
    gain, order = np.exp2(label.astype(np.float64)) - 1, np.lexsort((-score, group))
    g, s = group[order], score[order]
    tie = np.cumsum(np.r_[True, (g[1:] != g[:-1]) | (s[1:] != s[:-1])]) - 1
    shared = (np.bincount(tie, gain[order]) / np.bincount(tie))[tie]
    best = gain[np.lexsort((-gain, group))]
    first = np.flatnonzero(np.r_[True, g[1:] != g[:-1]])
    place = np.arange(len(g)) - np.repeat(first, np.diff(np.r_[first, len(g)]))
    discount = np.where(place < k, 1 / np.log2(place + 2), 0.0)
    ideal = np.add.reduceat(best * discount, first)
    return float(np.mean(np.add.reduceat(shared * discount, first)[ideal > 0] / ideal[ideal > 0]))


def figures(group: npt.NDArray[Any], label: npt.NDArray[Any], score: npt.NDArray[Any]) -> Figures:
    """All figures of one set of rows; rows without a score (NaN) are left out."""
    known = np.isfinite(score)
    group, label, score = group[known], label[known], score[known].astype(np.float64)
    if not len(label):
        return Figures(0, *[float("nan")] * 4)
    p = np.clip(score, 1e-7, 1 - 1e-7)
    positives = float(label.sum())
    return Figures(
        len(label),
        auc(label, score),
        gauc(group, label, score),
        float(-np.mean(np.where(label > 0, np.log(p), np.log1p(-p)))),
        float(score.sum() / positives) if positives else float("nan"),
    )
