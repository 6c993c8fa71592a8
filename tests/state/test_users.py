from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from state import users


def fresh(n: int = 2) -> users.Rings:
    return users.rings(np.zeros(n, users.dtype(1, 2)))


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(1, 40))))
def test_a_user_remembers_the_last_requests_and_nobody_elses(pushed: list[tuple[int, int]]) -> None:
    rows, expected = fresh(), [deque[int](maxlen=users.REQUESTS), deque[int](maxlen=users.REQUESTS)]
    for user, request in pushed:
        if users.find_request(rows, user, np.uint64(request)) < 0:
            users.push_request(rows, user, np.uint64(request), np.uint64(request + 100), 7)
            expected[user].append(request)
    for user in (0, 1):
        assert {r for r in range(41) if users.find_request(rows, user, np.uint64(r)) >= 0} == set(expected[user])
        for request in expected[user]:
            assert rows.scenario[user, users.find_request(rows, user, np.uint64(request))] == request + 100


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 30)), max_size=60))
def test_a_user_remembers_the_last_actions(pushed: list[tuple[int, int]]) -> None:
    rows, expected = fresh(), deque[tuple[int, int]](maxlen=users.ACTIONS)
    for item, ts in pushed:
        known = (item, ts) in expected
        assert users.has_action(rows, 1, np.uint64(item), ts, 3) == known
        users.push_action(rows, 1, np.uint64(item), ts, 3)
        expected.append((item, ts))
    assert not users.has_action(rows, 1, np.uint64(9), 1, 3)
    assert rows.actions[0] == 0
    assert rows.actions[1] == len(pushed)


@pytest.mark.parametrize(("lists", "items"), [(0, 0), (1, 2), (3, 32)])
def test_a_row_survives_the_trip_through_bytes(lists: int, items: int) -> None:
    rows = np.zeros(3, users.dtype(lists, items))
    users.push_action(users.rings(rows), 2, np.uint64(5), 6, 1)
    back = np.frombuffer(rows.tobytes(), rows.dtype)
    assert users.has_action(users.rings(back.copy()), 2, np.uint64(5), 6, 1)
    assert rows.dtype.itemsize == 16 + 16 * (24 + 8 * lists) + 20 * (18 + 8 * items)
