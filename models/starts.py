"""Where an objective's output begins: at the log odds of its labels, counted while its first rows arrive.

An output whose bias begins at 0 says one half of an action that one row in a hundred has. The shared embeddings and first-order
weights move faster than one bias, so at first they carry what the bias will say later, for every objective another amount, and
AdaGrad remembers these gradients in all rows that took part. So the bias starts where the labels are (as the bias of a detector's
rare classes, Lin et al. 2017, section 3.3): it follows the log odds of an objective's first `optimizer.start_rows` labelled rows,
half a row of each kind counted with them (Krichevsky and Trofimov 1981), so that no labels give 0; of a multiclass objective the
log shares of its classes, of a regression the mean of its targets. After that it learns like everything else. A ranking compares
rows and has no rate. One objective alone has nobody to push, and its output begins at 0.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from models import losses
from state import config

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Arrays = Mapping[str, npt.NDArray[Any]]
SEEN = "starts.seen"
"""(outputs, 3): labelled rows that were counted, their weight in the loss, the weighted sum of what they say of the output."""
HALF, ENOUGH = 0.5, 2.0**53


class Starts:
    """Counts of labels, and the biases that follow them: views (outputs,) of what is trained and of what is published."""

    def __init__(self, settings: config.Config, plan: losses.Plan, *biases: F32) -> None:
        """Nothing is counted where there are no `biases` or one objective, or where `optimizer.start_rows` is 0."""
        counts = biases and len(plan.parts) > 1
        self.plan, self.rows, self.biases = plan, settings.optimizer.start_rows if counts else 0, biases
        self.seen = np.zeros((plan.outputs, 3)) if self.rows else settled(plan.outputs)
        self._look()

    def begins(self, label: F32) -> bool:
        """Whether labels (n, O) are the first that an objective has."""
        if self._done:
            return False
        asked = [p.kind != "ranking" and self.seen[p.at, 0] == 0 for p in self.plan.parts]
        return bool((np.array(asked) & np.isfinite(label).any(0)).any())

    def count(self, label: F32, weight: F32) -> None:
        """Let the biases follow labels (n, O) of rows with weights (n, O), where an objective still lacks some."""
        if self._done:
            return
        before = self._values()
        for o, part in enumerate(self.plan.parts):
            own = slice(part.at, part.at + part.width)
            if part.kind == "ranking" or self.seen[part.at, 0] >= self.rows:
                continue
            there = np.isfinite(label[:, o] + weight[:, o]) & (weight[:, o] > 0)
            y, w = label[there, o], weight[there, o].astype(np.float64)
            said = y[:, None] == np.arange(part.width) if part.kind == "multiclass" else y[:, None]
            said = losses.seen(part, said) if part.kind == "regression" else said
            self.seen[own] += np.stack([np.full(part.width, len(w)), np.full(part.width, w.sum()), w @ said], 1)
        moved = (self._values() - before).astype(np.float32)
        for bias in self.biases:
            bias[:] += moved
        self._look()

    def copies(self) -> list[npt.NDArray[Any]]:
        """For `restore`."""
        return [self.seen.copy(), *(bias.copy() for bias in self.biases)]

    def restore(self, before: Sequence[npt.NDArray[Any]]) -> None:
        """Be as before the last `count`."""
        self.seen[:] = before[0]
        for bias, was in zip(self.biases, before[1:], strict=True):
            bias[:] = was
        self._look()

    def _look(self) -> None:
        counted = [self.seen[p.at, 0] for p in self.plan.parts if p.kind != "ranking"]
        self._done = min(counted, default=ENOUGH) >= self.rows

    def _values(self) -> F64:
        """(outputs,) what the counts say that each bias should be."""
        out = np.zeros(len(self.seen))
        for part in self.plan.parts:
            own = slice(part.at, part.at + part.width)
            rows, weight, total = self.seen[own].T
            mean = np.divide(total, weight, out=np.zeros(part.width), where=weight > 0)
            if part.kind == "multiclass":
                shares = np.log(rows * mean + HALF)
                out[own] = shares - shares.mean()
            elif part.kind == "regression":
                out[own] = mean
            elif part.kind == "binary":
                out[own] = np.log(rows * mean + HALF) - np.log(rows * (1 - mean) + HALF)
        return out

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The counts as a view, for a snapshot."""
        return {SEEN: self.seen}

    def load(self, arrays: Arrays) -> None:
        """Take over counts that `arrays` returned (copied); those of objectives that were added since begin at nothing."""
        self.seen[:] = 0
        self.seen[: len(arrays[SEEN])] = arrays[SEEN]
        self._look()


def complete(arrays: Arrays, outputs: int) -> Arrays:
    """Arrays from before there were counts, or of a model that was made of others: its outputs have begun long ago."""
    return arrays if SEEN in arrays else {**arrays, SEEN: settled(outputs)}


def settled(outputs: int) -> F64:
    """Counts (outputs, 3) of which none is lacking."""
    return np.repeat([[ENOUGH, 0.0, 0.0]], outputs, 0)
