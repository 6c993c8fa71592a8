import asyncio
from typing import Any

import msgspec
import pytest

from state import events, features, ids, layout, memory_store, records
from streams import enrich, presence
from tests import feature_events as raw

CONFIG = raw.config()
COMPILED, DECODER = layout.compiled(CONFIG), records.decoder(CONFIG)


def lists_of(*messages: bytes) -> features.Lists:
    return events.lists_of([DECODER.impression(value, raw.NOW) for value in messages], COMPILED, ids.Ids())


def named(request: str, **attributes: Any) -> bytes:
    """A list of one item with these attributes."""
    message = msgspec.json.decode(raw.impression(request, raw.NOW))
    message["items"][0]["features"] = attributes
    return msgspec.json.encode(message)


def seen(*messages: bytes) -> presence.Presence:
    found, shown = presence.Presence(CONFIG.features), lists_of(*messages)
    found.add(shown.ids, shown.numbers)
    return found


def test_attributes_are_counted_by_the_rows_that_carry_them_and_what_every_event_has_is_not() -> None:
    with_device = raw.impression("a", raw.NOW, items=("i0", "i2", "i3"))
    found = seen(with_device, raw.impression("b", raw.NOW, items=("i1",), context={"device": None}))
    assert found.rows == 4
    assert found.present == {"context.device": 3, "item.genre": 3, "item.tags": 3, "item.price": 4}


def test_an_attribute_under_another_name_is_missing_after_enough_rows_and_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "LEAST_ROWS", 4)
    found, misspelt = seen(named("a", prise=3.0, genre="war")), lists_of(*(named(r, prise=3.0, tags=[]) for r in "bcd"))
    assert found.missing() == []
    found.add(misspelt.ids, misspelt.numbers)
    assert found.missing() == ["item.tags", "item.price"]
    found.add(misspelt.ids, misspelt.numbers)
    assert found.missing() == []


def test_what_one_row_carried_is_not_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "LEAST_ROWS", 3)
    assert seen(named("a"), named("b"), named("c", price=0.0, genre=0, tags=["x"])).missing() == []


def test_enrich_counts_the_rows_that_it_sends_on_and_a_repeated_list_once() -> None:
    core, server = enrich.Enrich(CONFIG, 64), memory_store.MemoryStore(COMPILED.schema, lambda: 0)
    core.assign(0, -1, -1, raw.NOW)
    for offset, message in enumerate((named("a", price=1.0), named("a", price=1.0), named("b", genre="war"))):
        core.impression(0, offset, message, offset, raw.NOW)
    core.begin(raw.NOW, {})
    while not features.is_empty(wanted := core.wanted(0.0)):
        core.fill(wanted, asyncio.run(server.read(wanted)), 0.0)
    core.finish(raw.NOW)
    assert core.presence.rows == core.counts.items == 2
    assert core.presence.present == {"context.device": 2, "item.genre": 1, "item.tags": 0, "item.price": 1}
