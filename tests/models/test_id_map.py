import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from models import id_map
from state import ids

PAD = ids.PAD
keys = st.one_of(st.integers(0, 40), st.sampled_from([0, 2**63, 2**64 - 2]))
batches = st.lists(st.tuples(st.lists(st.tuples(keys, keys), min_size=1, max_size=8), st.integers(0, 50)), max_size=30)


def two_fields(capacity: int = 1024, admit_after: int = 1, max_idle_ms: int = 10**9) -> id_map.IdMap:
    return id_map.IdMap(np.array([0, 1]), capacity, admit_after, max_idle_ms)


def column(*values: int) -> id_map.U64:
    return np.array([[v, PAD] for v in values], np.uint64)


@given(batches, st.integers(1, 4))
@hypothesis_settings(max_examples=60, deadline=None)
def test_it_behaves_like_a_dictionary_that_counts_sightings(
    steps: list[tuple[list[tuple[int, int]], int]], admit_after: int
) -> None:
    seen: dict[tuple[int, int], int] = {}
    rows: dict[tuple[int, int], int] = {}
    mapped = two_fields(admit_after=admit_after)
    for batch, now in steps:
        found, fresh = mapped.admit(np.array(batch, np.uint64), now)
        expected_fresh = 0
        for i, pair in enumerate(batch):
            for field, key in enumerate(pair):
                seen[field, key] = seen.get((field, key), 0) + 1
                if seen[field, key] == admit_after:
                    rows[field, key] = found[i, field]
                    expected_fresh += 1
                assert found[i, field] == rows.get((field, key), field)
        assert len(fresh.rows) == expected_fresh
    assert len(set(rows.values())) == len(rows)
    assert all(r >= 2 for r in rows.values())


@pytest.mark.parametrize("key", [0, 1, 2**63, 2**64 - 2])
def test_every_key_but_the_padding_is_legal(key: int) -> None:
    mapped = two_fields()
    found, fresh = mapped.admit(column(key), 0)
    assert found.tolist() == [[2, -1]]
    assert mapped.find(column(key)).tolist() == [[2, -1]]
    assert len(fresh.rows) == 1


def test_the_same_value_in_two_fields_has_two_rows() -> None:
    found, _ = two_fields().admit(np.array([[7, 7]], np.uint64), 0)
    assert found[0, 0] != found[0, 1]


def test_finding_changes_nothing() -> None:
    mapped = two_fields()
    mapped.admit(column(1, 2), 0)
    before = {k: v.tobytes() for k, v in mapped.arrays().items()}
    assert mapped.find(column(1, 99)).tolist() == [[2, -1], [0, -1]]
    assert {k: v.tobytes() for k, v in mapped.arrays().items()} == before


def test_beyond_capacity_the_least_recently_seen_are_evicted_and_counted() -> None:
    mapped = two_fields(capacity=16)
    for i in range(16):
        mapped.admit(column(i), i)
    mapped.admit(column(0), 100)
    mapped.admit(column(50, 51), 101)
    assert mapped.evicted["budget"] == 2
    gone = [i for i in range(16) if mapped.find(column(i))[0, 0] == 0]
    assert gone == [1, 2]
    assert mapped.admitted == 16


def test_ids_of_one_batch_never_evict_one_another() -> None:
    mapped = two_fields(capacity=16)
    mapped.admit(column(*range(16)), 0)
    found, _ = mapped.admit(column(0, 1, 2, 100, 101), 5)
    assert (found[:, 0] >= 2).all()
    assert len(set(found[:, 0].tolist())) == 5


def test_a_batch_larger_than_the_capacity_reads_shared_rows_and_is_counted() -> None:
    mapped = two_fields(capacity=4)
    found, _ = mapped.admit(column(*range(6)), 0)
    assert found[:, 0].tolist() == [2, 3, 4, 5, 0, 0]
    assert mapped.evicted["refused"] == 2


def test_an_id_unseen_for_too_long_starts_anew_even_before_a_sweep() -> None:
    mapped = two_fields(max_idle_ms=100)
    mapped.admit(column(1), 0)
    mapped.counts[id_map.SWEPT] = 150
    _, fresh = mapped.admit(column(1), 150)
    assert fresh.rows.tolist() == [2]
    assert mapped.evicted["idle"] == 1


def test_a_sweep_takes_back_idle_rows_for_others() -> None:
    mapped = two_fields(max_idle_ms=100)
    mapped.admit(column(1, 2), 0)
    mapped.admit(column(3), 150)
    assert mapped.evicted["idle"] == 2
    assert mapped.find(column(1, 2))[:, 0].tolist() == [0, 0]
    assert mapped.find(column(3))[0, 0] == 2


def test_time_that_runs_backwards_evicts_nothing() -> None:
    mapped = two_fields(max_idle_ms=100)
    mapped.admit(column(1), 1000)
    mapped.admit(column(2), 10)
    mapped.admit(column(3), 1050)
    assert mapped.evicted == {"idle": 0, "budget": 0, "refused": 0}
    assert mapped.find(column(2))[0, 0] == 3


def test_unadmitted_ids_do_not_grow_the_map_without_bound() -> None:
    mapped = two_fields(capacity=64, admit_after=2)
    for i in range(100):
        mapped.admit(column(*range(1000 * i, 1000 * i + 32)), i)
    assert mapped.counts[id_map.USED] <= 3 * 64
    assert mapped.admitted == 0


def test_a_loaded_map_continues_byte_for_byte() -> None:
    generator = np.random.default_rng(3)
    steps = [generator.integers(0, 200, (20, 2)).astype(np.uint64) for _ in range(40)]
    whole, first = two_fields(capacity=128), two_fields(capacity=128)
    for i, step in enumerate(steps):
        whole.admit(step, i)
        if i < 20:
            first.admit(step, i)
    second = two_fields(capacity=128)
    second.load({k: v.copy() for k, v in first.arrays().items()})
    for i, step in enumerate(steps[20:], 20):
        second.admit(step, i)
    assert {k: v.tobytes() for k, v in whole.arrays().items()} == {k: v.tobytes() for k, v in second.arrays().items()}
    assert whole.evicted["budget"] > 0
