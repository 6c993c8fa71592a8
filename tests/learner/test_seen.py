"""What was trained is remembered: the newest lists, whatever their keys."""

import collections

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from learner import seen
from learner.seen import Seen

U64 = npt.NDArray[np.uint64]


def of(*values: int) -> U64:
    return np.array(values, np.uint64)


class Model:
    """The same in plain Python."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.held = capacity, collections.OrderedDict[int, None]()

    def add(self, keys: U64) -> list[bool]:
        fresh = []
        for key in keys.tolist():
            fresh.append(key not in self.held)
            if fresh[-1]:
                if len(self.held) == self.capacity:
                    self.held.popitem(last=False)
                self.held[key] = None
        return fresh


# Few distinct low bits, so that probes collide and wrap around the end of the table.
KEYS = st.builds(lambda high, low: (high << 40) + low, st.integers(1, 6), st.sampled_from([4093, 4094, 4095, 0, 1, 2]))
BATCHES = st.lists(st.lists(KEYS, max_size=12), max_size=30)


@given(BATCHES, st.integers(1, 20))
def test_it_agrees_with_an_ordered_dict_on_any_sequence(batches: list[list[int]], capacity: int) -> None:
    ours, model = Seen(capacity), Model(capacity)
    for batch in batches:
        keys = of(*batch)
        assert ours.add(keys).tolist() == model.add(keys)
        assert len(ours) == len(model.held)


@given(BATCHES, BATCHES, st.integers(1, 20))
def test_a_restart_in_between_changes_nothing(before: list[list[int]], after: list[list[int]], capacity: int) -> None:
    straight, first = Seen(capacity), Seen(capacity)
    for batch in before:
        straight.add(of(*batch))
        first.add(of(*batch))
    resumed = Seen(capacity)
    resumed.load({name: array.copy() for name, array in first.arrays().items()})
    for batch in after:
        assert resumed.add(of(*batch)).tolist() == straight.add(of(*batch)).tolist()


def test_a_smaller_memory_after_a_restart_keeps_the_newest() -> None:
    big = Seen(10)
    big.add(of(*range(1, 14)))
    small = Seen(3)
    small.load(big.arrays())
    assert small.add(of(11, 12, 13)).tolist() == [False, False, False]
    assert small.add(of(10)).tolist() == [True]


def test_the_first_of_two_equal_lists_in_one_call_is_new() -> None:
    assert Seen(5).add(of(7, 7, 8)).tolist() == [True, False, True]


def test_request_task_and_version_all_matter() -> None:
    one = np.array([1, 1, 1, 2], np.uint64)
    two = np.array([1, 1, 2, 1], np.uint64)
    version = np.array([0, 1, 0, 0], np.int32)
    assert len(set(seen.keys_of(one, two, version).tolist())) == 4
    assert (seen.keys_of(one, two, version) > 0).all()
