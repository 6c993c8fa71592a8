"""Counter cells: what is counted of one key, as a vector of float64 that merges associatively.

A cell is `[t, shown, block of window 0, block of window 1, ...]`. `t` is the time (ms) of its newest event, `shown` of its
newest exposure; a block is `[E, A per counted action, X per expected rate]`. Window 0 is always the whole time, so its E is a
plain count. A delta is a cell that starts from nothing, and `merge(base, delta)` is associative with the zero vector as its
unit: cells form a monoid, so deltas can be summed in a worker before they are merged in the store, in batches of any size.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from state.kernels import kernel

F64 = npt.NDArray[np.float64]
ALL, DECAY, LAST = 0, 1, 2
HEAD = 2
KINDS: dict[str, int] = {"all": ALL, "decay": DECAY, "last": LAST}


class Window(NamedTuple):
    """How old events lose weight: `size` is the half-life in ms (decay) or the mean length in exposures (last)."""

    kind: Literal["all", "decay", "last"]
    size: float = 0.0


class Layout(NamedTuple):
    """The shape of the cells of one kind of key: `columns` numbers per window (1 exposure, actions, expected rates)."""

    windows: tuple[Window, ...]
    columns: int

    @property
    def width(self) -> int:
        """Numbers in a cell."""
        return HEAD + len(self.windows) * self.columns

    def codes(self) -> npt.NDArray[np.int64]:
        """Window kinds as ALL, DECAY, LAST."""
        return np.array([KINDS[w.kind] for w in self.windows], np.int64)

    def sizes(self) -> F64:
        """Window sizes."""
        return np.array([w.size for w in self.windows], np.float64)


@kernel
def merge(base: F64, delta: F64, codes: npt.NDArray[Any], sizes: F64, columns: int) -> None:
    """Add `delta` to `base` in place; both are cells of one layout (decay: Cormode et al. 2009, forward decay)."""
    t = max(base[0], delta[0])
    shown = delta[HEAD]
    for w in range(len(codes)):
        keep, add = 1.0, 1.0
        if codes[w] == 1:
            # LLVM rewrites a power of a constant 2 to exp2, whose last bit may differ from the pow of the store's script.
            two = 2.0 + 0.0 * sizes[w]
            keep, add = two ** (-(t - base[0]) / sizes[w]), two ** (-(t - delta[0]) / sizes[w])
        elif codes[w] == 2:
            keep = (1.0 - 1.0 / sizes[w]) ** shown
        at = HEAD + w * columns
        for c in range(at, at + columns):
            base[c] = base[c] * keep + delta[c] * add
    base[0] = t
    base[1] = max(base[1], delta[1])
