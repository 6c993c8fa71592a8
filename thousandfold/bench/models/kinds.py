"""What an objective is judged by, according to its kind: its figures, and the one in which models are compared.

That one is the higher the better, and is resampled over users: AUC of a binary objective, the mean of the classes' AUCs of a
multiclass one, R2 of a regression, the AUC within lists of a ranking.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from thousandfold.bench import figures, quality, report
from thousandfold.bench.models import seesaw

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Figures = figures.Figures | figures.ClassFigures | figures.ValueFigures | figures.ListFigures


class Kind(NamedTuple):
    """The figures of a kind in the order of the tables: the first is the one that models are compared in, `title` its name."""

    title: str
    better: dict[str, report.Better]
    units: dict[str, str]

    @property
    def headline(self) -> str:
        """The first figure."""
        return next(iter(self.better))


KINDS = {
    "binary": Kind("AUC", quality.BETTER, quality.UNITS),
    "multiclass": Kind(
        "macro AUC",
        {"macro_auc": "higher", "accuracy": "higher", "logloss": "lower"},
        {"macro_auc": "AUC of a class against the others", "accuracy": "share", "logloss": "nats"},
    ),
    "regression": Kind(
        "R2", {"r2": "higher", "rmse": "lower", "mae": "lower"}, {"r2": "share of the variance", "rmse": "label", "mae": "label"}
    ),
    "ranking": Kind(
        "list AUC", {"list_auc": "higher", "ndcg": "higher"}, {"list_auc": "AUC in a list", "ndcg": "of the best order"}
    ),
}


class Rows(NamedTuple):
    """Rows with a label (n,): it, their group, their list (ascending), and the code of their user."""

    label: F32
    group: U64
    lists: I64
    user: I32


def judge(kind: str, rows: Rows, score: F32) -> Figures:
    """The figures of predictions (n, outputs); rows without one (NaN) are left out."""
    known = np.isfinite(score).all(1)
    label, own = rows.label[known], score[known]
    if kind == "multiclass":
        return figures.class_figures(label, own)
    if kind == "regression":
        return figures.value_figures(label, own[:, 0])
    if kind == "ranking":
        return figures.list_figures(rows.lists[known], label, own[:, 0])
    return figures.figures(rows.group[known], label, own[:, 0])


def least(kind: str, rows: Rows) -> tuple[int, str]:
    """How many rows there are of the rarest sort that a comparison needs, and what they are; below 20 it says nothing."""
    label = rows.label
    if kind == "multiclass":
        return len(label) - int(np.bincount(label.astype(np.int64)).max()), "another class than the most frequent"
    if kind == "regression":
        return (len(label) if np.ptp(label) > 0 else 0), "values that differ"
    if kind == "ranking":
        bounds, areas = figures.list_areas(rows.lists, label, label)
        return int(np.diff(bounds)[np.isfinite(areas)].sum()), "others in their list that were acted on less or more"
    positives = int(label.sum())
    return min((positives, "a positive"), (len(label) - positives, "a negative"))


def area(kind: str, rows: Rows, runs: Sequence[F32], weight: I32) -> seesaw.Area:
    """The first figure of each run (n, outputs), and of each resample of users (`seesaw.weights`), averaged over runs."""
    headline = KINDS[kind].headline
    mean = np.mean([_resampled(kind, rows, score, weight) for score in runs], axis=0)
    return seesaw.Area([float(getattr(judge(kind, rows, score), headline)) for score in runs], mean)


def _resampled(kind: str, rows: Rows, score: F32, weight: I32) -> F64:
    """(B,) the first figure when the rows of user code u count `weight[b, u]` times; NaN where it does not exist."""
    label, user = rows.label, rows.user
    if kind == "binary":
        return seesaw.resampled(label, np.ascontiguousarray(score[:, 0]), user, weight)
    if kind == "multiclass":
        own = label.astype(np.int64)
        each = [
            seesaw.resampled((own == c).astype(np.float32), np.ascontiguousarray(score[:, c]), user, weight)
            for c in np.unique(own)
        ]
        whole: F64 = np.mean(each, axis=0)
        return whole
    if kind == "regression":
        y = label.astype(np.float64) - float(label.mean(dtype=np.float64))
        n, total, square, error = (
            _of_users(v, user, weight) for v in (np.ones_like(y), y, y * y, (score[:, 0].astype(np.float64) - label) ** 2)
        )
        return 1 - error / (square - total**2 / n)
    bounds, areas = figures.list_areas(rows.lists, label, np.ascontiguousarray(score[:, 0]))
    there = np.isfinite(areas)
    mass, whose = np.diff(bounds)[there].astype(np.float64), user[bounds[:-1][there]]
    return _of_users(areas[there] * mass, whose, weight) / _of_users(mass, whose, weight)


def _of_users(values: F64, user: I32, weight: I32) -> F64:
    """(B,) sums of values (n,) in each resample."""
    summed: F64 = weight.astype(np.float64) @ np.bincount(user, values, minlength=weight.shape[1])
    return summed
