import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba.core.errors import TypingError

from models import matrices, vectors
from state.kernels import kernel

SIZES = st.integers(0, 70)


def drawn(seed: int, *shape: int) -> matrices.F32:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(rows=SIZES, depth=SIZES, columns=SIZES, turned=st.booleans(), add=st.booleans(), seed=st.integers(0, 9))
def test_a_product_of_any_shape_equals_the_exact_one(
    rows: int, depth: int, columns: int, turned: bool, add: bool, seed: int
) -> None:
    a = drawn(seed, depth, rows).T if turned else drawn(seed, rows, depth)
    b, c = drawn(seed + 1, depth, columns), drawn(seed + 2, rows, columns)
    wanted = a.astype(np.float64) @ b + (c if add else 0)
    matrices.product(a, b, c, add)
    assert c == pytest.approx(wanted, abs=1e-4)


def test_a_product_reads_and_writes_parts_of_matrices_and_nothing_beside_them() -> None:
    a, b, c = drawn(1, 13, 40), drawn(2, 20, 50), drawn(3, 15, 60)
    before, wanted = c.copy(), a[2:11, 5:25] @ b[:, 3:39]
    matrices.product(a[2:11, 5:25], b[:, 3:39], c[4:13, 7:43], False)
    assert c[4:13, 7:43] == pytest.approx(wanted, abs=1e-4)
    c[4:13, 7:43] = before[4:13, 7:43]
    assert (c == before).all()


def test_a_row_of_a_product_has_the_same_bytes_in_any_company() -> None:
    a, b = drawn(1, 37, 51), drawn(2, 51, 45)
    whole = np.empty((37, 45), np.float32)
    matrices.product(a, b, whole, False)
    for i in range(37):
        alone = np.empty((1, 45), np.float32)
        matrices.product(a[i : i + 1], b, alone, False)
        assert alone[0].tobytes() == whole[i].tobytes()


def test_a_sigmoid_is_right_to_the_last_places_at_both_ends_and_keeps_what_is_no_number() -> None:
    x = np.linspace(-110, 110, 30_003).astype(np.float32).reshape(3, -1)
    said = x.copy()
    matrices.sigmoid(said, 2.0)
    wanted = 2 / (1 + np.exp(-x.astype(np.float64)))
    assert said == pytest.approx(wanted, abs=3e-7)
    usual = np.abs(x) < 80
    assert said[usual] == pytest.approx(wanted[usual], rel=1e-6)
    odd = np.array([[np.nan, np.inf, -np.inf]], np.float32)
    matrices.sigmoid(odd, 1.0)
    assert np.isnan(odd[0, 0])
    assert odd[0, 1:] == pytest.approx([1, 0], abs=1e-30)


def test_a_workspace_that_is_too_small_is_an_error_and_not_a_write_beyond_it() -> None:
    space = matrices.workspace(100)
    assert matrices.room(space, 5, 10).shape == (5, 10)
    with pytest.raises(MemoryError, match="too small"):
        matrices.room(space, 6, 10)
    space.used[0] = 0
    assert (matrices.turned(drawn(1, 5, 20), space) == drawn(1, 5, 20).T).all()


@pytest.mark.parametrize("shape", [(1, 1), (16, 16), (32, 48), (19, 37), (40, 7), (0, 5)])
def test_a_transpose_of_any_shape_is_exact_also_of_a_part(shape: tuple[int, int]) -> None:
    space, whole = matrices.workspace(5000), drawn(1, 50, 60)
    part = whole[2 : 2 + shape[0], 3 : 3 + shape[1]]
    assert (matrices.turned(part, space) == part.T).all()


def test_column_sums_and_layers_equal_plain_ones() -> None:
    x, weight, bias, out = drawn(1, 9, 7), drawn(2, 7, 11), drawn(3, 11), np.empty((9, 11), np.float32)
    matrices.affine(x, weight, bias, out)
    assert out == pytest.approx(x @ weight + bias, abs=1e-5)
    matrices.column_sums(out, bias)
    assert bias == pytest.approx(out.sum(0), abs=1e-5)


def test_a_part_of_a_matrix_and_its_numbers_in_a_row_are_the_same_memory() -> None:
    a = drawn(1, 6, 5)
    before = a.copy()
    assert _doubled(a, 10) == pytest.approx(before.sum(), abs=1e-4)
    wanted = before.copy()
    wanted[2:4] *= 2
    assert (a == wanted).all()


@kernel
def _doubled(a: matrices.F32, at: int) -> float:
    held, total = matrices.borrowed(matrices.Workspace(a[0], np.zeros(1, np.int64))), 0.0
    for value in matrices.flat(matrices.borrowed(a)):
        total += value
    own = matrices.part(a, at, 2, len(held.numbers))
    own *= 2
    return total


def test_only_contiguous_arrays_are_read_as_one_run() -> None:
    with pytest.raises(TypingError, match="only contiguous arrays"):
        _doubled(drawn(1, 6, 10)[:, ::2], 0)


@given(count=st.integers(0, 40), seed=st.integers(0, 9))
def test_sums_of_products_of_short_runs_equal_the_exact_ones(count: int, seed: int) -> None:
    a, b = drawn(seed, count), drawn(seed + 1, count)
    assert _dot(a, b) == pytest.approx(float(a.astype(np.float64) @ b), abs=1e-4)


@kernel
def _dot(a: matrices.F32, b: matrices.F32) -> float:
    return float(vectors.dot(vectors.address(a), vectors.address(b), len(a)))


def test_a_product_starts_from_rows_that_lie_elsewhere_or_from_one_row_for_all() -> None:
    a, b, start, c = drawn(1, 13, 20), drawn(2, 20, 53), drawn(3, 13, 53), np.empty((13, 53), np.float32)
    matrices.product_on(start.ctypes.data, start.strides[0], a, b, c)
    assert c == pytest.approx(start + a @ b, abs=1e-4)
    matrices.product_on(start.ctypes.data, 0, a, b, c)
    assert c == pytest.approx(start[0] + a @ b, abs=1e-4)


@kernel
def _alike(one: matrices.F32, other: matrices.F32) -> bool:
    return vectors.alike(vectors.address(one), vectors.address(other), len(one))


@pytest.mark.parametrize("words", [1, 5, 8, 11, 32, 37])
def test_runs_are_alike_if_every_bit_is(words: int) -> None:
    one = drawn(1, words)
    assert _alike(one, one.copy())
    for i in range(words):
        other = one.copy()
        other.view(np.uint32)[i] ^= 1
        assert not _alike(one, other)


@pytest.mark.parametrize(
    ("rows", "inputs", "columns"), [(1, 1, 1), (9, 5, 8), (30, 17, 21), (50, 64, 64), (33, 21, 107), (4, 0, 7)]
)
def test_products_at_and_over_listed_rows_are_those_of_the_rows_taken_out(rows: int, inputs: int, columns: int) -> None:
    rng = np.random.default_rng(rows)
    a, b, more, start = (
        rng.standard_normal(s, np.float32) for s in ((rows + 3, inputs), (inputs, columns), (rows + 3, columns), columns)
    )
    listed, c, summed = rng.permutation(rows + 3)[:rows], more.copy(), np.full((inputs, columns), np.nan, np.float32)
    matrices.product_at(listed, start.ctypes.data, 0, a, b, c)
    wanted = more.copy()
    wanted[listed] = start + a[listed] @ b
    np.testing.assert_allclose(c, wanted, atol=1e-4)
    matrices.product_over(listed, a, more, summed, False)
    matrices.product_over(listed, a, more, summed, True)
    np.testing.assert_allclose(summed, 2 * a[listed].T @ more[listed], atol=1e-4)
