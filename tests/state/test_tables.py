import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from state import tables

KEYS = st.sampled_from([0, 1, 2**64 - 1, 2**63]) | st.integers(0, 2**64 - 1)


@given(st.lists(st.tuples(st.integers(0, 1), KEYS), max_size=60))
def test_every_key_gets_one_slot_and_keeps_it_while_the_table_grows(added: list[tuple[int, int]]) -> None:
    table = tables.empty(2, 8)
    expected: list[dict[int, int]] = [{}, {}]
    for kind, key in added:
        while (slot := tables.add(table, kind, np.uint64(key))) < 0:
            table = tables.grown(table)
        assert expected[kind].setdefault(key, len(expected[kind])) == slot
    for kind in (0, 1):
        assert {k: tables.find(table, kind, np.uint64(k)) for k in expected[kind]} == expected[kind]
        other = [k for _, k in added if k not in expected[kind]]
        assert all(tables.find(table, kind, np.uint64(k)) == -1 for k in other)


@given(st.lists(KEYS, unique=True, max_size=8), st.data())
def test_what_is_kept_moves_to_the_front_and_the_rest_is_gone(keys: list[int], data: st.DataObject) -> None:
    table = tables.empty(1, 8)
    tables.add_all(table, 0, np.array(keys, np.uint64), 3)
    chosen = sorted(data.draw(st.sets(st.sampled_from(range(len(keys)))))) if keys else []
    tables.keep(table, 0, np.array(chosen, np.int64))
    assert [tables.find(table, 0, np.uint64(k)) for k in keys] == [
        chosen.index(i) if i in chosen else -1 for i in range(len(keys))
    ]


def test_a_full_table_keeps_what_the_store_lacks_what_is_in_use_and_the_lately_seen() -> None:
    table = tables.empty(1, 8)
    for i in range(8):
        tables.add_all(table, 0, np.array([i], np.uint64), i)
    table.flags[0, :] = 0
    table.flags[0, 0] = tables.PENDING
    table.flags[0, 1] = tables.FLYING
    table.flags[0, 6] = tables.UNKNOWN
    assert tables.kept(table, 0, 7).tolist() == [0, 1, 5, 7]
    assert tables.add(table, 0, np.uint64(99)) == -1
