import itertools
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from state import config as configuration
from state import ids
from streams import join

WINDOW, LATENESS = 5_000, 400
RULES = join.Rules(WINDOW, LATENESS, False, (((0, 0.0),), ((1, 2.0),), ()), 2)
EAGER = RULES._replace(eager=True)
CLICK, LONG, VIEW = 0, 1, 2
END = 10**9


class Shown(NamedTuple):
    request: int
    ts: int
    items: tuple[int, ...]
    offset: int = -1


class Acted(NamedTuple):
    request: int
    item: int
    ts: int
    kind: int
    value: float
    offset: int


KINDS: tuple[Any, ...] = (Shown, Acted)
Message = tuple[dict[str, Any], dict[str, Any]]


def message(
    events: list[Shown | Acted], watermark_ms: int, before_ms: int = join.NEVER, before_offsets: tuple[int, int] = (-1, -1)
) -> Message:
    shown = [e for e in events if isinstance(e, Shown)]
    acted = [e for e in events if isinstance(e, Acted)]
    items = [i for e in shown for i in e.items]
    raw = [b"raw-%d" % a.offset for a in acted]
    columns = {
        "request": np.array([e.request for e in shown], np.uint64),
        "user": np.array([e.request + 7 for e in shown], np.uint64),
        "scenario": np.array([e.request % 2 for e in shown], np.uint64),
        "ts": np.array([e.ts for e in shown], np.int64),
        "n_items": np.array([len(e.items) for e in shown], np.int32),
        "offset": np.array([e.request if e.offset < 0 else e.offset for e in shown], np.int64),
        "item": np.array(items, np.uint64),
        "ids": np.array([[i, i + 1] for i in items], np.uint64).reshape(-1, 2),
        "x": np.array([[float(i)] for i in items], np.float32).reshape(-1, 1),
        "a_request": np.array([a.request for a in acted], np.uint64),
        "a_item": np.array([a.item for a in acted], np.uint64),
        "a_user": np.array([a.request + 7 for a in acted], np.uint64),
        "a_ts": np.array([a.ts for a in acted], np.int64),
        "a_kind": np.array([a.kind for a in acted], np.int16),
        "a_value": np.array([a.value for a in acted], np.float32),
        "a_offset": np.array([a.offset for a in acted], np.int64),
        "a_raw_length": np.array([len(r) for r in raw], np.int32),
        "a_raw": np.frombuffer(b"".join(raw), np.uint8),
    }
    return {"watermark_ms": watermark_ms, "before_ms": before_ms, "before_offsets": before_offsets, "scenarios": {}}, columns


class Seen:
    """What came out of one or more lives of a partition."""

    def __init__(self) -> None:
        self.labels: dict[tuple[int, int], tuple[float, ...]] = {}
        self.versions: dict[tuple[int, int], dict[int, tuple[float, ...]]] = {}
        self.unjoined: dict[int, str] = {}
        self.different: list[tuple[int, int]] = []
        self.emitted: list[tuple[int, int]] = []

    def add(self, output: join.Output) -> None:
        for gone in output.unjoined:
            assert gone.raw == b"raw-%d" % gone.offset
            self.unjoined.setdefault(gone.offset, gone.reason)
        if output.lists is None:
            return
        c = output.lists
        at = 0
        for request, n, version in zip(c["request"].tolist(), c["n_items"].tolist(), c["version"].tolist(), strict=True):
            self.emitted.append((request, version))
            for row in range(at, at + n):
                key, label = (request, int(c["item"][row])), tuple(c["label"][row].tolist())
                assert c["x"][row, 0] == c["item"][row]
                if self.versions.setdefault(key, {}).setdefault(version, label) != label:
                    self.different.append(key)
                if version == 0:
                    self.labels.setdefault(key, label)
            at += n
        assert at == len(c["item"]) == len(c["weight"])


@st.composite
def logs(draw: st.DrawFn) -> tuple[list[Shown], list[Acted], list[Message]]:
    """A log in any order within the lateness, with any duplication, cut into messages anywhere."""
    n = draw(st.integers(1, 8))
    shown = [Shown(r + 1, draw(st.integers(0, 30_000)), tuple(range(10 * r, 10 * r + draw(st.integers(1, 4))))) for r in range(n)]
    acted = []
    for offset in range(draw(st.integers(0, 12))):
        about = draw(st.sampled_from(shown))
        request = draw(st.sampled_from([about.request] * 6 + [99]))
        item = draw(st.sampled_from([*about.items, *about.items, 1_000]))
        ts = about.ts + draw(st.integers(0, WINDOW + 800))
        kind, value = draw(st.sampled_from([CLICK, CLICK, LONG, VIEW])), draw(st.sampled_from([1.0, 3.0]))
        acted.append(Acted(request, item, ts, kind, value, offset))
    events: list[Shown | Acted] = [*shown, *acted]
    ordered: list[Any] = arrivals(draw, events)
    cuts = sorted({0, len(ordered), *draw(st.lists(st.integers(0, len(ordered)), max_size=10))})
    messages, newest, offsets = [], join.NEVER, (-1, -1)
    for a, b in itertools.pairwise(cuts):
        before, newest = newest, max([newest, *(e.ts for e in ordered[a:b])])
        messages.append(message(ordered[a:b], newest, before, offsets))
        offsets = tuple(
            max([offsets[k], *(e.offset for e in ordered[a:b] if isinstance(e, kind))]) for k, kind in enumerate(KINDS)
        )
    messages.append(message([], END, newest, offsets))
    return (
        [e for e in dict.fromkeys(ordered) if isinstance(e, Shown)],
        [e for e in dict.fromkeys(ordered) if isinstance(e, Acted)],
        messages,
    )


def arrivals(draw: st.DrawFn, events: list[Shown | Acted]) -> list[Any]:
    """Events in the order of arrival, within the lateness, with the offsets that this gives; copies come at any time later."""
    first = [e for _, _, e in sorted((e.ts + draw(st.integers(0, LATENESS - 1)), k, e) for k, e in enumerate(events))]
    counts = [itertools.count(), itertools.count()]
    numbered: list[Any] = [e._replace(offset=next(counts[isinstance(e, Acted)])) for e in first]
    for copied in draw(st.lists(st.integers(0, len(numbered) - 1), max_size=4)):
        numbered.insert(draw(st.integers(copied + 1, len(numbered))), numbered[copied])
    return numbered


def expected(shown: list[Shown], acted: list[Acted]) -> tuple[dict[tuple[int, int], tuple[float, ...]], set[int], set[int]]:
    """(labels, offsets that became labels, offsets that are no label), by the definition."""
    by_request = {s.request: s for s in shown}
    labels = {(s.request, i): [0.0, 0.0] for s in shown for i in s.items}
    used, others = set(), set()
    for a in acted:
        objectives = [o for o, least in RULES.objectives[a.kind] if a.value >= least]
        about = by_request.get(a.request)
        if not objectives:
            others.add(a.offset)
        elif about and a.item in about.items and about.ts <= a.ts <= about.ts + WINDOW:
            used.add(a.offset)
            for o in objectives:
                labels[a.request, a.item][o] = 1.0
    return {k: tuple(v) for k, v in labels.items()}, used, others


def lives(rules: join.Rules, messages: list[Message], data: st.DataObject) -> Seen:
    """Run a log with crashes anywhere: a new partition then reads from the first message that was not released."""
    seen, first, at = Seen(), 0, 0
    crashes = data.draw(st.lists(st.integers(0, len(messages) - 1), max_size=3))
    partition = join.Partition(rules)
    while at < len(messages):
        partition.take(*messages[at], at)
        at += 1
        if at == len(messages) or data.draw(st.booleans()):
            output = partition.emit()
            seen.add(output)
            if output.released:
                assert output.released == list(range(first, first + len(output.released)))
                first += len(output.released)
        if crashes and at > crashes[-1]:
            crashes.pop()
            partition, at = join.Partition(rules), first
    assert first == len(messages)
    return seen


@settings(max_examples=1000, deadline=None)
@given(logs(), st.data())
def test_any_order_duplication_split_and_crash_give_the_same_samples(
    log: tuple[list[Shown], list[Acted], list[Message]], data: st.DataObject
) -> None:
    shown, acted, messages = log
    labels, used, others = expected(shown, acted)
    seen = lives(RULES, messages, data)
    assert seen.labels == labels
    assert seen.different == []
    assert set(seen.unjoined) == {a.offset for a in acted} - used - others


@settings(max_examples=500, deadline=None)
@given(logs(), st.data())
def test_crashes_leave_eager_revisions_as_they_are(
    log: tuple[list[Shown], list[Acted], list[Message]], data: st.DataObject
) -> None:
    shown, acted, messages = log
    labels, used, others = expected(shown, acted)
    seen = lives(EAGER, messages, data)
    assert {key: versions[max(versions)] for key, versions in seen.versions.items()} == labels
    assert seen.different == []
    assert set(seen.unjoined) == {a.offset for a in acted} - used - others


@settings(max_examples=150, deadline=None)
@given(logs())
def test_every_action_is_counted_exactly_once(log: tuple[list[Shown], list[Acted], list[Message]]) -> None:
    shown, acted, messages = log
    _, used, others = expected(shown, acted)
    partition, seen = join.Partition(RULES), Seen()
    for k, one in enumerate(messages):
        partition.take(*one, k)
        seen.add(partition.emit())
    counts = partition.counts
    taken = sum(len(columns["a_ts"]) for _, columns in messages)
    assert counts.labels == len(used)
    assert counts.late + counts.orphans == len(acted) - len(used) - len(others) == len(seen.unjoined)
    assert counts.labels + counts.late + counts.orphans + counts.others + counts.repeated == taken
    assert counts.lists == len(shown)
    assert partition.open_lists == 0


@settings(max_examples=150, deadline=None)
@given(logs())
def test_eager_revisions_end_at_the_labels_of_the_window(log: tuple[list[Shown], list[Acted], list[Message]]) -> None:
    shown, acted, messages = log
    labels, _, _ = expected(shown, acted)
    partition, seen, positive = join.Partition(EAGER), Seen(), dict.fromkeys(labels, (0.0, 0.0))
    for k, one in enumerate(messages):
        partition.take(*one, k)
        output = partition.emit()
        seen.add(output)
        if output.lists is not None:
            c = output.lists
            of_row = np.repeat(np.arange(len(c["n_items"])), c["n_items"])
            for row in range(len(c["item"])):
                key = (int(c["request"][of_row[row]]), int(c["item"][row]))
                trained = c["label"][row] * c["weight"][row]
                positive[key] = tuple((np.array(positive[key]) + trained).tolist())
    assert {key: versions[max(versions)] for key, versions in seen.versions.items()} == labels
    assert all(sorted(versions) == list(range(len(versions))) for versions in seen.versions.values())
    assert positive == labels, "every positive is trained on exactly once"


def take(partition: join.Partition, *events: Shown | Acted, watermark: int, token: object = None) -> join.Output:
    partition.take(*message(list(events), watermark), token)
    return partition.emit()


KINDS_OF_LABEL = configuration.parse("""
[scenarios]
known = ["home", "shop"]
[[objectives]]
name = "click"
action = "click"
[[objectives]]
name = "order"
action = "click"
kind = "ranking"
weights = { click = 1.0, buy = 5.0 }
[[objectives]]
name = "power"
action = "buy"
kind = "multiclass"
classes = 7
scenarios = ["shop"]
[[objectives]]
name = "time"
action = "watch"
kind = "regression"
""")
NO = float("nan")


@st.composite
def reported(draw: st.DrawFn) -> list[Acted]:
    """Actions of every kind on one list of two items, in any order."""
    kinds = st.sampled_from([(0, 1.0), (1, 3.0), (1, 6.0), (1, 0.0), (2, 2.5), (2, -4.0)])
    drawn = draw(st.lists(st.tuples(st.sampled_from([10, 11]), kinds), max_size=8))
    return [Acted(1, item, 1_000 + k, kind, value, k) for k, (item, (kind, value)) in enumerate(drawn)]


@settings(max_examples=200, deadline=None)
@given(reported(), st.sampled_from(["home", "shop", "elsewhere"]), st.booleans(), st.randoms(use_true_random=False))
def test_labels_of_every_kind_are_the_greatest_action_and_have_weight_where_they_exist(
    acted: list[Acted], scenario: str, eager: bool, random: Any
) -> None:
    rules = join.rules(KINDS_OF_LABEL)._replace(window_ms=WINDOW, lateness_ms=LATENESS, eager=eager)
    wanted = {}
    for item in (10, 11):
        own = [(a.kind, a.value) for a in acted if a.item == item]
        bought, watched = [v for k, v in own if k == 1], [v for k, v in own if k == 2 and v >= 0]
        clicked = float(any(k == 0 for k, _ in own))
        power = max(bought, default=NO) if scenario == "shop" else NO
        wanted[item] = [clicked, 5.0 if bought else clicked, power, max(watched, default=NO)]
    random.shuffle(acted)
    events: list[Shown | Acted] = [Shown(1, 1_000, (10, 11)), *(a._replace(offset=k) for k, a in enumerate(acted))]
    head, columns = message(events, 1_100)
    columns["scenario"] = np.array([ids.of(scenario)], np.uint64)
    partition = join.Partition(rules)
    partition.take(head, columns, 0)
    partition.take(*message([], END), 1)
    output = partition.emit().lists
    assert output is not None
    last = slice(len(output["item"]) - 2, None)
    label, weight = output["label"], output["weight"]
    assert np.array_equal(label[last], [wanted[i] for i in output["item"][last].tolist()], equal_nan=True)
    assert not weight[np.isnan(label)].any()
    if not eager:
        assert weight.tolist() == (~np.isnan(label)).astype(float).tolist()
    counts = partition.counts
    assert counts.labels + counts.others == len(acted)


def test_an_action_of_which_the_scenario_has_no_objective_is_no_label_and_is_counted() -> None:
    rules = join.rules(KINDS_OF_LABEL)
    only_power = rules._replace(objectives=((), ((2, 0.0),), ()))
    partition = join.Partition(only_power)
    head, columns = message([Shown(1, 1_000, (10,)), Acted(1, 10, 1_001, 1, 3.0, 0)], 1_100)
    columns["scenario"] = np.array([ids.of("home")], np.uint64)
    partition.take(head, columns, 0)
    assert partition.emit().unjoined == []
    assert (partition.counts.labels, partition.counts.others) == (0, 1)


def test_a_click_before_its_impression_still_joins() -> None:
    partition, seen = join.Partition(RULES), Seen()
    seen.add(take(partition, Acted(1, 10, 900, CLICK, 1.0, 0), watermark=900))
    seen.add(take(partition, Shown(1, 700, (10, 11)), watermark=900))
    seen.add(take(partition, watermark=END))
    assert seen.labels == {(1, 10): (1.0, 0.0), (1, 11): (0.0, 0.0)}
    assert seen.unjoined == {}


def test_a_message_with_a_waiting_action_is_held_until_its_list_has_left() -> None:
    partition = join.Partition(RULES)
    assert take(partition, Acted(1, 10, 900, CLICK, 1.0, 0), watermark=900, token="action").released == []
    assert take(partition, Shown(1, 800, (10,)), watermark=900, token="list").released == []
    output = take(partition, watermark=800 + WINDOW + LATENESS, token="end")
    assert output.lists is not None
    assert output.released == []
    assert take(partition, watermark=END).released[0] == "action"


def test_a_list_is_emitted_when_its_window_has_passed_and_not_before() -> None:
    partition = join.Partition(RULES)
    assert take(partition, Shown(1, 1_000, (10,)), watermark=1_000).lists is None
    assert take(partition, watermark=1_000 + WINDOW + LATENESS - 1).lists is None
    assert partition.open_lists == 1
    assert take(partition, watermark=1_000 + WINDOW + LATENESS).lists is not None
    assert partition.open_lists == 0


def test_an_action_on_a_closed_list_is_late_and_keeps_its_bytes() -> None:
    partition = join.Partition(RULES)
    take(partition, Shown(1, 1_000, (10,)), watermark=1_000)
    take(partition, watermark=1_000 + WINDOW + LATENESS)
    (gone,) = take(partition, Acted(1, 10, 1_500, CLICK, 1.0, 77), watermark=0).unjoined
    assert (gone.reason, gone.offset, gone.raw) == ("late", 77, b"raw-77")


def test_whether_an_action_is_late_does_not_depend_on_when_output_is_collected() -> None:
    partition = join.Partition(RULES)
    partition.take(*message([Shown(1, 1_000, (10,))], 1_000), 0)
    partition.take(*message([], 1_000 + WINDOW + LATENESS), 1)
    partition.take(*message([Acted(1, 10, 1_500, CLICK, 1.0, 0)], 0), 2)
    output = partition.emit()
    assert output.lists is not None
    assert output.lists["label"].tolist() == [[0.0, 0.0]]
    assert [gone.reason for gone in output.unjoined] == ["late"]


def test_an_action_without_its_impression_waits_and_becomes_an_orphan() -> None:
    partition = join.Partition(RULES)
    assert take(partition, Acted(1, 10, 1_000, CLICK, 1.0, 5), watermark=1_000).unjoined == []
    (gone,) = take(partition, watermark=1_000 + WINDOW + LATENESS).unjoined
    assert (gone.reason, gone.offset) == ("orphan", 5)
    assert "impression" in gone.detail


def test_a_list_far_in_the_future_does_not_hold_the_others_back() -> None:
    partition, seen = join.Partition(RULES), Seen()
    seen.add(take(partition, Shown(1, 1_000, (10,)), Shown(2, 80_000_000, (20,)), Shown(3, 1_100, (30,)), watermark=1_100))
    seen.add(take(partition, watermark=1_100 + WINDOW + LATENESS))
    assert set(seen.labels) == {(1, 10), (3, 30)}
    seen.add(take(partition, watermark=END))
    assert set(seen.labels) == {(1, 10), (2, 20), (3, 30)}


def test_of_two_copies_the_first_is_the_one() -> None:
    partition, seen = join.Partition(RULES), Seen()
    seen.add(take(partition, Shown(1, 1_000, (10,)), watermark=1_000))
    seen.add(take(partition, Shown(1, 1_200, (10,)), Shown(2, 1_200, (20,)), watermark=1_000))
    seen.add(take(partition, watermark=END))
    assert seen.emitted == [(1, 0), (2, 0)]
    assert partition.counts.copies == 1


def test_unreadable_messages_are_held_until_a_later_one_says_what_they_can_have_held() -> None:
    partition = join.Partition(RULES)
    partition.skip("first")
    partition.skip("second")
    partition.advance(END)
    assert partition.emit().released == []
    partition.take(*message([], END, before_ms=1_000), "third")
    assert partition.emit().released == ["first", "second", "third"]


def test_a_list_delivered_before_a_restart_is_not_emitted_again_and_a_later_one_is() -> None:
    partition, seen = join.Partition(RULES), Seen()
    partition.take(*message([Shown(1, 900, (10,)), Shown(2, 1_001 + WINDOW, (20,))], 2_000, before_ms=1_000), 0)
    partition.advance(END)
    seen.add(partition.emit())
    assert seen.emitted == [(2, 0)]


def test_an_action_settled_before_a_restart_is_a_repetition_and_a_new_one_is_not() -> None:
    partition = join.Partition(RULES)
    partition.take(*message([Acted(1, 10, 2_000, CLICK, 1.0, 0)], 2_000, before_ms=1_000), 0)
    partition.take(*message([Acted(1, 10, 2_000 + WINDOW, CLICK, 1.0, 1)], 2_000, before_ms=1_000), 1)
    partition.advance(END)
    assert [gone.offset for gone in partition.emit().unjoined] == [1]
    assert partition.counts.repeated == 1


def test_an_action_without_an_item_is_no_label() -> None:
    partition = join.Partition(RULES)
    output = take(partition, Shown(1, 1_000, (10,)), Acted(1, ids.PAD, 1_100, CLICK, 1.0, 0), watermark=END)
    assert output.unjoined == []
    assert partition.counts.others == 1


def test_nothing_is_remembered_for_ever() -> None:
    partition = join.Partition(RULES)
    for k in range(200):
        ts = 1_000 * k
        take(partition, Shown(k, ts, (10,)), Acted(k, 10, ts, CLICK, 1.0, k), watermark=ts, token=k)
    take(partition, watermark=END)
    remembered = ("_lists", "_runs", "_closed", "_waiting", "_expiry", "_held")
    assert [len(getattr(partition, name)) for name in remembered] == [0] * len(remembered)


def test_rules_follow_the_configuration() -> None:
    config = configuration.parse(
        """
        objectives = [{ name = "click", action = "click" }, { name = "liked", action = "rate", min_value = 4 }]
        actions.other = ["view"]
        join = { mode = "eager", window_s = 3, lateness_s = 0.5 }
        """
    )
    rules = join.rules(config)
    assert rules == join.Rules(3_000, 500, True, (((0, 0.0),), ((1, 4.0),), ()), 2)


@pytest.mark.parametrize("rules", [RULES, EAGER])
def test_the_same_log_gives_the_same_bytes(rules: join.Rules) -> None:
    log = [message([Shown(k, 10 * k, (k, k + 1)), Acted(k // 2, k // 2, 10 * k, CLICK, 1.0, k)], 10 * k) for k in range(50)] + [
        message([], END)
    ]
    outputs = []
    for _ in range(2):
        partition = join.Partition(rules)
        for k, one in enumerate(log):
            partition.take(*one, k)
        lists = partition.emit().lists
        assert lists is not None
        outputs.append(b"".join(array.tobytes() for array in lists.values()))
    assert outputs[0] == outputs[1]
