import random

import hypothesis
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import strategies as st

from models import moments
from state import ids


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


def observed(blocks: list[tuple[moments.F32, moments.I64, moments.F64]], half_life: float = 1e12) -> moments.F64:
    """What slots 0 to 2 know of these rows, slots and weights."""
    out = np.zeros((3, moments.KEPT, blocks[0][0].shape[1]))
    for x, slot, weight in blocks:
        moments.observe(out, x, slot, weight, half_life)
    return out


def log(n: int, seed: int = 0) -> tuple[moments.F32, moments.I64, moments.F64]:
    generator = np.random.default_rng(seed)
    x = (generator.standard_normal((n, 2)) * [1, 50] + [0, 1e5]).astype(np.float32)
    x[generator.random(x.shape) < 0.2] = np.nan
    x[generator.random(x.shape) < 0.2] = 0
    return x, generator.integers(0, 3, n), generator.random(n) * 3


def cut(rows: tuple[moments.F32, moments.I64, moments.F64], at: list[int]) -> list[tuple[moments.F32, moments.I64, moments.F64]]:
    return [(x, s, w) for x, s, w in zip(*(np.split(part, sorted(at)) for part in rows), strict=True)]


def test_a_scenarios_moments_are_the_weighted_ones_of_its_rows() -> None:
    x, slot, weight = log(900)
    state = observed(cut((x, slot, weight), [1, 300, 300]))
    for s in range(3):
        for j in range(2):
            mine = slot == s
            there = mine & np.isfinite(x[:, j])
            v, w = x[there, j].astype(np.float64), weight[there]
            mean = np.average(v, weights=w)
            assert state[s, moments.ROWS, j] == pytest.approx(weight[mine].sum())
            assert state[s, moments.PRESENT, j] == pytest.approx(w.sum())
            assert state[s, moments.FILLED, j] == pytest.approx(w[v != 0].sum())
            assert state[s, moments.MEAN, j] == pytest.approx(mean, rel=1e-9)
            assert state[s, moments.SQUARES, j] / w.sum() == pytest.approx(np.average((v - mean) ** 2, weights=w), rel=1e-9)


def test_a_row_of_weight_two_is_two_rows() -> None:
    x, slot, _ = log(60)
    twice = observed([(np.repeat(x, 2, 0), np.repeat(slot, 2), np.ones(120))])
    assert observed([(x, slot, np.full(60, 2.0))]) == pytest.approx(twice, rel=1e-12)


def test_rows_of_other_scenarios_change_no_bit_of_a_scenarios_moments() -> None:
    x, slot, weight = log(400)
    mine = slot == 1
    state = observed([(x, slot, weight)], 50.0)
    alone = observed([(x[mine], slot[mine], weight[mine])], 50.0)
    assert state[1].tobytes() == alone[1].tobytes()
    assert not alone[2].any()


@hypothesis.given(st.lists(st.integers(0, 200), max_size=8), st.integers(0, 9))
@hypothesis.settings(max_examples=30, deadline=None)
def test_the_order_of_batches_and_their_cuts_do_not_matter(at: list[int], seed: int) -> None:
    rows = log(200)
    shuffled = cut(rows, at)
    random.Random(seed).shuffle(shuffled)
    assert observed(shuffled) == pytest.approx(observed([rows]), rel=1e-7)


def test_a_scenario_forgets_with_rows_of_its_own_and_its_mean_follows() -> None:
    old, new = np.zeros((100, 1), np.float32), np.ones((100, 1), np.float32)
    blocks = [(x, np.ones(100, np.int64), np.ones(100)) for x in (old, new)]
    state = observed(blocks, 100.0)
    assert state[1, :, 0].tolist() == pytest.approx([150, 150, 100 / 150, 50 * 100 / 150, 100])


def test_few_rows_read_the_shared_moments_and_many_their_own() -> None:
    shared = run([np.random.default_rng(0).normal(0, 1, (1000, 1)).astype(np.float32)])
    own = np.random.default_rng(1).normal(10, 3, (90_000, 1)).astype(np.float32)
    middles = []
    for n in (0, 10, 1000, 90_000):
        state = observed([(own[:n], np.ones(n, np.int64), np.ones(n))])
        mean, scale = moments.standards(shared, state, 1000.0)
        assert mean[[0, 2]].tolist() == [[shared[1, 0].astype(np.float32)]] * 2
        middles.append((float(mean[1, 0]), float(1 / scale[1, 0])))
    one, other = moments.standard(shared)
    assert middles[0] == pytest.approx((float(one[0]), float(1 / other[0])))
    assert middles == sorted(middles)
    shared_value, own_value = (5 - float(one[0])) * float(other[0]), (5 - 10) / 3
    assert (5 - middles[2][0]) / middles[2][1] == pytest.approx((shared_value + own_value) / 2, abs=0.2)
    assert middles[3] == pytest.approx((10, 3), rel=0.05)


def test_a_number_that_a_scenario_never_has_reads_the_shared_moments() -> None:
    shared = run([np.array([[1, 5], [3, 9]], np.float32)])
    x = np.array([[7, np.nan]] * 50, np.float32)
    mean, scale = moments.standards(shared, observed([(x, np.ones(50, np.int64), np.ones(50))]), 10.0)
    assert mean[1, 1] == 7
    assert scale[1, 1] == pytest.approx(0.5)
    assert 2 < mean[1, 0] < 7


def test_a_row_weighs_its_largest_weight_and_one_that_nobody_labels_counts_whole() -> None:
    label = np.array([[0, np.nan], [1, 2], [0, 1], [np.nan, np.nan]], np.float32)
    weight = np.array([[1, 0], [0, 0.5], [0, 0], [0, 0]], np.float32)
    scenario = np.zeros(4, np.uint64)
    assert moments.row_weights(label, weight, scenario, {}).tolist() == [1, 0.5, 0, 1]


def test_rows_without_an_action_stand_for_those_that_were_dropped_in_their_scenario() -> None:
    label = np.array([[0], [1], [0], [0], [np.nan]], np.float32)
    scenario = np.array([ids.of(name) for name in ("home", "home", "search", "mail", "mail")], np.uint64)
    found = moments.row_weights(label, np.ones((5, 1), np.float32), scenario, {"home": 0.1, "*": 0.5, "search": 1.0})
    assert found.tolist() == pytest.approx([10, 1, 1, 2, 2])


def test_moments_of_a_sampled_log_are_those_of_the_whole_one() -> None:
    generator = np.random.default_rng(3)
    n, kept = 400_000, 0.1
    label = (generator.random((n, 1)) < 0.05).astype(np.float32)
    x = (generator.standard_normal((n, 1)) + 2 * label).astype(np.float32)
    x[generator.random(n) < np.where(label[:, 0] > 0, 0.02, 0.3)] = np.nan
    take = (label[:, 0] > 0) | (generator.random(n) < kept)
    scenario, slot, ones = np.full(n, np.uint64(ids.of("home"))), np.ones(n, np.int64), np.ones((n, 1), np.float32)

    def state(rows: npt.NDArray[np.bool_], sampling: dict[str, float]) -> tuple[float, float, float]:
        weight = moments.row_weights(label[rows], ones[rows], scenario[rows], sampling)
        total, present, mean, squares, _ = observed([(x[rows], slot[rows], weight)])[1, :, 0].tolist()
        return mean, (squares / present) ** 0.5, 1 - present / total

    whole = state(np.ones(n, np.bool_), {})
    assert state(take, {"home": kept}) == pytest.approx(whole, abs=0.02)
    assert abs(state(take, {})[0] - whole[0]) > 0.3


def test_the_first_row_of_a_scenario_far_away_does_not_blow_up_its_scale() -> None:
    shared = run([np.random.default_rng(0).normal(0, 1, (1000, 1)).astype(np.float32)])
    _, scale = moments.standards(shared, observed([(np.full((1, 1), 99, np.float32), np.ones(1, np.int64), np.ones(1))]), 10.0)
    assert scale[1, 0] == pytest.approx(scale[0, 0])
