"""The plan's rule: after any number of crashes each offset counts once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from state import plan
from state.plan import Record


def record(
    sequence: int,
    *ranges: plan.Range,
    steps: tuple[int, int] = (1, 1),
    skipped: tuple[plan.Skip, ...] = (),
    incarnation: int = 0,
) -> Record:
    return Record(
        sequence=sequence, incarnation=incarnation, first_step=steps[0], last_step=steps[1], wall_ms=0, ranges=ranges,
        skipped=skipped, rows=sum(r[3] - r[2] for r in ranges), seed=0, threads=1, code="c", spec="s",
    )  # fmt: skip


def test_a_record_survives_the_wire() -> None:
    one = record(3, ("episodes", 1, 5, 9), skipped=(("episodes", 1, 6, 0, "duplicate"),))
    assert plan.decode(plan.encode(one)) == one
    with pytest.raises(plan.UnreadableRecord):
        plan.decode(b"{}")


def test_a_restart_replaces_what_was_planned_after_its_snapshot() -> None:
    records = [
        record(0, ("e", 0, 0, 4), steps=(1, 2)),
        record(1, ("e", 0, 4, 9), steps=(3, 5), skipped=(("e", 0, 5, 0, "duplicate"),)),
        record(2, ("e", 1, 0, 3), steps=(6, 6)),
        record(1, ("e", 0, 4, 6), steps=(3, 3), incarnation=1),
    ]
    result = plan.consumed(records)
    assert result.ranges == {("e", 0): [(0, 6)]}
    assert result.skipped == {}
    assert (result.superseded, result.rows, result.steps) == (2, 6, 3)
    assert not result.gaps
    assert not result.overlaps


def test_a_record_without_steps_is_not_replaced_by_the_next() -> None:
    result = plan.consumed([record(0, ("e", 0, 0, 2), steps=(1, 0)), record(1, ("e", 0, 2, 4), steps=(1, 1))])
    assert result.ranges == {("e", 0): [(0, 4)]}
    assert result.steps == 1


def test_lost_and_repeated_offsets_are_named() -> None:
    result = plan.consumed([record(0, ("e", 0, 0, 5)), record(1, ("e", 0, 3, 6)), record(2, ("e", 0, 8, 9))])
    assert result.overlaps == [("e", 0, 3, 5)]
    assert result.gaps == [("e", 0, 6, 8)]


@given(st.lists(st.tuples(st.integers(1, 5), st.booleans(), st.integers(0, 6)), max_size=40))
def test_any_history_of_crashes_covers_each_offset_once(events: list[tuple[int, bool, int]]) -> None:
    """A model learner: plans fetches, snapshots sometimes, and falls back to the last snapshot at a crash."""
    sequence = offset = incarnation = 0
    snapshot = (0, 0)
    log: list[Record] = []
    for size, crash, action in events:
        if crash:
            (sequence, offset), incarnation = snapshot, incarnation + 1
        log.append(record(sequence, ("e", 0, offset, offset + size), incarnation=incarnation))
        sequence, offset = sequence + 1, offset + size
        if action == 0:
            snapshot = (sequence, offset)
    result = plan.consumed(log)
    assert result.ranges == ({("e", 0): [(0, offset)]} if log else {})
    assert not result.gaps
    assert not result.overlaps
