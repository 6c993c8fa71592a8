"""Raw events and a spec that uses every kind of feature, for the tests of records, the feature engine and enrich."""

from typing import Any

import msgspec
import numpy as np
from hypothesis import strategies as st

from state import config as configuration
from state import events, features, ids, records

NOW = 1_000_000
SPEC = """
[join]
window_s = 30.0
lateness_s = 2.0
idle_timeout_s = 1.0
{join}

[actions]
other = ["save", "search"]

[features]
categories = [
  {{ name = "user", source = "user_id" }},
  {{ name = "item", source = "item_id" }},
  {{ name = "scenario", source = "scenario" }},
  {{ name = "device", source = "context.device" }},
  {{ name = "genre", source = "item.genre" }},
  {{ name = "tags", source = "item.tags", max_values = 3 }},
  {{ name = "last_items", source = "recent.item", max_values = 3, share = "item" }},
  {{ name = "last_kinds", source = "recent.kind", max_values = 2 }},
  {{ name = "last_ages", source = "recent.age", max_values = 2 }},
  {{ name = "last_scenarios", source = "recent.scenario", max_values = 2 }},
  {{ name = "last_genres", source = "recent.genre", max_values = 3, share = "genre" }},
  {{ name = "last_tags", source = "recent.tags", max_values = 3, share = "tags" }},
  {{ name = "last_second_tags", source = "recent.tags", max_values = 3, share = "tags", nth = 2 }},
]
numbers = [
  {{ name = "price", source = "item.price", transform = "log1p" }},
  {{ name = "spot", source = "position" }},
]
statistics = [
  {{ name = "item_rate", key = ["item"], kind = "rate", prior = 3 }},
  {{ name = "item_count", key = ["item"], kind = "count" }},
  {{ name = "item_saves", key = ["item"], kind = "actions", action = "save" }},
  {{ name = "item_day", key = ["item"], kind = "rate", window = "decay", half_life_s = 4, prior = 1, toward = "item_rate" }},
  {{ name = "scenario_item", key = ["scenario", "item"], kind = "rate", prior = 2, toward = "item_rate" }},
  {{ name = "device_rate", key = ["device"], kind = "rate", action = "save", prior = 1 }},
  {{ name = "user_last", key = ["user"], kind = "rate", window = "last", n = 3, prior = 0 }},
  {{ name = "user_residual", key = ["user"], kind = "residual", over = "item_rate", window = "last", n = 4, prior = 2 }},
  {{ name = "user_decayed", key = ["user"], kind = "residual", over = "item_day", window = "decay", half_life_s = 3, prior = 2 }},
  {{ name = "user_age", key = ["user"], kind = "age" }},
  {{ name = "user_tags", key = ["user", "tags"], kind = "residual", over = "item_rate", prior = 1 }},
  {{ name = "user_scenario_genre", key = ["user", "scenario", "genre"], kind = "actions" }},
]
recent = [
  {{ name = "since_any", match = "any", value = "age" }},
  {{ name = "this_item", match = "item", action = "click" }},
  {{ name = "same_tags", match = "tags", value = "count", max_age_s = 10 }},
  {{ name = "same_genre", match = "genre", value = "age", action = "save" }},
]
places = [
  {{ name = "price_rank", of = "price", value = "rank" }},
  {{ name = "rate_in_list", of = "item_rate", value = "difference" }},
]
"""
GENRES = {"i0": "drama", "i1": "war", "i2": "drama", "i3": None}
TAGS = {"i0": ["a", "b"], "i1": ["b"], "i2": [], "i3": ["c", "a", "b", "d"]}


def config(join: str = "", extra: str = "") -> configuration.Config:
    """The configuration of these tests."""
    return configuration.parse(extra + SPEC.format(join=join))


def impression(
    request: str, ts: int, user: str = "u0", scenario: str = "s0", items: tuple[str, ...] = ("i0",), **more: Any
) -> bytes:
    """A shown list as JSON; what an item is follows from its id."""
    shown = [
        {
            "item_id": item,
            "position": place,
            "features": {"price": 3.0 * place + len(item), "genre": GENRES.get(item), "tags": TAGS.get(item), "unknown": {}},
        }
        for place, item in enumerate(items)
    ]
    message = {"request_id": request, "ts_ms": ts, "user_id": user, "scenario": scenario, "items": shown}
    return msgspec.json.encode({**message, "user": {}, "context": {"device": "d" + user[-1]}, **more})


def action(request: str, ts: int, user: str = "u0", item: str | None = "i0", kind: str = "click", **more: Any) -> bytes:
    """An action as msgpack."""
    return msgspec.msgpack.encode({"request_id": request, "item_id": item, "user_id": user, "ts_ms": ts, "action": kind, **more})


Event = tuple[str, bytes]


@st.composite
def histories(draw: st.DrawFn, longest: int = 25) -> list[Event]:
    """Lists and actions in event-time order; some actions have an unknown request, some lists and actions are sent twice."""
    out: list[Event] = []
    shown: list[tuple[str, str, tuple[str, ...]]] = []
    ts = NOW
    for number in range(draw(st.integers(1, longest))):
        what = draw(st.integers(0, 9))
        ts += draw(st.integers(0, 3)) * 700
        if what < 5 or not shown:
            user, scenario = f"u{draw(st.integers(0, 1))}", f"s{draw(st.integers(0, 1))}"
            items = tuple(f"i{i}" for i in draw(st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True)))
            shown.append((f"r{number}", user, items))
            out.append(("list", impression(f"r{number}", ts, user, scenario, items)))
        elif what < 9:
            request, user, items = shown[draw(st.integers(0, len(shown) - 1))]
            item = draw(st.sampled_from([*items, None]))
            kind = "search" if item is None else draw(st.sampled_from(["click", "save"]))
            out.append(("action", action("nobody" if what == 8 else request, ts, user, item, kind)))
        else:
            out.append(draw(st.sampled_from(out)))
    return out


def columns(
    engine: features.Engine, history: list[Event], decoder: records.Decoder
) -> tuple[features.Lists, features.Actions, np.ndarray[Any, np.dtype[np.int64]]]:
    """A history as lists, actions and their order."""
    lists: list[Any] = []
    actions: list[records.Action] = []
    order: list[int] = []
    for kind, value in history:
        if kind == "list":
            order.append(len(lists))
            lists.append(decoder.impression(value, NOW))
        else:
            order.append(-1 - len(actions))
            actions.append(decoder.action(value, NOW))
    known = ids.Ids()
    compiled = engine.compiled
    shown = events.lists_of(lists, compiled, known) if lists else events.no_lists(compiled)
    return shown, events.actions_of(actions, compiled, known), np.array(order, np.int64)
