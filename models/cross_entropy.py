"""The cross-entropy of many logits in native code, in vectors."""

import numpy as np
import numpy.typing as npt

from models.matrices import falling, flat
from state.kernels import kernel

F32 = npt.NDArray[np.float32]


@kernel
def cross_entropy(logit: F32, label: F32, chance: F32, entropy: F32) -> None:
    """Fill the sigmoids and the cross-entropies of as many logits, all of any shape, to a few units in the last place.

    log(1 + e) is 2 artanh(e / (2 + e)), whose argument is at most a third, so that eight terms of its series are enough.
    """
    values, wanted, said, lost = flat(logit), flat(label), flat(chance), flat(entropy)
    zero, one, two = np.float32(0), np.float32(1), np.float32(2)
    for i in range(len(values)):
        x = values[i]
        e = falling(x)
        said[i] = (one if x >= 0 else e) / (one + e)
        s = e / (two + e)
        square = s * s
        series = np.float32(1 / 15)
        series = series * square + np.float32(1 / 13)
        series = series * square + np.float32(1 / 11)
        series = series * square + np.float32(1 / 9)
        series = series * square + np.float32(1 / 7)
        series = series * square + np.float32(1 / 5)
        series = series * square + np.float32(1 / 3)
        series = series * square + one
        lost[i] = (x if x > 0 else zero) - x * wanted[i] + two * s * series
