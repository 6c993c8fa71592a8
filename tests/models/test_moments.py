import numpy as np
import pytest

from models import moments


def run(blocks: list[moments.F32]) -> moments.F64:
    out = np.zeros((3, blocks[0].shape[1]))
    for block in blocks:
        moments.update(out, block, 1e12)
    return out


def test_blocks_merge_to_the_mean_and_deviation_of_all_rows() -> None:
    x = (np.random.default_rng(0).standard_normal((500, 3)) * [1, 10, 0.1] + [0, 1e6, -5]).astype(np.float32)
    mean, scale = moments.standard(run([x[:7], x[7:300], x[300:]]))
    assert mean == pytest.approx(x.mean(0, dtype=np.float64), rel=1e-5)
    assert 1 / scale == pytest.approx(x.std(0, dtype=np.float64), rel=1e-4)


def test_before_any_row_numbers_pass_unchanged() -> None:
    mean, scale = moments.standard(np.zeros((3, 2)))
    assert mean.tolist() == [0, 0]
    assert scale.tolist() == [1, 1]


def test_absent_and_infinite_numbers_are_not_counted() -> None:
    x = np.array([[1, np.nan], [3, np.inf], [np.nan, 4]], np.float32)
    state = run([x])
    assert state[0].tolist() == [2, 1]
    assert state[1].tolist() == [2, 4]


def test_old_rows_are_slowly_forgotten() -> None:
    state = np.zeros((3, 1))
    moments.update(state, np.zeros((100, 1), np.float32), 100.0)
    moments.update(state, np.ones((100, 1), np.float32), 100.0)
    assert state[1, 0] == pytest.approx(100 / 150)


def test_a_constant_column_has_a_finite_scale() -> None:
    _, scale = moments.standard(run([np.full((10, 1), 7, np.float32)]))
    assert np.isfinite(scale).all()
