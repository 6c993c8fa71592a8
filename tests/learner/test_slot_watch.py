import logging

import numpy as np
import pytest

from learner.slot_watch import SlotWatch
from models.scenario_slots import Room


def hashes(*values: int) -> "np.ndarray[tuple[int], np.dtype[np.uint64]]":
    return np.array(values, np.uint64)


def test_a_scenario_without_a_slot_is_named_once_by_its_name_or_its_hash(caplog: pytest.LogCaptureFixture) -> None:
    watch = SlotWatch(256)
    with caplog.at_level(logging.WARNING):
        watch.see(hashes(), Room(16, 16, 0), {})
        watch.see(hashes(7, 9, 7), Room(16, 16, 30), {7: "home"})
        watch.see(hashes(9, 7), Room(16, 16, 60), {9: "search"})
    assert [r.getMessage().split(" gets ")[0] for r in caplog.records] == ["scenario home", f"scenario {9:016x}"]
    assert all("all 16 slots are taken; raise scenarios.slots" in r.getMessage() for r in caplog.records)


def test_a_flood_of_scenarios_is_named_up_to_a_number_and_then_no_more(caplog: pytest.LogCaptureFixture) -> None:
    watch = SlotWatch(3)
    with caplog.at_level(logging.WARNING):
        for first in range(0, 40, 4):
            watch.see(hashes(*range(first, first + 4)), Room(1, 1, 5), {})
    assert len(caplog.records) == 4
    assert caplog.records[-1].getMessage().startswith("3 scenarios without a slot were named, more will not be")
