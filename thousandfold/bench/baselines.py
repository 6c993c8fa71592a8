"""What a deep model must beat, on the same inputs: river's logistic regression, a user and item bias, a factorisation machine.

River and the bias learn a list as soon as its labels are known, sooner than the model does; the factorisation machine is
measured both ways, by blocks as the model is and live.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from river import linear_model, optim, preprocessing

from state import ids
from state.kernels import kernel
from thousandfold.bench.protocol import F32, I64, Inputs

F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
FM_BATCH, FM_START = 32, 1e-6
TOLD_LISTS = 2_000
Tell = Callable[[int, int], None]


def river(inputs: Inputs, objective: int, rate: float, tell: Tell | None = None) -> F32:
    """River's logistic regression per event, as its users write it: one-hot ids, numbers through StandardScaler, SGD. (R,)

    All rows are used. A list is scored whole before any of it is learned.
    """
    scaler = preprocessing.StandardScaler()
    model = linear_model.LogisticRegression(optimizer=optim.SGD(rate))
    out = np.empty(inputs.rows, np.float32)
    names = list(range(-inputs.x.shape[1], 0))
    salted = ids.mix(inputs.ids, np.arange(inputs.ids.shape[1], dtype=np.uint64))
    absent = inputs.ids == np.uint64(ids.PAD)
    waiting: dict[int, list[dict[int, float]]] = {}
    start, known = inputs.start.tolist(), inputs.known.tolist()
    label = inputs.label[:, objective] > 0
    learned = 0
    for i in range(len(known)):
        while learned < known[i]:
            for features, y in zip(waiting.pop(learned), label[start[learned] : start[learned + 1]].tolist(), strict=True):
                model.learn_one(features, y)
            learned += 1
        low, high = start[i], start[i + 1]
        held = []
        for r in range(low, high):
            numbers = {k: v for k, v in zip(names, inputs.x[r].tolist(), strict=True) if v == v}  # noqa: PLR0124  (NaN is absent)
            scaler.learn_one(numbers)
            features = scaler.transform_one(numbers)
            features.update(dict.fromkeys(salted[r][~absent[r]].tolist(), 1.0))
            out[r] = model.predict_proba_one(features)[True]
            held.append(features)
        waiting[i] = held
        if tell is not None and i % TOLD_LISTS == 0:
            tell(high, inputs.rows)
    return out


@kernel
def _bias(
    start: I64, known: I64, user: I32, item: I32, label: F32, rate: float, linear: bool, bu: F64, bi: F64, out: F32
) -> None:  # fmt: skip
    base, mean, told, learned = 0.0, 0.0, 0, 0
    for i in range(len(known)):
        while learned < known[i]:
            for r in range(start[learned], start[learned + 1]):
                if np.isnan(label[r]):
                    continue
                u, v = user[learned], item[r]
                if linear:
                    told += 1
                    mean += (label[r] - mean) / told
                step = rate * (label[r] - _said(base + bu[u] + bi[v], mean, linear))
                base += 0.1 * step
                bu[u] += step
                bi[v] += step
            learned += 1
        for r in range(start[i], start[i + 1]):
            out[r] = _said(base + bu[user[i]] + bi[item[r]], mean, linear)


@kernel
def _said(logit: float, mean: float, linear: bool) -> float:
    """What a logit predicts: a probability, or how far a value lies from the mean of those before."""
    return mean + logit if linear else 1.0 / (1.0 + np.exp(-logit))


def bias(inputs: Inputs, objective: int, rate: float, *, linear: bool = False) -> F32:
    """A running bias per user and per item, and one of all, by SGD on the logloss after every event. (R,)

    `linear`: on the squared error of a value instead, around the mean of the values so far. Rows without a label teach nothing.
    """
    users, items = _codes(inputs.user), _codes(inputs.item)
    out = np.empty(inputs.rows, np.float32)
    label = np.ascontiguousarray(inputs.label[:, objective])
    bu, bi = np.zeros(users.max() + 1), np.zeros(items.max() + 1)
    _bias(inputs.start, inputs.known, users, items, label, rate, linear, bu, bi, out)
    return out


@kernel
def _tuned(start: I64, known: I64, task: I32, label: F32, logit: F64, rate: float, bias: F64, out: F32) -> None:
    learned = 0
    for i in range(len(known)):
        while learned < known[i]:
            t = task[learned]
            for r in range(start[learned], start[learned + 1]):
                if np.isnan(label[r]):
                    continue
                bias[t] += rate * (label[r] - 1.0 / (1.0 + np.exp(-(logit[r] + bias[t]))))
            learned += 1
        for r in range(start[i], start[i + 1]):
            out[r] = 1.0 / (1.0 + np.exp(-(logit[r] + bias[task[i]])))


def bias_tuning(inputs: Inputs, objective: int, unadapted: F32, rate: float) -> F32:
    """The shared model with one bias per task, adapted by SGD on the logloss: the least that meta-learning must beat. (R,)

    `unadapted` (R,) are the shared model's probabilities. Rows without a label teach nothing.
    """
    p = np.clip(unadapted.astype(np.float64), 1e-7, 1 - 1e-7)
    tasks, out = _codes(inputs.task), np.empty(inputs.rows, np.float32)
    label = np.ascontiguousarray(inputs.label[:, objective])
    _tuned(inputs.start, inputs.known, tasks, label, np.log(p / (1 - p)), rate, np.zeros(tasks.max() + 1), out)
    return out


@kernel
def _fm_score(row: Any, x: Any, v: F32, w: F32, nv: F32, nw: F32, total: F64) -> float:
    """The logit of one row (Rendle 2010) with its sum of factors left in `total` (width,)."""
    width = len(total)
    logit, square = np.float64(w[-1]), 0.0
    total[:] = 0.0
    for f in range(len(row)):
        if row[f] >= 0:
            logit += w[row[f]]
            for k in range(width):
                total[k] += v[row[f], k]
                square += np.float64(v[row[f], k]) ** 2
    for j in range(len(x)):
        logit += nw[j] * x[j]
        for k in range(width):
            value = np.float64(nv[j, k]) * x[j]
            total[k] += value
            square += value * value
    pairs = -square
    for k in range(width):
        pairs += total[k] * total[k]
    return logit + 0.5 * pairs


@kernel
def _fm(
    start: I64, known: I64, ids_: I32, x: F32, label: F32, rate: float, batch: int, linear: bool,
    v: F32, w: F32, nv: F32, nw: F32, av: F32, aw: F32, anv: F32, anw: F32, out: F32,
) -> None:  # fmt: skip
    """Predict every list, then learn what is known in minibatches of whole lists up to `batch` rows; AdaGrad per number."""
    rows, fields, numbers, width = ids_.shape[0], ids_.shape[1], x.shape[1], v.shape[1]
    mean, square, weight = np.zeros(numbers), np.ones(numbers), 0.0
    middle, told = 0.0, 0
    z = np.zeros((rows, numbers), np.float32)
    total = np.zeros(width)
    room = batch
    for i in range(len(known)):
        room = max(room, start[i + 1] - start[i])
    room *= fields
    gv, gw = np.zeros((room, width)), np.zeros(room)
    mark, touched = np.full(len(w), -1, np.int64), np.empty(room, np.int64)
    gnv, gnw = np.zeros((numbers, width)), np.zeros(numbers)
    learned = 0
    for i in range(len(known)):
        while learned < known[i]:
            last = learned + 1
            while last < known[i] and start[last + 1] - start[learned] <= batch:
                last += 1
            if last == known[i] and start[last] - start[learned] < batch and i < len(known) - 1:
                break
            n, size, bias_step = 0, 0, 0.0
            gnv[:, :], gnw[:] = 0.0, 0.0
            for r in range(start[learned], start[last]):
                if np.isnan(label[r]):
                    continue
                size += 1
                if linear:
                    told += 1
                    middle += (label[r] - middle) / told
                g = _said(_fm_score(ids_[r], z[r], v, w, nv, nw, total), middle, linear) - label[r]
                bias_step += g
                for f in range(fields):
                    e = ids_[r, f]
                    if e < 0:
                        continue
                    if mark[e] < 0:
                        mark[e], touched[n] = n, e
                        gv[n, :], gw[n] = 0.0, 0.0
                        n += 1
                    m = mark[e]
                    gw[m] += g
                    for k in range(width):
                        gv[m, k] += g * (total[k] - v[e, k])
                for j in range(numbers):
                    gnw[j] += g * z[r, j]
                    for k in range(width):
                        gnv[j, k] += g * z[r, j] * (total[k] - nv[j, k] * z[r, j])
            learned = last
            if size == 0:
                continue
            for m in range(n):
                e = touched[m]
                mark[e] = -1
                _adagrad(w, aw, e, gw[m] / size, rate)
                for k in range(width):
                    _adagrad(v[e], av[e], k, gv[m, k] / size, rate)
            for j in range(numbers):
                _adagrad(nw, anw, j, gnw[j] / size, rate)
                for k in range(width):
                    _adagrad(nv[j], anv[j], k, gnv[j, k] / size, rate)
            _adagrad(w, aw, len(w) - 1, bias_step / size, rate)
        for r in range(start[i], start[i + 1]):
            for j in range(numbers):
                if np.isfinite(x[r, j]):
                    away = x[r, j] - mean[j]
                    value = away / np.sqrt(max(square[j], 1e-6)) if weight > 0.0 else 0.0
                    z[r, j] = min(max(value, -4.0), 4.0)
            out[r] = _said(_fm_score(ids_[r], z[r], v, w, nv, nw, total), middle, linear)
        for r in range(start[i], start[i + 1]):
            weight += 1.0
            for j in range(numbers):
                if np.isfinite(x[r, j]):
                    away = x[r, j] - mean[j]
                    mean[j] += away / weight
                    square[j] += (away * (x[r, j] - mean[j]) - square[j]) / weight


@kernel
def _adagrad(values: Any, accumulated: Any, at: int, gradient: float, rate: float) -> None:
    accumulated[at] += gradient * gradient
    values[at] -= rate * gradient / (np.sqrt(accumulated[at]) + 1e-8)


def fm32(inputs: Inputs, objective: int, rate: float, width: int, seed: int, *, linear: bool = False) -> F32:
    """A factorisation machine (Rendle 2010) over ids and standardised numbers, minibatches of at most 32 rows, AdaGrad. (R,)

    `linear`: the squared error of a value instead of the logloss, around the mean of the values so far. Rows without a label
    teach nothing.
    """
    fields, n = inputs.ids.shape[1], 0
    codes = np.empty((inputs.rows, fields), np.int32)
    for f in range(fields):
        found, place = np.unique(inputs.ids[:, f], return_inverse=True)
        codes[:, f] = np.where(inputs.ids[:, f] == np.uint64(ids.PAD), -1, place + n)
        n += len(found)
    random = np.random.default_rng(seed)
    numbers = inputs.x.shape[1]
    v, nv = (random.normal(0, 0.01, (m, width)).astype(np.float32) for m in (n, numbers))
    w, nw = np.zeros(n + 1, np.float32), np.zeros(numbers, np.float32)
    av, aw, anv, anw = (
        np.full_like(v, FM_START),
        np.full_like(w, FM_START),
        np.full_like(nv, FM_START),
        np.full_like(nw, FM_START),
    )
    out, label = np.empty(inputs.rows, np.float32), np.ascontiguousarray(inputs.label[:, objective])
    _fm(inputs.start, inputs.known, codes, inputs.x, label, rate, FM_BATCH, linear, v, w, nv, nw, av, aw, anv, anw, out)
    return out


def _codes(values: npt.NDArray[Any]) -> I32:
    """Dense codes (n,) of ids."""
    return np.unique(values, return_inverse=True)[1].astype(np.int32)
