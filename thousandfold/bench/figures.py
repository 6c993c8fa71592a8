"""Exact figures of predictions, by the kind of label: binary, a class, a value, or a rank within a list. Ties count half."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from state.kernels import kernel

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


class Figures(NamedTuple):
    """Of `rows` rows. `calibration`: sum of the predictions over sum of the labels; NaN where a figure does not exist."""

    rows: int
    auc: float
    gauc: float
    logloss: float
    calibration: float


class ClassFigures(NamedTuple):
    """Of a label with several classes. `macro_auc`: every class against the others, the mean over the classes that occur."""

    rows: int
    macro_auc: float
    accuracy: float
    logloss: float


class ValueFigures(NamedTuple):
    """Of a number. `r2`: 1 less the squared error over that of the mean of the same labels, NaN where all are equal."""

    rows: int
    r2: float
    rmse: float
    mae: float


class ListFigures(NamedTuple):
    """Of a rank within a list. `list_auc`: the mean of `list_areas` by rows; `ndcg`: of ten places, the label is the gain."""

    rows: int
    list_auc: float
    ndcg: float


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


def ndcg(group: npt.NDArray[Any], label: npt.NDArray[Any], score: npt.NDArray[Any], k: int, *, graded: bool = True) -> float:
    """nDCG@k of each group, averaged over groups: gain 2^label - 1, discount 1 / log2(place + 1) (Burges et al. 2005).

    Labels that are no grades but say what a row is worth are gains themselves (Järvelin and Kekäläinen 2002): not `graded`.

    Tied rows share their gains (McSherry and Najork 2008), so that a constant score is worth a random order. A group without
    gain does not count.

    >>> ndcg(np.array([1, 1, 1]), np.array([0, 2, 1]), np.array([.1, .8, .9]), 1)
    0.3333333333333333
    """
    worth, order = label.astype(np.float64), np.lexsort((-score, group))
    gain = np.exp2(worth) - 1 if graded else worth
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


def class_figures(label: npt.NDArray[Any], p: npt.NDArray[Any]) -> ClassFigures:
    """Of classes (n,), as numbers, and their probabilities (n, classes); NaN without rows, and for an AUC with one class only."""
    if not len(label):
        return ClassFigures(0, *[float("nan")] * 3)
    own = label.astype(np.int64)
    areas = [auc(own == c, p[:, c]) for c in np.unique(own).tolist()]
    told = np.clip(p[np.arange(len(own)), own].astype(np.float64), 1e-7, 1)
    return ClassFigures(len(own), float(np.mean(areas)), float(np.mean(p.argmax(1) == own)), float(-np.mean(np.log(told))))


def value_figures(label: npt.NDArray[Any], value: npt.NDArray[Any]) -> ValueFigures:
    """Of labels and predictions (n,), in the units of the label; NaN without rows."""
    if not len(label):
        return ValueFigures(0, *[float("nan")] * 3)
    away = value.astype(np.float64) - label
    error, spread = float(np.mean(away**2)), float(np.var(label.astype(np.float64)))
    return ValueFigures(len(label), 1 - error / spread if spread else float("nan"), error**0.5, float(np.mean(np.abs(away))))


@kernel
def _list_areas(bounds: I64, label: F32, score: F32, area: F64) -> None:
    for i in range(len(bounds) - 1):
        won = pairs = 0.0
        for r in range(bounds[i], bounds[i + 1]):
            for q in range(bounds[i], bounds[i + 1]):
                if label[r] > label[q]:
                    share = np.float64(label[r]) - label[q]
                    pairs += share
                    won += share if score[r] > score[q] else share / 2.0 if score[r] == score[q] else 0.0
        area[i] = won / pairs if pairs > 0.0 else np.nan


def list_areas(lists: npt.NDArray[Any], label: F32, score: F32) -> tuple[I64, F64]:
    """Of each list its bounds (L + 1,) in the rows (n,), which stand list by list, and its AUC (L,): the share of the pairs of
    unlike labels in the right order, weighted by their difference; NaN without such a pair. Over lists, rows are weights.

    >>> list_areas(np.array([1, 1, 1, 2]), np.array([0, 5, 1, 1], np.float32), np.arange(4, 0, -1, np.float32))[1]
    array([0.4, nan])
    """
    bounds = np.flatnonzero(np.r_[True, lists[1:] != lists[:-1], True]) if len(lists) else np.zeros(1, np.int64)
    area = np.empty(len(bounds) - 1)
    _list_areas(bounds, label, score, area)
    return bounds, area


def list_figures(lists: npt.NDArray[Any], label: F32, score: F32, k: int = 10) -> ListFigures:
    """Of labels and scores (n,), which stand list by list; NaN where no list has unlike labels."""
    bounds, area = list_areas(lists, label, score)
    there = np.isfinite(area)
    if not there.any():
        return ListFigures(len(label), *[float("nan")] * 2)
    held = np.repeat(there, np.diff(bounds))
    gains = ndcg(lists[held], label[held], score[held], k, graded=False)
    return ListFigures(len(label), float(np.average(area[there], weights=np.diff(bounds)[there])), gains)
