"""The counting behind prequential figures: compiled passes over rows that fill sums and histograms.

An objective's place in these arrays is its number; its kind, first output and number of outputs are a row of `shape` (O, 3).
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from state.kernels import kernel

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

BUCKETS = 1000
LOSS, PREDICTED, POSITIVE, WEIGHT, COUNT = range(5)
"""Sums: logloss, of a regression squared error; predictions, of a multiclass objective right ones; labels; weights; rows."""
SUMS = 5
PAIR_SUMS = 5
KINDS = ("binary", "multiclass", "regression", "ranking")
BINARY, MULTICLASS, REGRESSION, RANKING = range(4)


@kernel
def _count(hist: F64, sums: F64, s: int, o: int, v: int, p: float, y: float, w: float) -> float:
    """Count one score and return its logloss, or NaN if it does not count (no number in [0, 1], or no weight)."""
    if not (p >= 0.0 and p <= 1.0) or w <= 0.0:
        return np.nan
    bucket = min(int(p * BUCKETS), BUCKETS - 1)
    clipped = min(max(p, 1e-7), 1.0 - 1e-7)
    loss = -(y * np.log(clipped) + (1.0 - y) * np.log(1.0 - clipped))
    hist[s, o, v, 1, bucket] += w * y
    hist[s, o, v, 0, bucket] += w * (1.0 - y)
    sums[s, o, v, LOSS] += w * loss
    sums[s, o, v, PREDICTED] += w * p
    sums[s, o, v, POSITIVE] += w * y
    sums[s, o, v, WEIGHT] += w
    sums[s, o, v, COUNT] += 1.0
    return float(loss)


@kernel
def _count_other(sums: F64, s: int, o: int, v: int, kind: int, found: F32, y: float, w: float) -> float:
    """The same for the outputs `found` of an objective that is not binary; a ranking has no loss of single rows."""
    if w <= 0.0 or not np.all(np.isfinite(found)):
        return np.nan
    sums[s, o, v, WEIGHT] += w
    sums[s, o, v, COUNT] += 1.0
    if kind == RANKING:
        return np.nan
    if kind == MULTICLASS:
        loss = -np.log(min(max(np.float64(found[int(y)]), 1e-7), 1.0))
        sums[s, o, v, PREDICTED] += w if np.argmax(found) == int(y) else 0.0
    else:
        loss = (np.float64(found[0]) - y) ** 2
        sums[s, o, v, PREDICTED] += w * np.float64(found[0])
    sums[s, o, v, LOSS] += w * loss
    sums[s, o, v, POSITIVE] += w * y
    return float(loss)


@kernel
def update(
    shape: I64, slots: I32, users: U64, n_items: npt.NDArray[Any], scores: F32, label: F32, weight: F32, hist: F64, sums: F64,
    pair: F64, ring_slot: I32, ring_user: U64, ring_score: F32, ring_label: F32, ring_weight: F32, ring_list: I64, total: I64,
    losses: F64,
) -> None:  # fmt: skip
    """One pass over the rows: cumulative sums, the ring of rows, and each list's mean adapted loss of its first objective.

    `shape` (O, 3) has the kind, first output and number of outputs of each objective. A list's first objective is the first
    that it has labels of.
    """
    variants, objectives, outputs = scores.shape[0], label.shape[1], scores.shape[2]
    row = 0
    difference, held = np.zeros(objectives), np.zeros(objectives)
    loss = np.zeros(variants)
    for i in range(len(slots)):
        s = slots[i]
        difference[:], held[:] = 0.0, 0.0
        losses[i], first = 0.0, 0.0
        begin, lead = total[0], 0
        while lead < objectives - 1 and np.all(np.isnan(label[row : row + n_items[i], lead])):
            lead += 1
        for r in range(row, row + n_items[i]):
            at = total[0] % len(ring_slot)
            ring_slot[at], ring_user[at] = s, users[i]
            if len(ring_list):
                ring_list[at] = begin
            for v in range(variants):
                for c in range(outputs):
                    ring_score[at, v, c] = scores[v, r, c]
            total[0] += 1
            for o in range(objectives):
                y, w = label[r, o], weight[r, o]
                ring_label[at, o], ring_weight[at, o] = y, w
                kind, a = shape[o, 0], shape[o, 1]
                for v in range(variants):
                    if kind == BINARY:
                        loss[v] = _count(hist, sums, s, o, v, np.float64(scores[v, r, a]), y, w)
                    else:
                        loss[v] = _count_other(sums, s, o, v, kind, scores[v, r, a : a + shape[o, 2]], y, w)
                if loss[0] == loss[0] and loss[1] == loss[1]:
                    difference[o] += w * (loss[1] - loss[0])
                    held[o] += w
                if o == lead and loss[0] == loss[0]:
                    losses[i] += w * loss[0]
                    first += w
        row += n_items[i]
        losses[i] = losses[i] / first if first > 0.0 else np.nan
        for o in range(objectives):
            d, n = difference[o], held[o]
            pair[s, o, 0] += d
            pair[s, o, 1] += n
            pair[s, o, 2] += d * d
            pair[s, o, 3] += d * n
            pair[s, o, 4] += n * n


@kernel
def window(shape: I64, slots: I32, scores: F32, label: F32, weight: F32, hist: F64, sums: F64) -> None:
    """The cumulative sums of `update` over the rows of a window."""
    for r in range(len(slots)):
        s = slots[r]
        for o in range(label.shape[1]):
            y, w, kind, a = label[r, o], weight[r, o], shape[o, 0], shape[o, 1]
            for v in range(scores.shape[1]):
                if kind == BINARY:
                    _count(hist, sums, s, o, v, np.float64(scores[r, v, a]), y, w)
                else:
                    _count_other(sums, s, o, v, kind, scores[r, v, a : a + shape[o, 2]], y, w)


@kernel
def grouped(shape: I64, kind: int, order: I64, group: U64, slots: I32, scores: F32, label: F32, weight: F32, out: F64) -> None:
    """Add to `out` (S, O, V, 2) the weighted sum of the groups' AUCs and its weight, for the objectives of one kind.

    `order` sorts the rows by group.
    """
    rows = len(order)
    start = 0
    while start < rows:
        stop = start + 1
        while stop < rows and group[order[stop]] == group[order[start]]:
            stop += 1
        members = order[start:stop]
        s = slots[members[0]]
        for o in range(label.shape[1]):
            if shape[o, 0] != kind:
                continue
            for v in range(scores.shape[1]):
                found = scores[:, v, shape[o, 1]]
                if kind == BINARY:
                    value, mass = _group_auc(members, found, label[:, o], weight[:, o])
                else:
                    value, mass = _list_auc(members, found, label[:, o], weight[:, o])
                if mass > 0.0:
                    out[s, o, v, 0] += value * mass
                    out[s, o, v, 1] += mass
        start = stop


@kernel
def _group_auc(members: I64, scores: F32, label: F32, weight: F32) -> tuple[float, float]:
    """(AUC, weight of the rows) of one group, (0, 0) if it lacks one of the labels."""
    n = 0
    p, plus, minus = np.empty(len(members)), np.empty(len(members)), np.empty(len(members))
    pluses = minuses = 0.0
    for r in members:
        if scores[r] == scores[r] and weight[r] > 0.0:
            p[n], plus[n], minus[n] = scores[r], weight[r] * label[r], weight[r] * (1.0 - label[r])
            pluses += plus[n]
            minuses += minus[n]
            n += 1
    if pluses <= 0.0 or minuses <= 0.0:
        return 0.0, 0.0
    order = np.argsort(p[:n])
    below = won = 0.0
    i = 0
    while i < n:
        j = i
        tied_plus = tied_minus = 0.0
        while j < n and p[order[j]] == p[order[i]]:
            tied_plus += plus[order[j]]
            tied_minus += minus[order[j]]
            j += 1
        won += tied_plus * (below + tied_minus / 2.0)
        below += tied_minus
        i = j
    return won / (pluses * minuses), pluses + minuses


@kernel
def _list_auc(members: I64, scores: F32, label: F32, weight: F32) -> tuple[float, float]:
    """(AUC over pairs with unlike labels, each weighted by their difference; weight of the rows), (0, 0) without such pairs."""
    won = pairs = mass = 0.0
    for r in members:
        if not (scores[r] == scores[r] and weight[r] > 0.0):
            continue
        mass += weight[r]
        for q in members:
            if label[r] > label[q] and scores[q] == scores[q] and weight[q] > 0.0:
                share = weight[r] * weight[q] * (label[r] - label[q])
                pairs += share
                won += share if scores[r] > scores[q] else share / 2.0 if scores[r] == scores[q] else 0.0
    return (won / pairs, mass) if pairs > 0.0 else (0.0, 0.0)


def auc(hist: F64) -> F64:
    """AUC of histograms (..., 2, buckets), label first; ties count half. NaN where a label is missing.

    >>> auc(np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]])).round(4).item()
    0.9444
    """
    minus, plus = hist[..., 0, :], hist[..., 1, :]
    below = np.cumsum(minus, -1) - minus
    with np.errstate(invalid="ignore", divide="ignore"):
        out: F64 = np.asarray((plus * (below + minus / 2)).sum(-1) / (plus.sum(-1) * minus.sum(-1)))
    return out
