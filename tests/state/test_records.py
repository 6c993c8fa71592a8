import contextlib
import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from state import config as configuration
from state import records
from tests import feature_events as raw

CONFIG = raw.config(extra="[topics]\nmax_message_bytes = 20000\n")
DECODER = records.decoder(CONFIG)
GOOD: dict[str, Any] = json.loads(raw.impression("r", raw.NOW, items=("i0", "i1")))


def reason(value: bytes | None) -> str:
    with pytest.raises(records.Rejected) as caught:
        DECODER.impression(value, raw.NOW)
    assert caught.value.detail
    return caught.value.reason


@pytest.mark.parametrize("encode", [msgspec.json.encode, msgspec.msgpack.encode])
def test_json_and_msgpack_are_told_apart_and_read_alike(encode: Any) -> None:
    found = DECODER.impression(encode(GOOD), raw.NOW)
    assert (found.request_id, found.ts_ms, found.user_id, found.scenario) == ("r", raw.NOW, "u0", "s0")
    assert [i.item_id for i in found.items] == ["i0", "i1"]
    assert found.items[0].features.v0 == "drama"
    assert found.context.v0 == "d0"


def test_ids_may_be_text_or_integers_and_attributes_may_be_absent() -> None:
    found = DECODER.impression(
        b'{"request_id":1,"ts_ms":1000000,"user_id":18446744073709551615,"scenario":2,"items":[{"item_id":3,"position":0}]}',
        raw.NOW,
    )
    assert (found.user_id, found.items[0].features.v0, found.context.v0) == (2**64 - 1, None, None)


@pytest.mark.parametrize("missing", ["request_id", "ts_ms", "user_id", "scenario", "items"])
def test_a_missing_field_is_rejected_by_name(missing: str) -> None:
    value = msgspec.json.encode({k: v for k, v in GOOD.items() if k != missing})
    with pytest.raises(records.Rejected, match=missing) as caught:
        DECODER.impression(value, raw.NOW)
    assert caught.value.reason == "missing_or_mistyped"


@pytest.mark.parametrize(
    "change",
    [
        {"ts_ms": "1"},
        {"user_id": ""},
        {"user_id": None},
        {"items": []},
        {"items": [{"item_id": "i", "position": 2**40}]},
        {"items": [{"item_id": "i", "position": 0, "features": {"price": "dear"}}]},
        {"items": [{"item_id": "i", "position": 0, "features": {"genre": {"a": 1}}}]},
    ],
)
def test_a_mistyped_field_is_rejected(change: dict[str, Any]) -> None:
    assert reason(msgspec.json.encode({**GOOD, **change})) == "missing_or_mistyped"


@pytest.mark.parametrize("price", [math.nan, math.inf, -math.inf, 1e31])
def test_a_number_that_float32_cannot_train_on_is_rejected(price: float) -> None:
    item = {"item_id": "i", "position": 0, "features": {"price": price}}
    assert reason(msgspec.msgpack.encode({**GOOD, "items": [item]})) == "non_finite"


@pytest.mark.parametrize("value", [None, b"", b"{", b"nothing", b"\xc1", b"\xff" * 10, GOOD and json.dumps(GOOD).encode()[:-1]])
def test_bytes_that_are_no_message_are_malformed(value: bytes | None) -> None:
    assert reason(value) in {"malformed", "missing_or_mistyped"}


def test_limits_of_size_and_time_each_have_a_reason() -> None:
    ahead = raw.NOW + int(CONFIG.join.future_s * 1000)
    behind = raw.NOW - int(CONFIG.join.retention_s * 1000)
    assert DECODER.impression(raw.impression("r", ahead), raw.NOW).ts_ms == ahead
    assert DECODER.impression(raw.impression("r", behind), raw.NOW).ts_ms == behind
    assert reason(raw.impression("r", ahead + 1)) == "future"
    assert reason(raw.impression("r", behind - 1)) == "expired"
    assert reason(raw.impression("r", 10**30)) == "future"
    assert reason(b" " * 20001) == "too_large"
    short = records.decoder(raw.config("max_items = 2"))
    with pytest.raises(records.Rejected, match="too_many_items"):
        short.impression(raw.impression("r", raw.NOW, items=("a", "b", "c")), raw.NOW)


def test_an_item_shown_twice_in_one_request_is_rejected() -> None:
    assert reason(raw.impression("r", raw.NOW, items=("i0", "i0"))) == "malformed"


def test_an_action_has_defaults_and_may_have_no_item() -> None:
    found = DECODER.action(b'{"request_id":"r","user_id":"u","ts_ms":1000000,"item_id":null}', raw.NOW)
    assert (found.item_id, found.action, found.value) == (None, "click", 1.0)


@pytest.mark.parametrize(
    ("change", "expected"),
    [({"action": "like"}, "unknown_action"), ({"value": math.nan}, "non_finite"), ({"ts_ms": 10**12}, "future")],
)
def test_an_action_that_cannot_be_used_is_rejected(change: dict[str, Any], expected: str) -> None:
    fields = {"request_id": "r", "item_id": "i", "user_id": "u", "ts_ms": raw.NOW, **change}
    with pytest.raises(records.Rejected) as caught:
        DECODER.action(msgspec.msgpack.encode(fields), raw.NOW)
    assert caught.value.reason == expected


@given(
    st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers(-(2**63), 2**64 - 1) | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from([*GOOD, "item_id", "position"]), inner),
    ).map(msgspec.msgpack.encode)
)
@example(b"[" * 19000)
def test_no_bytes_raise_anything_but_rejected(value: bytes) -> None:
    for decode in (DECODER.impression, DECODER.action):
        with contextlib.suppress(records.Rejected):
            decode(value, raw.NOW)


@pytest.mark.parametrize(
    ("action", "value", "detail"),
    [
        ("buy", 2.0, ""), ("buy", 3.0, "classes are 0 to 2"), ("buy", 0.5, "no class"), ("buy", -1.0, ""),
        ("watch", 0.0, ""), ("watch", -0.5, "is negative"), ("click", -7.5, ""),
    ],
)  # fmt: skip
def test_a_value_that_an_objective_cannot_use_is_rejected_unless_it_is_below_what_counts(
    action: str, value: float, detail: str
) -> None:
    objectives = (
        configuration.Objective(name="click", action="click"),
        configuration.Objective(name="power", action="buy", kind="multiclass", classes=3),
        configuration.Objective(name="time", action="watch", kind="regression", transform="log1p", min_value=-1.0),
    )
    decoder = records.decoder(msgspec.structs.replace(CONFIG, objectives=objectives))
    message = {"request_id": 1, "user_id": 2, "item_id": 3, "ts_ms": raw.NOW, "action": action, "value": value}
    if not detail:
        assert decoder.action(msgspec.json.encode(message), raw.NOW).value == value
        return
    with pytest.raises(records.Rejected, match=detail) as caught:
        decoder.action(msgspec.json.encode(message), raw.NOW)
    assert caught.value.reason == "missing_or_mistyped"
