"""The live baseline: river's logistic regression on the same stream, as a river user would write it.

Per row: the numbers go through river's StandardScaler, each id becomes a one-hot feature (hashed into 2**18 weights, so that new
ids do not grow memory without bound), then `predict_proba_one` and `learn_one`, one model per objective. All rows of a minibatch
are predicted before the first of them is learned, as the model does it: a row that saw the label of its neighbour in the same
shown list would know what no request can know. A row takes about 70 us, more than our own step: `share` bounds it to a part of
the users.
"""

import collections
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from river import linear_model, optim, preprocessing

from state import ids, spec

F32 = npt.NDArray[np.float32]
U64 = npt.NDArray[np.uint64]
Arrays = Mapping[str, npt.NDArray[Any]]

HASH_BITS = 18
RATE = 0.01
_SHARE_SALT = 0x5249564552


class Baseline:
    """River's running standardisation and one logistic regression per objective. Deterministic."""

    def __init__(self, features: spec.Features, objectives: int, share: float = 1.0) -> None:
        """`share` of the users, chosen by hash, is learned and scored; the others have no baseline score."""
        self._numbers = spec.number_names(features)
        widths = [c.width for c in spec.id_columns(features)]
        self._salts = np.repeat(np.arange(len(widths), dtype=np.uint64), widths)
        self._limit = np.uint64(min(int(share * 2**64), 2**64 - 1))
        self._everyone = share >= 1.0
        self._scaler = preprocessing.StandardScaler()
        self._keys: list[npt.NDArray[np.int64]] = [np.zeros(0, np.int64) for _ in range(objectives)]
        self._models = [linear_model.LogisticRegression(optimizer=optim.SGD(RATE)) for _ in range(objectives)]

    def chosen(self, users: U64) -> npt.NDArray[np.bool_]:
        """Which users (n,) belong to the share."""
        if self._everyone:
            return np.ones(len(users), np.bool_)
        out: npt.NDArray[np.bool_] = ids.mix(users, _SHARE_SALT) < self._limit
        return out

    def update(self, users: U64, row_ids: U64, x: F32, label: F32, weight: F32, *, stops: Sequence[int] | None = None) -> F32:
        """Predict, then learn: users (R,), ids (R, F), numbers (R, D; NaN is absent), label and weight (R, O).

        `stops` are the ends of the minibatches, ascending: rows before a stop are all predicted, then learned in their order.
        One row is a minibatch of its own where they are left out.

        Returns the predictions (R, O), NaN for rows of users outside the share.
        """
        scores = np.full(label.shape, np.nan, np.float32)
        rows = np.flatnonzero(self.chosen(users))
        hashed = ids.mix(row_ids[rows], self._salts) & np.uint64(2**HASH_BITS - 1)
        absent = row_ids[rows] == np.uint64(ids.PAD)
        present = None if not absent.any() else ~absent
        numbers, labels, weights = x[rows].tolist(), label[rows].tolist(), weight[rows].tolist()
        batch = np.searchsorted(np.asarray(stops), rows, "right").tolist() if stops is not None else list(range(len(rows)))
        held: list[tuple[int, dict[Any, float]]] = []
        for i, (row, keys) in enumerate(zip(rows.tolist(), hashed.tolist(), strict=True)):
            if held and batch[held[-1][0]] != batch[i]:
                self._learn(held, labels, weights)
                held = []
            seen = {name: value for name, value in zip(self._numbers, numbers[i], strict=True) if not math.isnan(value)}
            self._scaler.learn_one(seen)
            features = self._scaler.transform_one(seen)
            used = keys if present is None else [k for k, wanted in zip(keys, present[i].tolist(), strict=True) if wanted]
            features |= dict.fromkeys(used, 1.0)
            held.append((i, features))
            for o, model in enumerate(self._models):
                scores[row, o] = model.predict_proba_one(features)[True]
        self._learn(held, labels, weights)
        return scores

    def _learn(self, held: list[tuple[int, dict[Any, float]]], labels: list[list[float]], weights: list[list[float]]) -> None:
        for i, features in held:
            for o, model in enumerate(self._models):
                if weights[i][o] > 0:
                    model.learn_one(features, labels[i][o] > 0.5, w=weights[i][o])

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The state: weights by key (numbers by their place in the spec, ids by hash), intercepts and the scaler's moments."""
        out: dict[str, npt.NDArray[Any]] = {}
        place = {name: 2**HASH_BITS + i for i, name in enumerate(self._numbers)}
        for o, model in enumerate(self._models):
            # River's `weights` is a copy, a hundred times slower than this; keys are only ever appended.
            weights = model._weights  # noqa: SLF001
            new = itertools.islice(weights, len(self._keys[o]), None)
            self._keys[o] = np.append(self._keys[o], np.array([place.get(k, k) for k in new], np.int64))
            out[f"keys_{o}"] = self._keys[o]
            out[f"weights_{o}"] = np.fromiter(weights.values(), np.float64, len(weights))
            out[f"intercept_{o}"] = np.array([model.intercept, model.optimizer.n_iterations], np.float64)
        moments = [[self._scaler.counts[n], self._scaler.means[n], self._scaler.vars[n]] for n in self._numbers]
        out["moments"] = np.array(moments, np.float64).reshape(-1, 3)
        out["names"] = np.frombuffer(msgspec.msgpack.encode(self._numbers), np.uint8)
        return out

    def load(self, arrays: Arrays) -> None:
        """Take over a state.

        Raises:
            ValueError: it was saved with other numbers or objectives.
        """
        names = msgspec.msgpack.decode(arrays["names"].tobytes(), type=tuple[str, ...])
        if names != self._numbers or f"keys_{len(self._models) - 1}" not in arrays or f"keys_{len(self._models)}" in arrays:
            raise ValueError("the saved baseline has other numbers or objectives than the configuration")
        for o, model in enumerate(self._models):
            saved = zip(arrays[f"keys_{o}"].tolist(), arrays[f"weights_{o}"].tolist(), strict=True)
            model._weights.clear()  # noqa: SLF001
            model._weights.update({self._numbers[k - 2**HASH_BITS] if k >= 2**HASH_BITS else k: w for k, w in saved})  # noqa: SLF001
            self._keys[o] = np.zeros(0, np.int64)
            intercept, iterations = arrays[f"intercept_{o}"].tolist()
            model.intercept, model.optimizer.n_iterations = intercept, int(iterations)
        columns = zip(self._numbers, arrays["moments"].tolist(), strict=True)
        rows = [(name, *moments) for name, moments in columns if moments[0] > 0]
        self._scaler.counts = collections.Counter({name: int(count) for name, count, _, _ in rows})
        self._scaler.means = collections.defaultdict(float, {name: mean for name, _, mean, _ in rows})
        self._scaler.vars = collections.defaultdict(float, {name: variance for name, _, _, variance in rows})
