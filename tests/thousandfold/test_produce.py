import itertools
import json
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from state import config, ids, records
from thousandfold import produce
from thousandfold.data import blocks, simulator

WORLD = blocks.World(
    "test", blocks.Entities(["u", "v"], {"age": [3, 4]}), blocks.Entities(["a", "b"], {"tags": [["x"], []]}), ("s",), ("click",)
)
START = 1_000_000


def block(first: int = 0, ts: tuple[int, ...] = (0, 1_000, 3_000), delay_ms: int = 10) -> blocks.Block:
    """Lists of two items; each has a click on its second item."""
    n, none = len(ts), np.zeros((0, 2), np.int64)
    zeros = np.zeros(n, np.int64)
    return blocks.Block(
        first, np.arange(n, dtype=np.int32) % 2, zeros.astype(np.int16), np.array(ts, np.int64), zeros,
        np.arange(0, 2 * n + 1, 2, dtype=np.int64), np.tile(np.array([0, 1], np.int32), n), np.zeros(2 * n, np.float32),
        np.arange(n), np.ones(n, np.int32), zeros.astype(np.int16), zeros + delay_ms, zeros, none, none,
    )  # fmt: skip


def collect(events: list[blocks.Block], pace: produce.Pace, form: produce.Format = "json") -> list[produce.Send]:
    return list(produce.sends(events, WORLD, produce.Stamp(pace, START), "run", form))


class Broker:
    """Acknowledges on poll; refuses the n-th message when told to, and is full for a moment when told to."""

    def __init__(self, refuse: int = -1, full: int = 0) -> None:
        self.sent: list[tuple[str, bytes, bytes, int]] = []
        self.waiting: list[tuple[Callable[..., None], str | None]] = []
        self.refuse, self.full = refuse, full

    def produce(self, topic: str, value: bytes, key: bytes, partition: int, *, on_delivery: Callable[..., None]) -> None:
        if self.full:
            self.full -= 1
            raise BufferError
        self.waiting.append((on_delivery, "refused" if len(self.sent) == self.refuse else None))
        self.sent.append((topic, value, key, partition))

    def poll(self, _: float) -> int:
        for callback, error in self.waiting:
            callback(error, None)
        self.waiting.clear()
        return 0

    def flush(self, _: float) -> int:
        return self.poll(0)


class Clock:
    """Moves by a step at every look."""

    def __init__(self, at_s: float, step_s: float) -> None:
        self.at_s, self.step_s = at_s, step_s

    def __call__(self) -> float:
        self.at_s += self.step_s
        return self.at_s


def generator(broker: Any, **options: Any) -> produce.LoadGenerator:
    return produce.LoadGenerator(config.Config(), producer=broker, clock=Clock(START / 1000, 0.25), **options)


def test_a_speed_divides_the_time_between_lists_and_leaves_delays_alone() -> None:
    found = collect([block()], produce.Pace(speed=10))
    lists = [s.message.ts_ms - START for s in found if s.rows]
    actions = [s.message.ts_ms - START for s in found if not s.rows]
    assert lists == [0, 100, 300]
    assert actions == [10, 110, 310]


def test_a_rate_spaces_lists_by_their_rows_across_blocks() -> None:
    found = collect([block(), block(first=3, ts=(9_000, 9_001))], produce.Pace(rate=100))
    assert [s.message.ts_ms - START for s in found if s.rows] == [0, 20, 40, 60, 80]


@pytest.mark.parametrize("pace", [produce.Pace(), produce.Pace(1, 1), produce.Pace(speed=-1)])
def test_a_pace_needs_exactly_one_of_speed_and_rate(pace: produce.Pace) -> None:
    with pytest.raises(ValueError, match="one of a speed factor and a rate"):
        produce.Stamp(pace, START)


@given(st.lists(st.integers(0, 5_000), min_size=1, max_size=30), st.integers(1, 4_000), st.integers(1, 5))
def test_messages_come_in_order_of_their_due_time_each_once_however_the_log_is_cut(
    times: list[int], delay: int, cuts: int
) -> None:
    ts = tuple(sorted(times))
    whole = collect([block(0, ts, delay)], produce.Pace(speed=1))
    size = max(1, len(ts) // cuts)
    parts = [block(k, ts[k : k + size], delay) for k in range(0, len(ts), size)]
    cut = list(produce.sends(parts, WORLD, produce.Stamp(produce.Pace(speed=1), START), "run"))
    due = [s.due_ms for s in cut]
    assert due == sorted(due)
    assert sorted((s.due_ms, s.message.request_id, s.rows) for s in cut) == sorted(
        (s.due_ms, s.message.request_id, s.rows) for s in whole
    )


def test_duplicates_and_held_messages_are_sent_later_with_their_own_time() -> None:
    changed = block()._replace(held_ms=np.array([2_000, 0, 0]), again=np.array([[1, 500]]), a_again=np.array([[0, 7]]))
    found = collect([changed], produce.Pace(speed=1))
    lists = [(s.due_ms - START, s.message.ts_ms - START, s.again) for s in found if s.rows]
    assert lists == [(1_000, 1_000, False), (1_500, 1_000, True), (2_000, 0, False), (3_000, 3_000, False)]
    assert [(s.due_ms - START, s.again) for s in found if not s.rows and s.message.request_id == "run-0"] == [
        (10, False),
        (17, True),
    ]


@pytest.mark.parametrize(("form", "decode"), [("json", msgspec.json.decode), ("msgpack", msgspec.msgpack.decode)])
def test_a_message_has_the_documented_form(form: produce.Format, decode: Callable[[bytes], Any]) -> None:
    broker = Broker()
    generator(broker, form=form).run(collect([block(ts=(0,))], produce.Pace(speed=1), form), threading.Event())
    (topic, value, key, partition), (clicks, action, _, same) = broker.sent
    assert (topic, clicks, key) == ("impressions", "clicks", b"u")
    assert partition == same == ids.of("u") % config.Config().kafka.partitions
    assert decode(value) == {
        "request_id": "run-0", "ts_ms": START, "user_id": "u", "scenario": "s", "user": {"age": 3},
        "items": [
            {"item_id": "a", "position": 0, "features": {"tags": ["x"]}},
            {"item_id": "b", "position": 1, "features": {"tags": []}},
        ],
    }  # fmt: skip
    assert decode(action) == {"request_id": "run-0", "user_id": "u", "ts_ms": START + 10, "item_id": "b", "action": "click"}


def test_every_message_of_the_simulator_is_accepted_by_the_streams() -> None:
    settings = config.parse('[actions]\nother = ["view", "save", "search"]\n')
    made = simulator.Simulator(simulator.Settings(users=50, items=50), 1)
    world, events = made.world, itertools.islice(made.events(), 1)
    decoder = records.decoder(settings)
    checked = 0
    for send in itertools.islice(produce.sends(events, world, produce.Stamp(produce.Pace(speed=1), START), "r"), 3_000):
        value = msgspec.json.encode(send.message)
        (decoder.impression if send.rows else decoder.action)(value, START)
        checked += 1
    assert checked > 500


def test_deliveries_are_logged_and_failures_counted() -> None:
    log: list[produce.Delivered] = []
    made = generator(Broker(refuse=0), delivered=log.append)
    summary = made.run(collect([block()], produce.Pace(speed=1)), threading.Event())
    assert (summary.lists, summary.rows, summary.actions, summary.failed) == (2, 4, 3, 1)
    assert made.first_error == "refused"
    assert [(d.request_id, d.rows, d.item_id) for d in log if d.rows] == [("run-1", 2, None), ("run-2", 2, None)]
    assert all(d.item_id == "b" and d.sent_ms >= d.ts_ms for d in log if not d.rows)


def test_a_repeated_message_is_not_counted_as_another_list() -> None:
    summary = generator(Broker()).run(
        collect([block()._replace(again=np.array([[0, 5]]))], produce.Pace(speed=1)), threading.Event()
    )
    assert (summary.lists, summary.rows, summary.repeated) == (3, 6, 1)


def test_a_full_queue_is_waited_for_and_loses_nothing() -> None:
    summary = generator(Broker(full=3)).run(collect([block()], produce.Pace(speed=1)), threading.Event())
    assert (summary.lists, summary.actions, summary.failed) == (3, 3, 0)


def test_stopping_delivers_what_is_in_flight_and_sends_no_more() -> None:
    broker, stop = Broker(), threading.Event()

    def delivered(_: produce.Delivered) -> None:
        stop.set()

    summary = generator(broker, delivered=delivered).run(collect([block()], produce.Pace(speed=0.001)), stop)
    assert summary.lists + summary.actions == len(broker.sent) < 6


def test_a_time_limit_ends_the_run_before_later_messages() -> None:
    summary = generator(Broker()).run(collect([block()], produce.Pace(speed=1)), threading.Event(), seconds=2.6)
    assert summary.lists == 2


def test_what_is_not_acknowledged_at_the_end_counts_as_failed() -> None:
    class Silent(Broker):
        def poll(self, _: float) -> int:
            return 0

        def flush(self, _: float) -> int:
            return len(self.waiting)

    summary = generator(Silent()).run(collect([block()], produce.Pace(speed=1)), threading.Event())
    assert (summary.lists, summary.failed) == (0, 6)


def test_a_limit_counts_lists_and_keeps_their_clicks() -> None:
    found = list(produce.limited([block(), block(first=3)], 4))
    assert [len(b.user) for b in found] == [3, 1]
    sent = collect(found, produce.Pace(speed=1))
    assert len([s for s in sent if not s.rows]) == 4


def test_a_summary_is_json() -> None:
    assert json.loads(msgspec.json.encode(produce.Summary(lists=1)))["lists"] == 1
