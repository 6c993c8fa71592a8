"""The user's last actions as id columns: what a plain list of the remembered actions gives, however the events are cut."""

import asyncio
import math
from collections import defaultdict
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from state import config as configuration
from state import features, ids, layout, memory_store, records, spec, stores, users
from tests import feature_events as raw


def with_genres(length: int) -> configuration.Config:
    """The shared specification with more genres than a user's row keeps actions anyway."""
    text, short = raw.SPEC.format(join=""), 'source = "recent.genre", max_values = 3'
    assert short in text
    return configuration.parse(text.replace(short, f'source = "recent.genre", max_values = {length}'))


CONFIG = with_genres(25)
DECODER = records.decoder(CONFIG)
COLUMNS = {c.name: c for c in spec.id_columns(CONFIG.features)}
SEQUENCES = spec.sequences(CONFIG.features)


def parts(lists: features.Lists, duplicates: npt.NDArray[np.bool_]) -> dict[str, list[list[int]]]:
    """Per row that is no repetition, the values of each sequence."""
    kept = lists.ids[np.repeat(~duplicates, lists.n_items)]
    return {c.name: kept[:, COLUMNS[c.name].start :][:, : c.max_values].tolist() for c in SEQUENCES}


def joined(found: list[dict[str, list[list[int]]]]) -> dict[str, list[list[int]]]:
    return {c.name: [row for one in found for row in one[c.name]] for c in SEQUENCES}


def local(history: list[raw.Event]) -> dict[str, list[list[int]]]:
    engine = features.Engine(CONFIG, 64, mode="local")
    shown, actions, order = raw.columns(engine, history, DECODER)
    engine.run(shown, actions, order)
    return parts(shown, engine.duplicates)


def expected(history: list[raw.Event]) -> dict[str, list[list[int]]]:
    """The sequences from remembered messages."""
    done: dict[str, list[dict[str, Any]]] = defaultdict(list)
    shown: dict[str, list[dict[str, Any]]] = defaultdict(list)
    genres: dict[str, Any] = {}
    tags: dict[str, list[str]] = {}
    out: dict[str, list[list[int]]] = {c.name: [] for c in SEQUENCES}
    for kind, value in history:
        event = msgspec.json.decode(value) if kind == "list" else msgspec.msgpack.decode(value)
        user = event["user_id"]
        if kind == "list":
            if any(one["request_id"] == event["request_id"] for one in shown[user][-users.REQUESTS :]):
                continue
            shown[user].append(event)
            for item in event["items"]:
                genres[item["item_id"]] = item["features"]["genre"] or ""
                tags[item["item_id"]] = item["features"]["tags"] or []
            newest = done[user][::-1]
            values = {
                "last_items": [ids.PAD if a["item_id"] is None else ids.of(a["item_id"]) for a in newest],
                "last_kinds": [ids.of(a["action"]) for a in newest],
                "last_ages": [ids.of(math.floor(math.log2((event["ts_ms"] - a["ts_ms"]) // 1000 + 1))) for a in newest],
                "last_scenarios": [ids.of(a["scenario"]) if a["scenario"] else ids.PAD for a in newest],
                "last_genres": [ids.PAD if a["genre"] is None else ids.of(a["genre"]) for a in newest],
                "last_tags": [ids.of(a["tags"][0]) if a["tags"] else ids.PAD for a in newest],
                "last_second_tags": [ids.of(a["tags"][1]) if len(a["tags"]) > 1 else ids.PAD for a in newest],
            }
            for c in SEQUENCES:
                out[c.name] += [(values[c.name] + [ids.PAD] * c.max_values)[: c.max_values]] * len(event["items"])
        elif all(any(a[k] != event[k] for k in ("item_id", "ts_ms", "action")) for a in done[user][-25:]):
            known = [one["scenario"] for one in shown[user][-users.REQUESTS :] if one["request_id"] == event["request_id"]]
            of_item = {"genre": genres.get(event["item_id"]), "tags": tags.get(event["item_id"], [])}
            done[user].append({**event, **of_item, "scenario": known[-1] if known else None})
    return out


@settings(max_examples=60)
@given(raw.histories())
def test_every_sequence_is_the_users_earlier_actions_newest_first(history: list[raw.Event]) -> None:
    assert local(history) == expected(history)


@settings(max_examples=30)
@given(raw.histories(40), st.data())
def test_any_split_into_micro_batches_gives_the_same_sequences(history: list[raw.Event], data: st.DataObject) -> None:
    engine, found, at = features.Engine(CONFIG, 16, mode="local"), [], 0
    while at < len(history):
        n = data.draw(st.integers(1, 12))
        shown, actions, order = raw.columns(engine, history[at : at + n], DECODER)
        engine.run(shown, actions, order)
        found.append(parts(shown, engine.duplicates))
        at += n
    assert joined(found) == local(history)


def serve(engine: features.Engine, history: list[raw.Event], server: stores.Store) -> dict[str, list[list[int]]]:
    shown, actions, order = raw.columns(engine, history, DECODER)
    while not features.is_empty(wanted := engine.wanted(shown, actions, 0.0, order)):
        engine.fill(wanted, asyncio.run(server.read(wanted)), 0.0)
    engine.run(shown, actions, order)
    return parts(shown, engine.duplicates)


@settings(max_examples=30)
@given(raw.histories(40), st.data())
def test_a_new_worker_at_any_point_goes_on_with_the_same_sequences_and_serving_sees_them_too(
    history: list[raw.Event], data: st.DataObject
) -> None:
    server = memory_store.MemoryStore(features.Engine(CONFIG, 64).schema, lambda: 0)
    engine, found, at = features.Engine(CONFIG, 8), [], 0
    while at < len(history):
        n = data.draw(st.integers(1, 8))
        found.append(serve(engine, history[at : at + n], server))
        at += n
        if data.draw(st.booleans()):
            engine.merged(asyncio.run(server.count(engine.take())))
            engine = features.Engine(CONFIG, 8)
    assert joined(found) == local(history)
    engine.merged(asyncio.run(server.count(engine.take())))
    ask = [("list", raw.impression("new", raw.NOW + 90_000, "u1", "s1", ("i3", "i0")))]
    reader = features.Engine(CONFIG, 64, mode="reader")
    asked = raw.columns(reader, ask, DECODER)[0]
    while not features.is_empty(wanted := reader.wanted(asked, None, 1.0)):
        reader.fill(wanted, asyncio.run(server.read(wanted)), 1.0)
    reader.stamp(asked)
    assert parts(asked, np.zeros(1, bool)) == {name: rows[-2:] for name, rows in local([*history, *ask]).items()}


def test_as_many_actions_are_kept_as_the_longest_sequence_asks_for_and_an_older_one_is_forgotten() -> None:
    long = with_genres(100)
    history = [("list", raw.impression(f"r{i}", raw.NOW + 2 * i, items=(f"i{i % 4}",))) for i in range(105)]
    history = [
        e for i, e in enumerate(history) for e in (e, ("action", raw.action(f"r{i}", raw.NOW + 2 * i + 1, item=f"i{i % 4}")))
    ]
    engine = features.Engine(long, 64, mode="local")
    ask = ("list", raw.impression("new", raw.NOW + 90_000))
    shown, actions, order = raw.columns(engine, [*history, ask], records.decoder(long))
    x = engine.run(shown, actions, order)
    genres = shown.ids[-1, COLUMNS["last_genres"].start :][:100].tolist()
    assert genres == [ids.of(raw.GENRES[f"i{(104 - k) % 4}"] or "") for k in range(100)]
    assert shown.ids[-1, COLUMNS["last_items"].start :][:3].tolist() == [ids.of(f"i{(104 - k) % 4}") for k in range(3)]
    short = features.Engine(CONFIG, 64, mode="local")
    same, actions, order = raw.columns(short, [*history, ask], DECODER)
    assert short.run(same, actions, order).tobytes() == x.tobytes(), "numbers of recent actions do not see how many are kept"


def test_an_action_longer_ago_than_the_clock_can_say_is_in_the_last_bucket_and_one_from_the_future_in_the_first() -> None:
    for ts, bucket in ((raw.NOW + 5_000, 0), (raw.NOW, 0), (-(2**62), spec.AGE_BUCKETS - 1)):
        engine = features.Engine(CONFIG, 64, mode="local")
        history = [("action", raw.action("r", ts)), ("list", raw.impression("a", raw.NOW))]
        free = records.decoder(msgspec.structs.replace(CONFIG, join=msgspec.structs.replace(CONFIG.join, retention_s=1e18)))
        shown, actions, order = raw.columns(engine, history, free)
        engine.run(shown, actions, order)
        assert shown.ids[0, COLUMNS["last_ages"].start] == ids.of(bucket)


SMALL = """
[model]
scenario_features = []
personal_features = []
[features]
categories = [{ name = "user", source = "user_id" }, { name = "lately", source = "recent.%s", max_values = 50 }]
"""


def test_a_row_without_sequences_keeps_its_size_and_a_scenario_is_kept_only_where_asked_for() -> None:
    assert layout.compiled(configuration.parse("")).user.itemsize == 16 + 16 * 24 + 20 * 18
    for source, kept in (("kind", 0), ("scenario", 8)):
        assert layout.compiled(configuration.parse(SMALL % source)).user.itemsize == 16 + 16 * 24 + 50 * (18 + kept)


def test_a_task_cannot_be_named_after_last_actions() -> None:
    with pytest.raises(configuration.ConfigError, match=r'task\.key: "last_items" holds the user\'s last actions'):
        raw.config(extra='[task]\nkey = ["last_items"]\n')
