import asyncio
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from state import features, ids, memory_store, records, spec, stores
from tests import feature_events as raw
from tests.state import feature_reference

CONFIG = raw.config()
DECODER = records.decoder(CONFIG)
NAMES = spec.number_names(CONFIG.features)
F32 = npt.NDArray[np.float32]


def local(history: list[raw.Event]) -> tuple[features.Engine, F32]:
    engine = features.Engine(CONFIG, 64, mode="local")
    shown, actions, order = raw.columns(engine, history, DECODER)
    x = features.run_local(engine, shown, actions, order)
    return engine, x[np.repeat(~engine.duplicates, shown.n_items)]


def store() -> memory_store.MemoryStore:
    return memory_store.MemoryStore(features.Engine(CONFIG, 64).schema, lambda: 0)


def serve(engine: features.Engine, history: list[raw.Event], server: stores.Store, now_s: float) -> F32:
    """One micro-batch of a worker, with its reads."""
    shown, actions, order = raw.columns(engine, history, DECODER)
    while not features.is_empty(wanted := engine.wanted(shown, actions, now_s, order)):
        engine.fill(wanted, asyncio.run(server.read(wanted)), now_s)
    x = engine.run(shown, actions, order)
    return x[np.repeat(~engine.duplicates, shown.n_items)]


def count(engine: features.Engine, server: stores.Store) -> None:
    engine.merged(asyncio.run(server.count(engine.take())))


def value(history: list[raw.Event], name: str) -> float:
    """A number of the first row of the last list."""
    engine, x = local(history)
    shown = raw.columns(engine, history, DECODER)[0]
    return float(x[len(x) - int(shown.n_items[-1]), NAMES.index(name)])


@settings(max_examples=150)
@given(raw.histories())
def test_every_value_is_what_a_plain_sum_over_the_earlier_events_gives(history: list[raw.Event]) -> None:
    _, x = local(history)
    expected = np.array(feature_reference.rows(CONFIG, history), np.float64).reshape(-1, len(NAMES))
    np.testing.assert_allclose(x, expected, rtol=2e-5, atol=1e-6)


@settings(max_examples=60)
@given(raw.histories(40), st.data())
def test_any_split_into_micro_batches_gives_the_same_bytes(history: list[raw.Event], data: st.DataObject) -> None:
    _, whole = local(history)
    engine, parts, at = features.Engine(CONFIG, 16, mode="local"), [], 0
    while at < len(history):
        n = data.draw(st.integers(1, 12))
        shown, actions, order = raw.columns(engine, history[at : at + n], DECODER)
        x = engine.run(shown, actions, order)
        parts.append(x[np.repeat(~engine.duplicates, shown.n_items)])
        at += n
    assert np.concatenate(parts).tobytes() == whole.tobytes()


@settings(max_examples=60)
@given(raw.histories(40), st.data())
def test_a_worker_with_a_store_stamps_what_one_without_does(history: list[raw.Event], data: st.DataObject) -> None:
    """Small caches, counts in flight over batches, cells that age, and a new worker from the store at any point."""
    _, whole = local(history)
    server, engine, parts, at, now_s = store(), features.Engine(CONFIG, 8), [], 0, 0.0
    reply: tuple[Any, ...] | None = None
    while at < len(history):
        n = data.draw(st.integers(1, 8))
        parts.append(serve(engine, history[at : at + n], server, now_s))
        at, now_s = at + n, now_s + data.draw(st.sampled_from([0.0, 5.0]))
        if reply is not None:
            engine.merged(reply)
            reply = None
        match data.draw(st.sampled_from(["nothing", "count", "begin", "restart", "forget"])):
            case "count":
                count(engine, server)
            case "begin":
                reply = asyncio.run(server.count(engine.take()))
            case "restart":
                count(engine, server)
                engine = features.Engine(CONFIG, 8)
            case "forget":
                engine.forget()
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=2e-5, atol=1e-6)


@settings(max_examples=40)
@given(raw.histories(30), st.integers(1, 5))
def test_counting_in_any_batches_leaves_the_same_state_in_the_store(history: list[raw.Event], size: int) -> None:
    def final(n: int) -> stores.Found:
        server, engine = store(), features.Engine(CONFIG, 64)
        for at in range(0, len(history), n):
            serve(engine, history[at : at + n], server, 0.0)
            count(engine, server)
        probe = features.Engine(CONFIG, 64, mode="reader")
        wanted = probe.wanted(raw.columns(probe, history, DECODER)[0], None, 0.0)
        return asyncio.run(server.read(wanted))

    one, many = final(len(history)), final(size)
    for a, b in zip(one.cells, many.cells, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    assert one.users.tobytes() == many.users.tobytes()


@settings(max_examples=40)
@given(raw.histories(30))
def test_a_reader_sees_what_was_counted(history: list[raw.Event]) -> None:
    """Serving a list now gives what the stream would stamp into it."""
    server, engine = store(), features.Engine(CONFIG, 64)
    serve(engine, history, server, 0.0)
    count(engine, server)
    ask = [("list", raw.impression("new", raw.NOW + 90_000, "u1", "s1", ("i3", "i0")))]
    reader = features.Engine(CONFIG, 64, mode="reader")
    shown = raw.columns(reader, ask, DECODER)[0]
    while not features.is_empty(wanted := reader.wanted(shown, None, 1.0)):
        reader.fill(wanted, asyncio.run(server.read(wanted)), 1.0)
    np.testing.assert_allclose(reader.stamp(shown), serve(engine, ask, server, 1.0), rtol=2e-5, atol=1e-6)


@settings(max_examples=40)
@given(raw.histories(20))
def test_stamping_counts_nothing(history: list[raw.Event]) -> None:
    engine, _ = local(history)
    shown = raw.columns(engine, [("list", raw.impression("new", raw.NOW + 90_000, "u1"))], DECODER)[0]
    first = engine.stamp(shown)
    assert engine.stamp(shown).tobytes() == first.tobytes()
    assert features.run_local(engine, shown).tobytes() == first.tobytes()


@settings(max_examples=40)
@given(raw.histories(20), st.data())
def test_a_later_action_never_changes_a_stamped_value(history: list[raw.Event], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(history)))
    stray = ("action", raw.action("x", raw.NOW + 100_000, f"u{data.draw(st.integers(0, 1))}", "i1"))
    _, before = local(history[:at])
    _, after = local([*history[:at], stray, *history[at:]])
    assert after[: len(before)].tobytes() == before.tobytes()


def test_what_one_user_does_never_shows_in_another_users_own_features() -> None:
    own = [
        i for i, name in enumerate(NAMES) if name.startswith(("user_last", "user_age", "since", "this", "same", "user_scenario"))
    ]
    mine = [("list", raw.impression("a", raw.NOW, "u0")), ("list", raw.impression("b", raw.NOW + 9000, "u0"))]
    others = [("list", raw.impression("o", raw.NOW + 1, "u1")), ("action", raw.action("o", raw.NOW + 2, "u1"))]
    _, alone = local(mine)
    _, mixed = local([mine[0], *others, mine[1]])
    assert mixed[-1, own].tobytes() == alone[-1, own].tobytes()


def test_a_request_sent_twice_is_counted_once_and_named() -> None:
    history = [("list", raw.impression("a", raw.NOW)), ("list", raw.impression("a", raw.NOW))]
    engine, x = local(history)
    assert engine.duplicates.tolist() == [False, True]
    assert len(x) == 1
    shown = ("list", raw.impression("b", raw.NOW + 10))
    assert value([*history, shown], "item_count") == pytest.approx(np.log(2), rel=1e-6)


def test_an_action_sent_twice_is_counted_once() -> None:
    history = [("list", raw.impression("a", raw.NOW)), *[("action", raw.action("a", raw.NOW + 5, kind="save"))] * 2]
    engine, _ = local(history)
    assert engine.duplicate_actions == 1
    assert value([*history, ("list", raw.impression("b", raw.NOW + 10))], "item_saves") == pytest.approx(np.log(2), rel=1e-6)


def test_an_action_of_an_unknown_request_counts_where_no_scenario_is_needed_and_is_told() -> None:
    shown = [("list", raw.impression("a", raw.NOW)), ("action", raw.action("unknown", raw.NOW + 5))]
    again = ("list", raw.impression("b", raw.NOW + 10))
    engine, _ = local(shown)
    assert engine.unknown_requests == 1
    assert value([*shown, again], "user_last") == 1.0
    assert value([*shown, again], "user_scenario_genre") == 0.0
    known = [shown[0], ("action", raw.action("a", raw.NOW + 5)), again]
    assert value(known, "user_scenario_genre") == pytest.approx(np.log(2), rel=1e-6)


def test_events_that_are_not_fresh_are_skipped() -> None:
    history = [
        ("list", raw.impression("a", raw.NOW)),
        ("action", raw.action("a", raw.NOW + 1)),
        ("list", raw.impression("b", raw.NOW)),
    ]
    engine = features.Engine(CONFIG, 64, mode="local")
    shown, actions, order = raw.columns(engine, history, DECODER)
    x = engine.run(shown, actions, order, np.array([False, True]), np.array([False]))
    assert not x[0].any()
    assert x[1].tobytes() == local([history[2]])[1].tobytes()


def test_a_missing_number_is_zero_and_counted_and_values_without_a_column_are_counted() -> None:
    value_ = raw.impression("a", raw.NOW, items=("i3",))
    message = value_.replace(b'"price":2.0', b'"price":null')
    assert message != value_
    engine, x = local([("list", message)])
    assert (engine.missing_numbers, engine.surplus_values) == (1, 1)
    assert x[0, NAMES.index("price")] == 0.0


def test_a_missing_category_has_the_id_of_the_empty_text_and_a_set_is_padded() -> None:
    engine = features.Engine(CONFIG, 64, mode="local")
    shown = raw.columns(engine, [("list", raw.impression("a", raw.NOW, items=("i3", "i1")))], DECODER)[0]
    start = {c.name: c.start for c in spec.id_columns(CONFIG.features)}
    assert shown.ids[0, start["genre"]] == ids.of("")
    assert shown.ids[0, start["tags"] :][:3].tolist() == [ids.of("c"), ids.of("a"), ids.of("b")]
    assert shown.ids[1, start["tags"] :][:3].tolist() == [ids.of("b"), ids.PAD, ids.PAD]
    assert shown.names == {ids.of("s0"): "s0"}


def test_a_worker_refuses_to_run_on_what_it_has_not_read() -> None:
    engine = features.Engine(CONFIG, 64)
    shown, actions, order = raw.columns(engine, [("list", raw.impression("a", raw.NOW))], DECODER)
    engine.wanted(shown, actions, 0.0, order)
    with pytest.raises(RuntimeError, match="fill"):
        engine.run(shown, actions, order)


def test_only_one_count_is_in_flight() -> None:
    engine, server = features.Engine(CONFIG, 64), store()
    serve(engine, [("list", raw.impression("a", raw.NOW))], server, 0.0)
    engine.take()
    with pytest.raises(RuntimeError, match="in flight"):
        engine.take()


def test_item_attributes_are_written_when_new_or_changed_only() -> None:
    engine, server = features.Engine(CONFIG, 64), store()
    written = []
    for number, genre in enumerate(("drama", "drama", "war")):
        message = raw.impression(f"r{number}", raw.NOW).replace(b'"drama"', f'"{genre}"'.encode())
        serve(engine, [("list", message)], server, 0.0)
        counted = engine.take()
        engine.merged(asyncio.run(server.count(counted)))
        written.append(len(counted.items[0]))
    assert written == [1, 0, 1]


def test_shared_cells_are_read_again_when_they_are_old_and_only_then() -> None:
    engine, server = features.Engine(CONFIG, 64), store()
    serve(engine, [("list", raw.impression("a", raw.NOW))], server, 10.0)
    count(engine, server)
    shown = raw.columns(engine, [("list", raw.impression("b", raw.NOW))], DECODER)[0]
    assert features.is_empty(engine.wanted(shown, None, 10.0 + CONFIG.store.cache_age_s / 2))
    again = raw.columns(engine, [("list", raw.impression("c", raw.NOW))], DECODER)[0]
    wanted = engine.wanted(again, None, 11.5 + CONFIG.store.cache_age_s)
    asked = [len(keys) for keys in wanted.cells]
    assert [n > 0 for n in asked] == [not owned for owned in engine.schema.owned]
    assert not len(wanted.users)


def test_an_action_alone_reads_no_old_cell_again_for_nothing_is_stamped_from_it() -> None:
    engine, server = features.Engine(CONFIG, 64), store()
    serve(engine, [("list", raw.impression("a", raw.NOW))], server, 10.0)
    count(engine, server)
    shown, actions, order = raw.columns(engine, [("action", raw.action("a", raw.NOW + 100))], DECODER)
    assert len(actions.ts) == 1
    assert features.is_empty(engine.wanted(shown, actions, 11.5 + CONFIG.store.cache_age_s, order))
