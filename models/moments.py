"""Running mean and variance of the number columns, by which they are standardised.

A slowly forgetting average: a row's weight halves every `HALF_LIFE_ROWS` rows, so that growing counters keep a spread of about
one. Batches are merged as deviations from the mean (Chan et al. 1979), which stays exact where sums of squares cancel. Absent
numbers (NaN) and infinities are not counted.
"""

import numpy as np
import numpy.typing as npt

from state.kernels import kernel

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

HALF_LIFE_ROWS = 200_000
LEAST_VARIANCE = 1e-6


@kernel
def update(moments: F64, x: F32, half_life: float) -> None:
    """Merge rows x (n, D) into moments (3, D): weight, mean, sum of squared deviations."""
    keep = 0.5 ** (x.shape[0] / half_life)
    for j in range(x.shape[1]):
        n, mean, spread = 0.0, 0.0, 0.0
        for i in range(x.shape[0]):
            v = float(x[i, j])
            if np.isfinite(v):
                n += 1.0
                away = v - mean
                mean += away / n
                spread += away * (v - mean)
        if n == 0.0:
            continue
        old = moments[0, j] * keep
        base = moments[1, j] if old > 0.0 else mean
        apart = mean - base
        total = old + n
        moments[0, j] = total
        moments[1, j] = base + apart * n / total
        moments[2, j] = moments[2, j] * keep + spread + apart * apart * old * n / total


@kernel
def standard(moments: F64) -> tuple[F32, F32]:
    """Mean and 1 / standard deviation (D,) as float32; before any row they are 0 and 1."""
    mean, scale = np.empty(moments.shape[1], np.float32), np.empty(moments.shape[1], np.float32)
    for j in range(moments.shape[1]):
        variance = moments[2, j] / moments[0, j] if moments[0, j] > 0 else 1.0
        mean[j] = moments[1, j]
        scale[j] = 1.0 / np.sqrt(max(variance, LEAST_VARIANCE))
    return mean, scale
