import asyncio
from collections.abc import Iterable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from state import columns, features, ids, memory_store, records, spec, stores
from streams import enrich, event_time
from tests import feature_events as raw

CONFIG = raw.config()
PROMPT = raw.config("max_items = 500", extra="[streams]\nlists_per_message = 2\n")
EAGER = msgspec.structs.replace(CONFIG, join=msgspec.structs.replace(CONFIG.join, lateness_s=0.0))
BEHIND, CAUGHT_UP = enrich.CaughtUp(impressions=False, clicks=False), enrich.CaughtUp(impressions=True, clicks=True)
WALL = raw.NOW + 500_000


def new_store() -> memory_store.MemoryStore:
    return memory_store.MemoryStore(features.Engine(CONFIG, 64).schema, lambda: 0)


class Worker:
    """The shell in miniature: one process with its core, its store and what it delivered."""

    def __init__(self, server: stores.Store, config: Any = CONFIG, partitions: Iterable[int] = (0,)) -> None:
        self.core, self.server, self.config = enrich.Enrich(config, 64), server, config
        self.sent: list[tuple[int, dict[str, Any], columns.Columns]] = []
        self.acknowledged: list[Any] = []
        self._replies: list[tuple[stores.Wanted, stores.Found]] = []
        for partition in partitions:
            self.assign(partition)

    def assign(self, partition: int) -> None:
        topics = (self.config.topics.impressions, self.config.topics.clicks)
        fences = asyncio.run(self.server.fences([(topic, partition) for topic in topics]))
        self.core.assign(partition, fences[0], fences[1], WALL)

    def ahead(self) -> None:
        """Close a group and ask for what it needs; the reply is on its way."""
        wanted = self.core.ahead(WALL / 1000)
        self._replies.append((wanted, asyncio.run(self.server.read(wanted))))

    def _fill(self) -> None:
        for wanted, found in self._replies:
            self.core.fill(wanted, found, WALL / 1000)
        self._replies.clear()

    def batch(self, now_ms: int = WALL, state: enrich.CaughtUp = BEHIND) -> list[tuple[int, dict[str, Any], columns.Columns]]:
        """One micro-batch; what was sent."""
        self._fill()
        if not self.core.begin(now_ms, dict.fromkeys(range(4), state)):
            return []
        while not features.is_empty(wanted := self.core.wanted(now_ms / 1000)):
            self.core.fill(wanted, asyncio.run(self.server.read(wanted)), now_ms / 1000)
        new = [(m.partition, *columns.unpack(m.value)) for m in self.core.finish(now_ms)]
        self.sent += new
        return new

    def count(self) -> None:
        counting = self.core.take()
        self._fill()
        self.core.merged(asyncio.run(self.server.count(counting.counted)))
        self.acknowledged += counting.tokens


def shown(worker: Worker) -> list[int]:
    return [r for _, _, c in worker.sent for r in c["request"].tolist()]


def acted(messages: list[tuple[int, dict[str, Any], columns.Columns]]) -> list[int]:
    return [o for _, _, c in messages for o in c["a_offset"].tolist()]


def test_a_message_holds_the_columns_of_the_contract() -> None:
    worker = Worker(new_store())
    click = raw.action("r", raw.NOW + 10, value=2.0)
    worker.core.impression(0, 5, raw.impression("r", raw.NOW, items=("i0", "i1")), "a", WALL)
    worker.core.action(0, 7, click, "b", WALL)
    worker.core.impression(0, 6, raw.impression("next", raw.NOW + 20), "c", WALL)
    ((partition, head, found),) = worker.batch()
    width, numbers = spec.id_width(CONFIG.features), len(spec.number_names(CONFIG.features))
    assert partition == 0
    assert {k: (v.dtype.str, v.shape) for k, v in found.items()} == {
        "request": ("<u8", (2,)), "user": ("<u8", (2,)), "scenario": ("<u8", (2,)), "ts": ("<i8", (2,)),
        "n_items": ("<i4", (2,)), "offset": ("<i8", (2,)),
        "item": ("<u8", (3,)), "ids": ("<u8", (3, width)), "x": ("<f4", (3, numbers)),
        "a_request": ("<u8", (1,)), "a_item": ("<u8", (1,)), "a_user": ("<u8", (1,)), "a_ts": ("<i8", (1,)),
        "a_kind": ("<i2", (1,)), "a_value": ("<f4", (1,)), "a_offset": ("<i8", (1,)), "a_raw_length": ("<i4", (1,)),
        "a_raw": ("|u1", (len(click),)),
    }  # fmt: skip
    assert head["spec"] == spec.fingerprint(CONFIG.features, CONFIG.action_kinds)
    assert head["scenarios"] == {str(ids.of("s0")): "s0"}
    assert found["request"].tolist() == [ids.of("r"), ids.of("next")]
    assert found["a_raw"].tobytes() == click
    assert (found["a_item"][0], found["a_kind"][0], found["a_value"][0], found["a_offset"][0]) == (ids.of("i0"), 0, 2.0, 7)


def test_an_action_waits_until_the_impressions_up_to_its_time_were_taken() -> None:
    worker = Worker(new_store())
    worker.core.impression(0, 0, raw.impression("a", raw.NOW), 0, WALL)
    worker.core.action(0, 0, raw.action("a", raw.NOW + 100), 0, WALL)
    assert acted(worker.batch()) == []
    assert worker.core.held_actions == 1
    worker.core.impression(0, 1, raw.impression("b", raw.NOW + 99), 1, WALL)
    assert acted(worker.batch()) == []
    worker.core.impression(0, 2, raw.impression("c", raw.NOW + 100), 2, WALL)
    assert acted(worker.batch()) == [0]


def test_a_quiet_partition_releases_its_actions_after_the_idle_timeout_once_it_is_caught_up() -> None:
    worker, idle = Worker(new_store()), int(CONFIG.join.idle_timeout_s * 1000)
    worker.core.impression(0, 0, raw.impression("a", raw.NOW), 0, WALL)
    worker.core.action(0, 0, raw.action("a", raw.NOW + 100), 0, WALL)
    assert acted(worker.batch(WALL, CAUGHT_UP)) == []
    assert acted(worker.batch(WALL + idle, BEHIND)) == []
    assert acted(worker.batch(WALL + idle, CAUGHT_UP)) == [0]


@pytest.mark.parametrize("together", [True, False])
def test_a_click_that_came_before_its_impression_is_not_in_the_impressions_features(together: bool) -> None:
    """Its clock is behind, or its list is late: either way a label must not leak into the values of its own list."""
    worker, alone = Worker(new_store()), Worker(new_store())
    for w in (worker, alone):
        w.core.impression(0, 0, raw.impression("first", raw.NOW, items=("i1",)), 0, WALL)
        w.batch()
    worker.core.action(0, 0, raw.action("late", raw.NOW - 50), 0, WALL)
    if not together:
        assert acted(worker.batch()) == []
    for w in (worker, alone):
        w.core.impression(0, 1, raw.impression("late", raw.NOW + 10), 1, WALL)
    (sent,), (expected,) = worker.batch(), alone.batch()
    assert acted([sent]) == [0]
    assert sent[2]["x"].tobytes() == expected[2]["x"].tobytes()


def test_a_click_whose_list_never_comes_is_released_after_the_allowed_lateness() -> None:
    worker, lateness = Worker(new_store()), int(CONFIG.join.lateness_s * 1000)
    worker.core.action(0, 0, raw.action("nobody", raw.NOW), 0, WALL)
    worker.core.impression(0, 0, raw.impression("a", raw.NOW + lateness - 1), 0, WALL)
    assert acted(worker.batch()) == []
    worker.core.impression(0, 1, raw.impression("b", raw.NOW + lateness), 1, WALL)
    assert acted(worker.batch()) == [0]
    assert worker.core.engine.unknown_requests == 1


def test_a_search_has_no_list_to_wait_for() -> None:
    worker = Worker(new_store())
    worker.core.action(0, 0, raw.action("none", raw.NOW, item=None, kind="search"), 0, WALL)
    worker.core.impression(0, 0, raw.impression("a", raw.NOW), 0, WALL)
    assert acted(worker.batch()) == [0]


def test_actions_leave_in_the_order_of_their_offsets_however_their_times_run() -> None:
    worker = Worker(new_store())
    for i, ts in enumerate((0, 900, 100)):
        worker.core.action(0, i, raw.action("a", raw.NOW + ts), i, WALL)
    worker.core.impression(0, 0, raw.impression("a", raw.NOW), 0, WALL)
    worker.core.impression(0, 1, raw.impression("b", raw.NOW + 500), 1, WALL)
    first = worker.batch()
    assert acted(first) == [0]
    worker.core.impression(0, 2, raw.impression("c", raw.NOW + 900), 2, WALL)
    assert sorted(acted(worker.batch())) == [1, 2]
    assert first[-1][1]["watermark_ms"] <= raw.NOW + 100


def test_only_the_last_message_of_a_batch_moves_the_watermark_and_carries_the_actions() -> None:
    worker = Worker(new_store(), PROMPT)
    for i in range(5):
        worker.core.impression(0, i, raw.impression(f"r{i}", raw.NOW + i), i, WALL)
    worker.core.action(0, 0, raw.action("r0", raw.NOW + 3), 0, WALL)
    sent = worker.batch()
    assert [len(c["ts"]) for _, _, c in sent] == [2, 2, 1]
    assert [len(c["a_ts"]) for _, _, c in sent] == [0, 0, 1]
    assert [h["watermark_ms"] for _, h, _ in sent] == [event_time.NEVER, event_time.NEVER, raw.NOW + 3]
    assert [h["before_ms"] for _, h, _ in sent] == [event_time.NEVER, raw.NOW + 1, raw.NOW + 3]


def test_messages_stay_below_the_size_limit() -> None:
    config = raw.config(extra="[topics]\nmax_message_bytes = 20000\n")
    worker = Worker(new_store(), config)
    many = tuple(f"i{i}" for i in range(40))
    for i in range(6):
        assert worker.core.impression(0, i, raw.impression(f"r{i}", raw.NOW + i, items=many), i, WALL) is None
    for i in range(300):
        worker.core.action(0, i, raw.action("r0", raw.NOW + 1, item=f"i{i}"), i, WALL)
    sent = worker.batch()
    assert len(shown(worker)) == 6
    assert acted(sent) == list(range(300))
    assert max(len(columns.pack(c, **h)) for _, h, c in sent) <= 20000
    rejected = worker.core.impression(0, 6, raw.impression("r6", raw.NOW, items=tuple(f"i{i}" for i in range(150))), 6, WALL)
    assert rejected is not None
    assert rejected.reason == "too_large"


def test_what_is_rejected_comes_back_is_acknowledged_in_its_place_and_does_not_come_back_again() -> None:
    server = new_store()
    worker = Worker(server)
    assert worker.core.impression(0, 0, raw.impression("a", raw.NOW), "i0", WALL) is None
    rejected = worker.core.impression(0, 1, b"{", "i1", WALL)
    assert isinstance(rejected, records.Rejected)
    assert worker.core.impression(0, 2, raw.impression("b", raw.NOW + 1), "i2", WALL) is None
    unknown = worker.core.action(0, 0, raw.action("a", raw.NOW, kind="like"), "c0", WALL)
    assert unknown is not None
    assert unknown.reason == "unknown_action"
    worker.batch()
    worker.count()
    assert worker.acknowledged == ["i0", "i1", "i2", "c0"]
    again = Worker(server)
    assert again.core.impression(0, 1, b"{", "i1", WALL) is None
    assert (worker.core.counts.rejected, again.core.counts.stale) == (2, 1)


def test_a_request_sent_twice_is_forwarded_once() -> None:
    worker = Worker(new_store())
    for offset in range(2):
        worker.core.impression(0, offset, raw.impression("a", raw.NOW), offset, WALL)
    worker.batch()
    worker.core.impression(0, 2, raw.impression("a", raw.NOW), 2, WALL)
    worker.batch()
    assert shown(worker) == [ids.of("a")]
    assert worker.core.counts.duplicates == 2
    worker.count()
    assert worker.acknowledged == [0, 1, 2]


def test_partitions_keep_their_own_watermarks_and_messages() -> None:
    worker = Worker(new_store(), partitions=(0, 2))
    worker.core.impression(0, 0, raw.impression("a", raw.NOW + 9, "u0"), 0, WALL)
    worker.core.impression(2, 0, raw.impression("b", raw.NOW, "u1"), 1, WALL)
    state = enrich.CaughtUp(impressions=False, clicks=True)
    sent = worker.batch(WALL, state)
    assert [(p, h["watermark_ms"], c["request"].tolist()) for p, h, c in sent] == [
        (0, raw.NOW + 9, [ids.of("a")]),
        (2, raw.NOW, [ids.of("b")]),
    ]


def test_a_silent_partition_moves_its_watermark_on_until_nobody_can_wait_for_it() -> None:
    worker = Worker(new_store())
    worker.core.impression(0, 0, raw.impression("a", raw.NOW), 0, WALL)
    worker.batch(WALL, CAUGHT_UP)
    times = [WALL + 50 * i for i in range(1, 3000)]
    marks = [h["watermark_ms"] for now in times for _, h, _ in worker.batch(now, CAUGHT_UP)]
    assert marks == sorted(set(marks))
    assert marks[-1] >= raw.NOW + 1000 * (2 * CONFIG.join.window_s + 2 * CONFIG.join.lateness_s)
    assert len(marks) <= 2999 * 50 / enrich.QUIET_MS + 1
    assert worker.batch(times[-1] + 10_000, CAUGHT_UP) == []


def test_an_old_owner_is_fenced_and_the_new_one_counts_on() -> None:
    server = new_store()
    old = Worker(server)
    old.core.impression(0, 0, raw.impression("a", raw.NOW), 0, WALL)
    old.batch()
    new = Worker(server)
    new.core.impression(0, 0, raw.impression("a", raw.NOW), 0, WALL)
    new.batch()
    new.count()
    with pytest.raises(stores.Fenced):
        old.count()


def totals(server: stores.Store, history: list[raw.Event]) -> stores.Found:
    """All cells that the lists of a history read, from the store."""
    probe = features.Engine(CONFIG, 64, mode="reader")
    wanted = probe.wanted(raw.columns(probe, history, records.decoder(CONFIG))[0], None, 0.0)
    return asyncio.run(server.read(wanted))


def test_a_message_that_comes_again_within_an_assignment_is_acknowledged_and_nothing_else() -> None:
    worker = Worker(new_store())
    for offset in (0, 1, 0, 1, 2):
        worker.core.impression(0, offset, raw.impression(f"r{offset}", raw.NOW + offset), offset, WALL)
    worker.batch()
    worker.core.impression(0, 1, raw.impression("r1", raw.NOW + 1), 1, WALL)
    worker.batch()
    worker.count()
    assert shown(worker) == [ids.of("r0"), ids.of("r1"), ids.of("r2")]
    assert (worker.core.counts.stale, worker.acknowledged) == (3, [0, 1, 0, 1, 2, 1])
    assert asyncio.run(worker.server.fences([("impressions", 0)])) == [2], "a fence never moves back"


def test_lists_read_ahead_run_in_groups_and_the_last_group_alone_is_caught_up() -> None:
    worker = Worker(new_store())
    for offset in range(2):
        worker.core.impression(0, offset, raw.impression(f"r{offset}", raw.NOW + offset), offset, WALL)
        worker.ahead()
    assert (worker.core.groups, worker.core.waiting_partitions()) == (2, {0})
    assert [c["request"].tolist() for _, _, c in worker.batch()] == [[ids.of("r0")]]
    assert worker.core.waiting_partitions() == set()
    assert [c["request"].tolist() for _, _, c in worker.batch()] == [[ids.of("r1")]]
    assert worker.core.groups == 0


def test_what_was_read_ahead_is_not_asked_for_again_however_long_the_group_waited() -> None:
    worker = Worker(new_store())
    worker.core.impression(0, 0, raw.impression("r", raw.NOW), 0, WALL)
    wanted = worker.core.ahead(WALL / 1000)
    assert sum(map(len, wanted.cells)) > 0
    assert len(wanted.users) == 1
    worker.core.fill(wanted, asyncio.run(worker.server.read(wanted)), WALL / 1000)
    assert worker.core.begin(WALL, {0: BEHIND})
    assert features.is_empty(worker.core.wanted(WALL / 1000 + 10 * CONFIG.store.cache_age_s))


@st.composite
def logs(draw: st.DrawFn) -> list[raw.Event]:
    """A history of strictly growing times, apart from what is sent twice."""
    made: dict[bytes, bytes] = {}
    out = []
    for i, (kind, value) in enumerate(draw(raw.histories(20))):
        coder = msgspec.json if kind == "list" else msgspec.msgpack
        if value not in made:
            made[value] = coder.encode({**coder.decode(value), "ts_ms": raw.NOW + 700 * i})
        out.append((kind, made[value]))
    return out


def play(history: list[raw.Event], steps: list[str], server: stores.Store) -> dict[int, bytes]:
    """Read a log in order with a worker that does what `steps` say after each event; returns x by request, of its first copy.

    A crash loses the worker with all that is not in the store; the next one reads again from what was acknowledged.
    """
    offsets = {"list": 0, "action": 0}
    numbered = []
    for kind, value in history:
        numbered.append((kind, offsets[kind], value))
        offsets[kind] += 1
    out: dict[int, np.ndarray[Any, Any]] = {}
    done: set[tuple[str, int]] = set()

    def collect(worker: Worker) -> None:
        for _, _, c in worker.sent:
            for request, rows in zip(c["request"].tolist(), np.split(c["x"], np.cumsum(c["n_items"])[:-1]), strict=False):
                out.setdefault(request, rows)
        worker.sent.clear()
        done.update(worker.acknowledged)

    worker, at, moves = Worker(server, EAGER), 0, iter(steps)
    while at < len(numbered):
        kind, offset, value = numbered[at]
        take = worker.core.impression if kind == "list" else worker.core.action
        if (kind, offset) not in done:
            take(0, offset, value, (kind, offset), WALL)
        at += 1
        step = next(moves, "wait")
        if step == "again":
            at = max(0, at - 3)
        if step == "ahead":
            worker.ahead()
        if step in {"batch", "count", "crash"}:
            worker.batch()
        if step == "count":
            worker.count()
        collect(worker)
        if step == "crash":
            worker, at = Worker(server, EAGER), 0
    for _ in range(worker.core.groups + 1):
        worker.batch(WALL)
    worker.batch(WALL + 60_000, CAUGHT_UP)
    worker.count()
    collect(worker)
    assert done == {(kind, offset) for kind, offset, _ in numbered}
    return {request: rows.tobytes() for request, rows in out.items()}


@settings(max_examples=40)
@given(logs(), st.lists(st.sampled_from(["wait", "ahead", "batch", "count", "again", "crash"]), max_size=30))
def test_a_crash_a_step_back_or_reading_ahead_at_any_point_leaves_the_same_values_and_every_counter_exact(
    history: list[raw.Event], steps: list[str]
) -> None:
    calm, stormy = new_store(), new_store()
    expected, found = play(history, [], calm), play(history, steps, stormy)
    assert found.keys() == expected.keys()
    for request, x in found.items():
        np.testing.assert_allclose(
            np.frombuffer(x, np.float32), np.frombuffer(expected[request], np.float32), rtol=2e-5, atol=1e-6
        )
    if any(kind == "list" for kind, _ in history):
        for a, b in zip(totals(calm, history).cells, totals(stormy, history).cells, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@settings(max_examples=30)
@given(logs(), st.data())
def test_partitions_that_move_between_two_workers_keep_every_counter_exact(history: list[raw.Event], data: st.DataObject) -> None:
    """Users are split over two partitions; the shared cells are counted by whoever holds a partition at the time."""

    def partition(value: bytes) -> int:
        decode = msgspec.json.decode if value[:1] == b"{" else msgspec.msgpack.decode
        return int(decode(value)["user_id"][-1])

    calm, moving = new_store(), new_store()
    alone, pair = Worker(calm, EAGER, (0, 1)), [Worker(moving, EAGER, (0,)), Worker(moving, EAGER, (1,))]
    owner = [0, 1]
    for i, (kind, value) in enumerate(history):
        p = partition(value)
        for worker in (alone, pair[owner[p]]):
            (worker.core.impression if kind == "list" else worker.core.action)(p, i, value, (kind, i), WALL)
        if data.draw(st.booleans()):
            for worker in pair:
                worker.batch(WALL + 60_000, CAUGHT_UP)
                worker.count()
            if data.draw(st.booleans()):
                gives, takes = pair[owner[p]], pair[1 - owner[p]]
                gives.core.revoke([p])
                takes.assign(p)
                owner[p] = 1 - owner[p]
    for worker in (alone, *pair):
        worker.batch(WALL + 60_000, CAUGHT_UP)
        worker.count()
    if any(kind == "list" for kind, _ in history):
        whole = slice(2, 4)  # exposures and the first action of the whole-time window
        for a, b in zip(totals(calm, history).cells, totals(moving, history).cells, strict=True):
            np.testing.assert_allclose(a[:, whole], b[:, whole], rtol=1e-9)
