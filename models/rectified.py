"""Gradients on their way back through a rectifier, and products with what it leaves: a good part is zero and adds nothing.

The numbers that are not zero are marked by bits, and rows of a product, two by two, add up the terms of their marks only. Two
rows read the other matrix more often than the six of a tile of `models.panels` do, at the speed of the first-level cache where
its rows begin at whole vectors. Each element is one chain of fused multiply-adds, of up to 64 inputs at a time: first of the
terms that its row and its neighbour both have, then of its own.
"""

import numpy as np
import numpy.typing as npt

from models import marked_panels
from models.marked_panels import MARKS
from models.matrices import product, product_from
from models.panels import BROAD, LANES
from models.vectors import address, row_address
from state.kernels import kernel

F32 = npt.NDArray[np.float32]
U64 = npt.NDArray[np.uint64]
MOST, MOST_APART = 0.95, 0.8
"""Share of numbers that are not zero up to which it is faster to skip the others; where rows begin within a vector.

Measured against the dense product on (64, 128) x (128, 320) and smaller: level at 1 and at .8 to .9.
"""


@kernel
def words(columns: int) -> int:
    """Words that mark so many columns."""
    return (columns + MARKS - 1) // MARKS


@kernel
def rectify_back(slope: F32, active: F32, sums: F32, across: F32, marks: U64, marks_across: U64) -> int:
    """Set to zero what of a gradient (n, m) was not active, and say how many numbers are left; rows must be contiguous.

    Fills `sums` (m,) over rows, the transpose `across`, and a bit for each number of both that is not zero: `marks` (words, n),
    in words of `MARKS` columns, and `marks_across` (words, m). Marks may have more rows and columns.
    """
    rows, columns = slope.shape
    whole, square = rows - rows % LANES, columns - columns % LANES
    sums[:] = 0
    marks[: words(columns), :rows], marks_across[: words(rows), :columns] = 0, 0
    for i in range(0, whole, LANES):
        for j in range(0, square, LANES):
            marked_panels.square(
                row_address(slope, i) + 4 * j, slope.strides[0], row_address(active, i) + 4 * j, row_address(across, j) + 4 * i,
                across.strides[0], address(sums) + 4 * j, row_address(marks, j // MARKS) + 8 * i + j % MARKS // 8,
                row_address(marks_across, i // MARKS) + 8 * j + i % MARKS // 8,
            )  # fmt: skip
    for i in range(rows):
        for j in range(square if i < whole else 0, columns):
            value = slope[i, j] if active[i, j] > 0 else np.float32(0)
            slope[i, j], across[j, i] = value, value
            sums[j] += value
            bit = np.uint64(value != 0)
            marks[j // MARKS, i] |= bit << np.uint64(j % MARKS)
            marks_across[i // MARKS, j] |= bit << np.uint64(i % MARKS)
    count = np.uint64(0)
    for q in range(words(columns)):
        for i in range(rows):
            count += marked_panels.ones(marks[q, i])
    return int(count)


@kernel
def _fill(a: F32, marks: U64, b: F32, c: F32, columns: int, add: bool) -> None:
    """Fill, or add to, so many columns of c = a b, whole `BROAD`s, by the marks of `a`."""
    for q in range(words(a.shape[1])):
        told = (
            address(a) + 4 * MARKS * q, a.strides[0], address(b) + MARKS * q * b.strides[0], b.strides[0], address(c),
            c.strides[0], len(a), np.int64(add or q > 0), row_address(marks, q),
        )  # fmt: skip
        for j in range(0, columns, BROAD):
            marked_panels.panel(told, 4 * j)


@kernel
def product_left(a: F32, marks: U64, count: int, b: F32, c: F32, add: bool) -> None:
    """`matrices.product` by what is marked of `a`, so many numbers, if that is quicker; rows of `a` must be contiguous.

    What is not finite in `b` counts only where it is multiplied with what is not zero.
    """
    columns = c.shape[1] - c.shape[1] % BROAD
    apart = (address(b) | b.strides[0]) % (4 * LANES) != 0
    if columns == 0 or count > (MOST_APART if apart else MOST) * a.size:
        product(a, b, c, add)
        return
    _fill(a, marks, b, c, columns, add)
    if columns < c.shape[1]:
        product_from(columns, a, b, c, add)
