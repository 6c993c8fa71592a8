"""Support sets of meta inputs: what the trunk made of a task's newest samples, so that serving need not run it again.

Packed, kept and evicted like support sets of features (`state.supports`), under keys of their own. A row says which trunk made
it: the lineage (which learner began it), the step of its newest snapshot, and how far the trunk had moved by then. That distance
is an odometer: with every snapshot it grows by the relative change of the meta inputs of a sample of rows since the snapshot
before. By the triangle inequality two readings differ by no less than the trunk changed in between, on rows like those.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from state import supports
from state.config import Config

F32 = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
KEY = b"m"
STEP, LINEAGE = 0, 1
"""Places in a row's `ids`."""
MOVED = 0
"""Place in a row's `x`, before the meta inputs."""


class Shape(NamedTuple):
    """Sizes of a row's meta inputs: outputs O, and widths per output of the hidden input, the gate, and the shift."""

    outputs: int
    hidden: int
    gate: int
    shift: int

    @property
    def numbers(self) -> int:
        """How many there are, with the offset of each output."""
        return self.outputs * (self.hidden + self.gate + 1 + self.shift)


class Trunk(NamedTuple):
    """Which trunk a model has: `lineage` is that of its learner, `moved` its odometer, `step` that of its newest snapshot."""

    lineage: int
    moved: float
    step: int


class Parts(NamedTuple):
    """Meta inputs of n rows: hidden (n, O, H1), gate (n, O, H2), offset (n, O), shift (n, O, H2 or 1)."""

    hidden: F32
    gate: F32
    offset: F32
    shift: F32


def layout(config: Config, shape: Shape) -> supports.Layout:
    """Rows of a configuration whose model has meta inputs of this shape; the fingerprint covers model and shape too."""
    return supports.shaped(config, 2, 1 + shape.numbers, ("meta_inputs", config.model.name, *shape))


def rows_of(layout: supports.Layout, trunk: Trunk, parts: Parts) -> supports.Rows:
    """Rows with the meta inputs filled in, and nothing else but the trunk."""
    n = len(parts.hidden)
    rows = np.zeros(n, layout.dtype)
    rows["ids"][:, STEP], rows["ids"][:, LINEAGE] = trunk.step, trunk.lineage
    rows["x"][:, MOVED] = trunk.moved
    rows["x"][:, 1:] = np.concatenate([np.asarray(part, np.float32).reshape(n, -1) for part in parts], 1)
    return rows


def parts_of(rows: supports.Rows, shape: Shape) -> Parts:
    """The meta inputs of rows."""
    o, n = shape.outputs, len(rows)
    widths = (shape.hidden, shape.gate, 1, shape.shift)
    cuts = np.cumsum([o * width for width in widths])[:-1]
    hidden, gate, offset, shift = (
        np.ascontiguousarray(part).reshape(n, o, width)
        for part, width in zip(np.split(rows["x"][:, 1:], cuts, axis=1), widths, strict=True)
    )
    return Parts(hidden, gate, offset[:, :, 0], shift)


def compatible(rows: supports.Rows, trunk: Trunk, max_drift: float) -> Bools:
    """(n,) which rows a model with this trunk may use: of its lineage, and no further than `max_drift` from it, either way."""
    same = rows["ids"][:, LINEAGE] == np.uint64(trunk.lineage)
    return np.asarray(same & (np.abs(rows["x"][:, MOVED] - np.float32(trunk.moved)) <= max_drift))
