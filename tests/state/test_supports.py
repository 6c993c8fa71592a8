"""Support sets against a model in plain Python: whatever the order, the repetition or the batches, the same set."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from state import config as configuration
from state import spec, supports

SIZE, MAX_AGE_MS = 4, 20
FEATURES = spec.Features(
    categories=(spec.Category(name="user", source="user_id"), spec.Category(name="tags", source="item.tags", max_values=2)),
    numbers=(spec.Number(name="price", source="item.price"),),
)


def made(size: int = SIZE, max_age_ms: int = MAX_AGE_MS, in_flight: int = 2, objectives: int = 1) -> configuration.Config:
    return configuration.Config(
        features=FEATURES,
        support=configuration.Support(size=size, max_age_s=max_age_ms / 1000),
        streams=configuration.Streams(in_flight=in_flight),
        objectives=tuple(configuration.Objective(name=f"o{i}", action="click") for i in range(objectives)),
    )


CONFIG = made()
SHAPE = supports.layout(CONFIG)


class Put(NamedTuple):
    """One row put into the set of a task."""

    task: int
    ts: int
    request: int
    item: int
    version: int
    label: float


def rows_of(puts: Sequence[Put], shape: supports.Layout = SHAPE) -> supports.Rows:
    rows = np.zeros(len(puts), shape.dtype)
    for row, put in zip(rows, puts, strict=True):
        row["ts"], row["request"], row["item"] = put.ts, put.request, put.item
        row["version"], row["label"], row["ids"], row["x"] = put.version, put.label, (put.item, 8, 9), put.version + 0.5
    return rows


def plain(rows: supports.Rows | None) -> list[Any]:
    assert rows is not None
    return [rows[name].tolist() for name in SHAPE.dtype.names or ()]


def expected(puts: Sequence[Put], size: int = SIZE, max_age_ms: int = MAX_AGE_MS) -> list[Put]:
    newest: dict[Any, Put] = {}
    for put in puts:
        key = (put.ts, put.request, put.item)
        if key not in newest or (put.version, put.label) > (newest[key].version, newest[key].label):
            newest[key] = put
    ordered = [newest[key] for key in sorted(newest)]
    return [put for put in ordered if put.ts >= ordered[-1].ts - max_age_ms][-size:] if size else []


def put_all(sets: supports.Sets, puts: Sequence[Put]) -> None:
    tasks = np.array([put.task for put in puts], np.uint64)
    missing = sets.missing(tasks)
    sets.fill(missing, [None] * len(missing))
    sets.insert(tasks, np.ones(len(puts), np.int32), rows_of(puts, sets.layout))


PUTS = st.builds(
    Put,
    task=st.just(5),
    ts=st.integers(0, 60),
    request=st.sampled_from([1, 2, 2**64 - 1]),
    item=st.integers(0, 2),
    version=st.integers(0, 2),
    label=st.sampled_from([0.0, 1.0]),
)


@given(st.lists(PUTS, max_size=40), st.randoms(use_true_random=False), st.integers(0, 6))
def test_any_order_repetition_and_split_gives_the_newest_versions_of_the_newest_rows(
    puts: list[Put], random: Any, size: int
) -> None:
    sets = supports.Sets(made(size))
    shuffled = puts + random.choices(puts, k=len(puts)) if puts else []
    random.shuffle(shuffled)
    cut = random.randint(0, len(shuffled))
    put_all(sets, [Put(5, 0, 1, 1, 0, 0.0)])
    put_all(sets, shuffled[:cut])
    put_all(sets, shuffled[cut:])
    assert plain(sets.rows(5)) == plain(rows_of(expected([Put(5, 0, 1, 1, 0, 0.0), *puts], size)))


@given(st.lists(PUTS, min_size=1, max_size=25), st.integers(0, 61))
def test_a_set_as_of_a_time_holds_strictly_earlier_rows_only(puts: list[Put], ts_ms: int) -> None:
    sets = supports.Sets(CONFIG)
    put_all(sets, puts)
    assert plain(sets.as_of(5, ts_ms)) == plain(rows_of([p for p in expected(puts) if p.ts < ts_ms]))


@given(st.lists(PUTS, min_size=1, max_size=25), st.integers(0, 25))
def test_a_worker_that_starts_from_what_was_written_goes_on_as_if_it_had_never_stopped(puts: list[Put], cut: int) -> None:
    sets = supports.Sets(CONFIG)
    put_all(sets, [*puts[:cut], puts[0]])
    tasks, packed = sets.writes()
    assert tasks.tolist() == [5]
    restarted = supports.Sets(CONFIG)
    assert restarted.missing(tasks).tolist() == [5]
    restarted.fill(tasks, packed)
    put_all(restarted, puts[cut:] or puts)
    assert plain(restarted.rows(5)) == plain(rows_of(expected(puts)))


def test_a_packed_set_is_the_fingerprint_the_count_and_the_rows() -> None:
    rows = rows_of([Put(5, 1, 2, 3, 1, 1.0), Put(5, 2, 2, 3, 0, 0.0)])
    packed = supports.pack(SHAPE, rows)
    assert int.from_bytes(packed[:8], "little") == SHAPE.fingerprint
    assert int.from_bytes(packed[8:12], "little") == 2
    assert int.from_bytes(packed[12:16], "little") == SHAPE.dtype.itemsize
    assert packed[16:] == rows.tobytes()
    unpacked = supports.unpack(SHAPE, packed)
    assert unpacked is not None
    assert plain(unpacked) == plain(rows)
    assert unpacked["ids"].shape == (2, 3)


def test_a_row_is_whole_words_and_holds_every_column() -> None:
    assert SHAPE.dtype.itemsize % 8 == 0
    assert SHAPE.dtype.names == ("ts", "request", "item", "scenario", "ids", "version", "label", "x")
    assert supports.layout(made(objectives=3)).dtype["label"].shape == (3,)


@pytest.mark.parametrize("damage", ["short", "long", "header", "empty"])
def test_a_damaged_set_is_not_read(damage: str) -> None:
    packed = supports.pack(SHAPE, rows_of([Put(5, 1, 2, 3, 1, 1.0)]))
    cut = {"short": packed[:-1], "long": packed + b"\0", "header": packed[:12], "empty": b""}[damage]
    assert supports.unpack(SHAPE, cut) is None


def test_a_set_of_another_feature_spec_or_other_objectives_is_ignored_and_counted() -> None:
    rows = rows_of([Put(5, 1, 2, 3, 1, 1.0)])
    renamed = msgspec.structs.replace(CONFIG, objectives=(configuration.Objective(name="other", action="click"),))
    foreign = supports.pack(supports.layout(renamed), rows)
    sets = supports.Sets(CONFIG)
    sets.fill(np.array([5, 6], np.uint64), [foreign, supports.pack(SHAPE, rows)])
    assert sets.foreign == 1
    assert len(sets.rows(5)) == 0
    assert len(sets.rows(6)) == 1


@pytest.mark.parametrize("key", [("item",), ("scenario", "user")])
def test_a_set_of_another_kind_of_task_is_ignored_though_its_hash_may_be_the_same(key: tuple[str, ...]) -> None:
    packed = supports.pack(SHAPE, rows_of([Put(5, 1, 2, 3, 1, 1.0)]))
    other = msgspec.structs.replace(CONFIG, task=configuration.Task(key))
    assert supports.unpack(supports.layout(other), packed) is None
    sets = supports.Sets(other)
    sets.fill(np.array([5], np.uint64), [packed])
    assert (sets.foreign, len(sets.rows(5))) == (1, 0)


def test_sets_of_the_default_task_key_stay_readable() -> None:
    text = """[features]
    categories = [
      { name = "user", source = "user_id" },
      { name = "item", source = "item_id" },
      { name = "scenario", source = "scenario" },
    ]"""
    assert supports.layout(configuration.parse(text)).fingerprint == 0xE9E7F3A8D6278FA3


def test_a_smaller_size_keeps_the_newest_of_what_the_store_held() -> None:
    puts = [Put(5, ts, 1, 1, 0, 0.0) for ts in range(4)]
    sets = supports.Sets(made(size=2))
    sets.fill(np.array([5], np.uint64), [supports.pack(SHAPE, rows_of(puts))])
    assert sets.rows(5)["ts"].tolist() == [2, 3]
    put_all(sets, [Put(5, 9, 1, 1, 0, 0.0)])
    assert sets.rows(5)["ts"].tolist() == [3, 9]


def test_only_changed_tasks_are_written_and_only_once() -> None:
    sets = supports.Sets(CONFIG)
    put_all(sets, [Put(task, 1, 1, 1, 0, 0.0) for task in (1, 2, 3)])
    assert sets.writes()[0].tolist() == [1, 2, 3]
    put_all(sets, [Put(2, 2, 1, 1, 0, 0.0)])
    tasks, packed = sets.writes()
    assert tasks.tolist() == [2]
    rows = supports.unpack(SHAPE, packed[0])
    assert rows is not None
    assert rows["ts"].tolist() == [1, 2]
    tasks, packed = sets.writes()
    assert len(tasks) == 0
    assert packed == []


def test_a_task_that_was_not_filled_is_an_error_not_an_empty_set() -> None:
    with pytest.raises(KeyError):
        supports.Sets(CONFIG).insert(np.array([5], np.uint64), np.ones(1, np.int32), rows_of([Put(5, 1, 1, 1, 0, 0.0)]))


def test_memory_is_bounded_and_a_dropped_task_is_asked_for_again() -> None:
    per_task = SIZE * SHAPE.dtype.itemsize
    sets = supports.Sets(made(in_flight=2), cache_bytes=2 * per_task)
    held: dict[int, bytes] = {}
    unfinished: list[tuple[Any, list[bytes]]] = []
    random = np.random.default_rng(0)
    everything: dict[int, list[Put]] = {}
    for batch in range(300):
        for part, task in enumerate(random.integers(0, 12, 2).tolist()):
            put = Put(task, batch // 10, 2 * batch + part, 1, 0, 0.0)
            missing = sets.missing(np.array([task], np.uint64))
            sets.fill(missing, [held.get(m) for m in missing.tolist()])
            put_all(sets, [put])
            everything.setdefault(task, []).append(put)
            assert plain(sets.rows(task)) == plain(rows_of(expected(everything[task])))
        unfinished.append(sets.writes())
        if len(unfinished) > 2:
            tasks, packed = unfinished.pop(0)
            held.update(zip(tasks.tolist(), packed, strict=True))
        assert len(sets) <= 8
    for tasks, packed in unfinished:
        held.update(zip(tasks.tolist(), packed, strict=True))
    for task, puts in everything.items():
        assert plain(supports.unpack(SHAPE, held[task])) == plain(rows_of(expected(puts)))


def test_unwritten_tasks_are_never_dropped() -> None:
    sets = supports.Sets(CONFIG, cache_bytes=1)
    for task in range(600):
        put_all(sets, [Put(task, 1, 1, 1, 0, 0.0)])
    assert len(sets) == 600
    assert len(sets.writes()[0]) == 600


def test_a_task_changed_long_after_it_was_read_is_not_dropped() -> None:
    sets = supports.Sets(made(in_flight=1), cache_bytes=1)
    put_all(sets, [Put(1, 1, 1, 1, 0, 0.0)])
    for _ in range(5):
        sets.writes()
    sets.insert(np.array([1], np.uint64), np.ones(1, np.int32), rows_of([Put(1, 2, 1, 1, 0, 0.0)]))
    sets.fill(np.array([2], np.uint64), [None])
    assert sets.rows(1)["ts"].tolist() == [1, 2]


def test_forget_drops_everything() -> None:
    sets = supports.Sets(CONFIG)
    put_all(sets, [Put(5, 1, 1, 1, 0, 0.0)])
    sets.forget()
    assert len(sets) == 0
    assert sets.missing(np.array([5, 5], np.uint64)).tolist() == [5]
    assert len(sets.writes()[0]) == 0


def test_settings_of_an_objective_change_the_fingerprint_only_where_they_are_not_the_default() -> None:
    plain = configuration.Objective(name="click", action="click")
    assert supports.meaning_of(plain) == {"name": "click", "action": "click", "min_value": 0.0}
    ranked = configuration.Objective(name="click", action="click", kind="ranking", weights={"buy": 2.0})
    assert supports.meaning_of(ranked) == {**supports.meaning_of(plain), "kind": "ranking", "weights": {"buy": 2.0}}


def test_how_much_the_loss_of_an_objective_counts_changes_no_fingerprint() -> None:
    plain, weighted = (configuration.Objective(name="click", action="click", loss_weight=w) for w in (1.0, 3.0))
    assert supports.meaning_of(weighted) == supports.meaning_of(plain)
