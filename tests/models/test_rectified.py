import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.marked_panels import MARKS
from models.panels import BROAD
from models.rectified import product_left, rectify_back, words

F32 = npt.NDArray[np.float32]
U64 = npt.NDArray[np.uint64]


def _within(rows: int, columns: int, apart: int = 0) -> F32:
    """A part of a matrix, whose rows begin at whole vectors or, `apart`, do not."""
    width = columns + (-columns) % 16 + 16 + apart
    numbers = np.zeros(rows * width + 16, np.float32)
    first = -numbers.ctypes.data // 4 % 16
    return numbers[first : first + rows * width].reshape(rows, width)[:, :columns]


def _marked(slope: F32, active: F32) -> tuple[int, F32, F32, U64, U64]:
    """What is left, sums, transpose and marks of a gradient, in memory that had other numbers before."""
    rows, columns = slope.shape
    sums, across = np.ones(columns, np.float32), np.ones((columns, rows), np.float32)
    marks, marks_across = (np.full((words(b) + 1, a + 3), 2**64 - 1, np.uint64) for a, b in ((rows, columns), (columns, rows)))
    return rectify_back(slope, active, sums, across, marks, marks_across), sums, across, marks, marks_across


def _bits(marks: U64, rows: int, columns: int) -> npt.NDArray[np.bool_]:
    words_of = marks[:, :rows, None] >> np.arange(MARKS, dtype=np.uint64) & np.uint64(1)
    return words_of.transpose(1, 0, 2).reshape(rows, -1)[:, :columns].astype(bool)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (16, 64), (37, 70), (64, 16), (130, 33), (200, 128)])
def test_a_gradient_through_a_rectifier_is_zero_where_nothing_was_active_and_marked_elsewhere(rows: int, columns: int) -> None:
    rng = np.random.default_rng(rows)
    slope, active = (rng.standard_normal((rows, columns)).astype(np.float32) for _ in range(2))
    active[0, 0], slope[0, 0], slope[-1, -1] = 1, 3, 0
    wanted = np.where(active > 0, slope, 0)
    left, sums, across, marks, marks_across = _marked(slope, active)
    np.testing.assert_array_equal(slope, wanted)
    np.testing.assert_array_equal(across, wanted.T)
    np.testing.assert_allclose(sums, wanted.sum(0, dtype=np.float64), atol=1e-4)
    np.testing.assert_array_equal(_bits(marks, rows, columns), wanted != 0)
    np.testing.assert_array_equal(_bits(marks_across, columns, rows), wanted.T != 0)
    assert left == np.count_nonzero(wanted)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(2, 9), inputs=st.integers(2, 200), columns=st.sampled_from([1, 17, BROAD, BROAD + 3, 3 * BROAD]),
    share=st.sampled_from([0.0, 0.3, 0.7, 1.0]), add=st.booleans(), apart=st.integers(0, 1), seed=st.integers(0, 999),
)  # fmt: skip
def test_a_product_that_leaves_zeros_out_equals_the_exact_one(
    rows: int, inputs: int, columns: int, share: float, add: bool, apart: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((rows, inputs)).astype(np.float32)
    left, *_, marks, _ = _marked(a, (rng.random((rows, inputs)) < share).astype(np.float32))
    b, c = _within(inputs, columns, apart), rng.standard_normal((rows, columns + 2)).astype(np.float32)
    b[:] = rng.standard_normal((inputs, columns))
    before = c.copy()
    product_left(a, marks, left, b, c[:, :columns], add)
    wanted = a.astype(np.float64) @ b + (before[:, :columns] if add else 0)
    np.testing.assert_allclose(c[:, :columns], wanted, atol=1e-4)
    np.testing.assert_array_equal(c[:, columns:], before[:, columns:])


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e-45])
def test_what_is_no_number_and_what_is_almost_zero_is_not_left_out(value: float) -> None:
    a, b, c = np.zeros((2, 130), np.float32), _within(130, BROAD), _within(2, BROAD)
    b[:] = 1
    for column in (3, 63, 64, 129):
        a[:], a[1, column] = 0, value
        left, *_, marks, _ = _marked(a, np.ones_like(a))
        assert left == 1
        product_left(a, marks, left, b, c, False)
        np.testing.assert_array_equal(c[1], np.float32(value))
        assert not c[0].any()


def test_zeros_are_left_out_whatever_they_are_multiplied_with() -> None:
    a, b, c = np.eye(3, 70, dtype=np.float32), _within(70, BROAD), _within(3, BROAD)
    b[:3], b[3:] = 2, np.inf
    left, *_, marks, _ = _marked(a, np.ones_like(a))
    product_left(a, marks, left, b, c, False)
    np.testing.assert_array_equal(c, np.float32(2))
