"""Dropout (Srivastava et al. 2014) on what enters the tower, with masks that a step's number decides.

A number of a row's hidden layer is left out with probability `model.dropout`, for all objectives at once, and the others are
scaled up by as much, so that scoring needs no correction. Whether it is depends on the seed, the step, the row and the place, and
on nothing else: a run that is resumed or replayed draws the same.
"""

import numpy as np
import numpy.typing as npt

from models.kernels import GOLDEN, mix
from state.kernels import kernel

F32 = npt.NDArray[np.float32]


def mask(rows: int, width: int, rate: float, seed: int, step: int) -> F32:
    """Factors (rows, 1, width): 0 with probability `rate`, else 1 / (1 - rate)."""
    out = np.empty((rows, 1, width), np.float32)
    _fill(out, rate, np.uint64(seed), np.uint64(step))
    return out


@kernel
def _fill(out: F32, rate: float, seed: np.uint64, step: np.uint64) -> None:
    least, kept = np.uint64(rate * 2.0**64), np.float32(1.0 / (1.0 - rate))
    word, width = mix(mix(seed ^ GOLDEN) ^ step), np.uint64(out.shape[2])
    for i in range(out.shape[0]):
        for j in range(out.shape[2]):
            place = np.uint64(i) * width + np.uint64(j)
            out[i, 0, j] = kept if mix(word + GOLDEN * place) >= least else np.float32(0)
