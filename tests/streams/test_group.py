"""The group stage against a model in plain Python: support strictly earlier, in messages that fit, the same after a restart."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from state import columns, spec, supports
from state import config as configuration
from streams import group

SIZE = 4
FEATURES = spec.Features(
    categories=(spec.Category(name="user", source="user_id"), spec.Category(name="tags", source="item.tags", max_values=2)),
    numbers=(spec.Number(name="price", source="item.price"), spec.Number(name="weight_kg", source="item.weight")),
)


def made(
    size: int = SIZE,
    lists_per_message: int = 3,
    max_message_bytes: int = 1_000_000,
    join: configuration.Join = configuration.Join(mode="eager"),  # noqa: B008  (immutable)
) -> configuration.Config:
    return configuration.Config(
        features=FEATURES,
        join=join,
        support=configuration.Support(size=size),
        streams=configuration.Streams(lists_per_message=lists_per_message, in_flight=1),
        topics=configuration.Topics(max_message_bytes=max_message_bytes),
        objectives=(configuration.Objective(name="click", action="click"), configuration.Objective(name="like", action="like")),
    )


CONFIG = made()
FINGERPRINT = spec.fingerprint(CONFIG.features, CONFIG.action_kinds)


class Shown(NamedTuple):
    """One labelled list: what identifies it, its items, and the version of its labels."""

    task: int
    ts: int
    request: int
    items: tuple[int, ...]
    version: int = 0


def row(shown: Shown, item: int) -> tuple[tuple[int, ...], tuple[float, ...], tuple[float, ...]]:
    """Ids, numbers and labels of a row, all different."""
    return (item, shown.request, shown.task), (item + 0.5, shown.ts + 0.25), (float(shown.version), item + shown.version * 100.0)


def message(lists: Sequence[Shown], **head: Any) -> group.Message:
    rows = [row(shown, item) for shown in lists for item in shown.items]
    n = len(rows)
    packed: columns.Columns = {
        "request": np.array([s.request for s in lists], "<u8"),
        "user": np.array([s.task + 1 for s in lists], "<u8"),
        "scenario": np.array([77 for _ in lists], "<u8"),
        "task": np.array([s.task for s in lists], "<u8"),
        "ts": np.array([s.ts for s in lists], "<i8"),
        "n_items": np.array([len(s.items) for s in lists], "<i4"),
        "version": np.array([s.version for s in lists], "<i4"),
        "item": np.array([item for s in lists for item in s.items], "<u8"),
        "ids": np.array([r[0] for r in rows], "<u8").reshape(n, 3),
        "x": np.array([r[1] for r in rows], "<f4").reshape(n, 2),
        "label": np.array([r[2] for r in rows], "<f4").reshape(n, 2),
        "weight": np.array([[1.0, 0.5] for _ in rows], "<f4").reshape(n, 2),
    }
    return columns.unpack(columns.pack(packed, **{"spec": FINGERPRINT, "scenarios": {"77": "home"}, **head}))


def run(
    stage: group.Group, messages: Sequence[group.Message], held: dict[int, bytes] | None = None
) -> list[tuple[int, Any, Any]]:
    """One micro-batch; `held` is the store. Returns (index, head, columns) of every message that leaves."""
    tasks = stage.wanted(messages)
    stage.fill(tasks, [None if held is None else held.get(task) for task in tasks.tolist()])
    out = [(index, *columns.unpack(value)) for index, value in stage.episodes(messages)]
    if held is not None:
        written, packed = stage.writes()
        held.update(zip(written.tolist(), packed, strict=True))
    return out


def episodes(out: Sequence[tuple[int, Any, Any]]) -> list[tuple[int, Any, Any]]:
    """(index, list's columns, its support) of every list that left, in order; support as (ids, x, label, ts) per row."""
    found = []
    for index, _, c in out:
        r = s = 0
        for i in range(len(c["task"])):
            last_r, last_s = r + int(c["n_items"][i]), s + int(c["n_support"][i])
            own = [c[name][i].item() for name in ("task", "ts", "request", "version", "user", "scenario")]
            rows = [c[name][r:last_r].tolist() for name in ("item", "ids", "x", "label", "weight")]
            support = [
                tuple(v) for v in zip(*(c[n][s:last_s].tolist() for n in ("s_ids", "s_x", "s_label", "s_ts")), strict=True)
            ]
            found.append((index, (own, rows), support))
            r, s = last_r, last_s
        assert r == len(c["item"])
        assert s == len(c["s_ts"]) == len(c["s_ids"]) == len(c["s_x"]) == len(c["s_label"])
    return found


def model(batches: Sequence[Sequence[Sequence[Shown]]], size: int = SIZE) -> list[tuple[int, Any, Any]]:
    """What must leave, computed with dicts."""
    sets: dict[int, dict[Any, tuple[int, Any]]] = {}
    seen: set[Shown] = set()
    out = []
    for index, lists in (part for batch in batches for part in enumerate(batch)):
        for shown in lists:
            if shown in seen:
                continue
            seen.add(shown)
            held = sets.setdefault(shown.task, {})
            support = [(list(v[1][0]), list(v[1][1]), list(v[1][2]), k[0]) for k, v in sorted(held.items()) if k[0] < shown.ts]
            rows = [row(shown, item) for item in shown.items]
            own = [shown.task, shown.ts, shown.request, shown.version, shown.task + 1, 77]
            parts = [list(shown.items), *([list(r[i]) for r in rows] for i in range(3)), [[1.0, 0.5] for _ in rows]]
            out.append((index, (own, parts), support))
            for item in shown.items:
                key = (shown.ts, shown.request, item)
                if key not in held or held[key][0] < shown.version:
                    held[key] = (shown.version, row(shown, item))
            for key in sorted(held)[: max(0, len(held) - size)]:
                del held[key]
    return out


SHOWN = st.builds(
    Shown,
    task=st.integers(0, 3),
    ts=st.integers(0, 12),
    request=st.integers(1, 3),
    items=st.lists(st.integers(0, 9), max_size=6, unique=True).map(tuple),
    version=st.integers(0, 2),
)
BATCHES = st.lists(st.lists(st.lists(SHOWN, max_size=5), max_size=3), max_size=5)


@given(BATCHES, st.integers(0, 6), st.integers(1, 4))
def test_every_list_leaves_once_with_its_tasks_strictly_earlier_rows(
    batches: list[list[list[Shown]]], size: int, lists_per_message: int
) -> None:
    stage = group.Group(made(size, lists_per_message))
    held: dict[int, bytes] = {}
    out = [m for batch in batches for m in run(stage, [message(lists) for lists in batch], held)]
    assert episodes(out) == model(batches, size)
    assert all(0 < len(c["task"]) <= lists_per_message for _, _, c in out)
    assert stage.lists + stage.duplicates == sum(len(lists) for batch in batches for lists in batch)


@given(BATCHES, st.integers(0, 5))
def test_a_restart_between_batches_changes_no_episode(batches: list[list[list[Shown]]], cut: int) -> None:
    distinct = list(dict.fromkeys(shown for batch in batches for lists in batch for shown in lists))
    parts = [[[shown]] for shown in distinct]
    held: dict[int, bytes] = {}
    out = []
    for part in (parts[:cut], parts[cut:]):
        stage = group.Group(CONFIG)
        out += [m for batch in part for m in run(stage, [message(lists) for lists in batch], held)]
    assert episodes(out) == model(parts)


@given(BATCHES)
def test_how_the_lists_are_spread_over_messages_and_batches_changes_no_episode(batches: list[list[list[Shown]]]) -> None:
    everything = [shown for batch in batches for lists in batch for shown in lists]
    one, many = group.Group(CONFIG), group.Group(CONFIG)
    together = episodes(run(one, [message(everything)]))
    apart = [e for shown in everything for e in episodes(run(many, [message([shown])], {}))]
    assert [e[1:] for e in together] == [e[1:] for e in apart]


@given(BATCHES, st.integers(10_000, 12_000))
def test_no_message_is_larger_than_the_topic_takes(batches: list[list[list[Shown]]], max_message_bytes: int) -> None:
    stage = group.Group(made(SIZE, 10_000, max_message_bytes))
    wide = [shown._replace(items=tuple(range(i % 90))) for batch in batches for lists in batch for i, shown in enumerate(lists)]
    values = [v for shown in wide for v in _values(stage, [message([shown, shown._replace(request=9), shown._replace(task=9)])])]
    assert all(len(value) <= max_message_bytes for value in values)


def _values(stage: group.Group, messages: Sequence[group.Message]) -> list[bytes]:
    tasks = stage.wanted(messages)
    stage.fill(tasks, [None] * len(tasks))
    return [value for _, value in stage.episodes(messages)]


def test_a_list_that_fills_a_message_alone_travels_with_its_newest_support_that_fits() -> None:
    per_row = 8 + 3 * 8 + 2 * 4 + 2 * 4 + 2 * 4
    n = (10_000 - group.HEAD_BYTES - 300) // per_row
    stage = group.Group(made(size=200, max_message_bytes=10_000))
    before = [Shown(1, ts, ts, (5,)) for ts in range(1, 101)]
    values = _values(stage, [message([*before, Shown(1, 500, 500, tuple(range(n)))])])
    last = columns.unpack(values[-1])[1]
    assert all(len(value) <= 10_000 for value in values)
    assert last["n_items"].tolist() == [n]
    kept = int(last["n_support"][0])
    assert 0 < kept < 100
    assert last["s_ts"].tolist() == list(range(101 - kept, 101))
    assert stage.trimmed >= 100 - kept


def test_the_header_of_the_samples_travels_on() -> None:
    ((index, head, _),) = run(group.Group(CONFIG), [message([Shown(1, 1, 1, (1,))])])
    assert index == 0
    assert head["spec"] == FINGERPRINT
    assert head["scenarios"] == {"77": "home"}


def test_a_list_seen_before_is_dropped_and_counted_but_a_revision_is_not() -> None:
    stage = group.Group(CONFIG)
    shown = Shown(1, 5, 1, (1, 2))
    held: dict[int, bytes] = {}
    assert len(run(stage, [message([shown])], held)) == 1
    assert run(stage, [message([shown, shown])], held) == []
    assert stage.duplicates == 2
    revised = shown._replace(version=1)
    assert [e[1][0][3] for e in episodes(run(stage, [message([revised])], held))] == [1]
    ((_, _, support),) = episodes(run(stage, [message([Shown(1, 9, 2, (7,))])], held))
    assert [label for _, _, label, _ in support] == [[1.0, 101.0], [1.0, 102.0]]


def test_a_rebuild_over_a_store_that_already_holds_the_rows_still_emits_every_list() -> None:
    lists = [Shown(1, ts, ts, (1,)) for ts in range(1, 4)]
    held: dict[int, bytes] = {}
    run(group.Group(CONFIG), [message(lists)], held)
    again = run(group.Group(CONFIG), [message(lists)], held)
    assert [e[1][0][1] for e in episodes(again)] == [1, 2, 3]


def test_after_forget_the_store_is_asked_again_and_nothing_is_taken_for_a_repetition() -> None:
    stage = group.Group(CONFIG)
    held: dict[int, bytes] = {}
    shown = Shown(1, 5, 1, (1,))
    run(stage, [message([shown])], held)
    assert stage.wanted([message([shown])]).tolist() == []
    stage.forget()
    assert stage.wanted([message([shown])]).tolist() == [1]
    assert len(run(stage, [message([shown])], held)) == 1


def test_no_messages_give_nothing() -> None:
    stage = group.Group(CONFIG)
    assert run(stage, [], {}) == []
    assert run(stage, [message([])], {}) == []


def test_remembered_lists_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "REMEMBERED_LISTS", 2)
    stage = group.Group(CONFIG)
    lists = [Shown(1, ts, ts, (1,)) for ts in range(1, 4)]
    run(stage, [message(lists)])
    run(stage, [message([lists[2], lists[1]])])
    assert stage.duplicates == 2
    run(stage, [message([lists[0]])])
    assert stage.duplicates == 2


def test_sets_of_another_feature_spec_are_counted_and_start_empty() -> None:
    stage = group.Group(CONFIG)
    other = supports.layout(CONFIG)._replace(fingerprint=1)
    held = {1: supports.pack(other, np.zeros(1, other.dtype))}
    ((_, _, support),) = episodes(run(stage, [message([Shown(1, 5, 1, (1,))])], held))
    assert support == []
    assert stage.foreign == 1


def test_messages_that_cannot_be_grouped_are_named() -> None:
    stage = group.Group(CONFIG)
    good = message([Shown(1, 1, 1, (1, 2))])
    assert stage.problem(good) == ""
    head, found = good
    assert "feature spec 'other'" in stage.problem(({**head, "spec": "other"}, found))
    assert "'x'" in stage.problem((head, {**found, "x": found["x"][:, :1]}))
    assert "'ts'" in stage.problem((head, {**found, "ts": found["ts"].astype("<f8")}))
    assert "'label'" in stage.problem((head, {name: a for name, a in found.items() if name != "label"}))
    assert "2 rows" in stage.problem((head, {**found, "n_items": np.array([3], "<i4")}))
    assert "2 rows" in stage.problem((head, {**found, "n_items": np.array([-2], "<i4")}))
    with pytest.raises(ValueError, match="message 1: samples of feature spec"):
        stage.episodes([message([]), ({**head, "spec": "other"}, found)])


def test_propensities_travel_on_where_they_are_known_and_are_checked() -> None:
    stage, head = group.Group(CONFIG), message([Shown(1, 10, 1, (1, 2)), Shown(2, 11, 2, (3,))])
    said = {"propensity": np.array([0.5, np.nan, 1.0], np.float32)}
    ((_, _, found),) = run(stage, [(head[0], head[1] | said)])
    np.testing.assert_array_equal(found["propensity"], said["propensity"])
    assert "column 'propensity' is not <f4" in stage.problem((head[0], head[1] | {"propensity": np.zeros(2, np.float32)}))


def test_in_window_mode_a_row_is_support_only_once_its_window_has_passed() -> None:
    config = made(lists_per_message=8, join=configuration.Join(mode="window", window_s=10.0))
    lists = [Shown(1, 0, 100, (1,)), Shown(1, 10_000, 101, (2,)), Shown(1, 10_001, 102, (3,)), Shown(1, 20_001, 103, (4,))]
    ((_, _, found),) = run(group.Group(config), [message(lists)])
    assert found["n_support"].tolist() == [0, 0, 1, 2]
    assert found["s_ts"].tolist() == [0, 0, 10_000]
