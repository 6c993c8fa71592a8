"""Memory in huge pages where the system has them: for what is read in no order, and for matrices that every step fills anew.

A processor keeps the addresses of few pages at hand, and the matrices of one minibatch lie in thousands of small ones.
"""

import math
import mmap
import sys
from typing import TypeVar

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
Number = TypeVar("Number", bound=np.generic)
_ALIGN, _APART = 16, 17 * 16
_PAGE = 1 << 21


def zeros(size: int) -> F32:
    """So many zeros, in whole huge pages from a quarter of one on."""
    if sys.platform != "linux" or 4 * size < _PAGE // 4:
        return np.zeros(size, np.float32)
    memory = mmap.mmap(-1, -(-4 * size // _PAGE) * _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.float32, size)


def words(size: int, kind: type[Number]) -> npt.NDArray[Number]:
    """The same of a type of 4 bytes or a multiple."""
    return zeros(size * np.dtype(kind).itemsize // 4).view(kind)


class Arena:
    """Matrices cut one after the other from one piece of memory, all given up at once by the next `begin`.

    What does not fit is memory of its own, and the piece is larger from the next time on.
    """

    def __init__(self) -> None:
        self._numbers, self._used = zeros(0), 0

    def begin(self) -> None:
        """Give up all matrices: their numbers are going to be overwritten."""
        if self._used > len(self._numbers):
            self._numbers = zeros(self._used + self._used // 4)
        self._used = 0

    def take(self, *shape: int) -> F32:
        """An unset float32 matrix, valid until the next `begin`."""
        start, size = self._used, math.prod(shape)
        # Rows of one number in matrices that begin at one place of their pages would compete for the same places of a cache.
        self._used = start + size + (-size) % _ALIGN + _APART
        if self._used > len(self._numbers):
            return np.empty(shape, np.float32)
        return self._numbers[start : start + size].reshape(shape)
