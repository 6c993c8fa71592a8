import json
import pathlib
from typing import Any

import hypothesis
import msgspec
import pytest
from hypothesis import strategies as st

from serving import requests
from serving.problems import Problem
from serving.requests import Format
from state import config as configuration

ML1M = pathlib.Path(__file__).parents[2] / "examples" / "ml1m.toml"
CONFIG = configuration.load(ML1M)
DECODER = requests.Decoder(CONFIG)
GOOD: dict[str, Any] = {"user_id": "u1", "scenario": "young", "candidates": [{"item_id": "a"}, {"item_id": 7, "position": 4}]}
SMALL = configuration.parse(ML1M.read_text(encoding="utf-8") + "\n[serving]\nmax_candidates = 2\n")
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from(["user_id", "scenario", "candidates", "request_id", "ts_ms", "user", "context", "objectives", "other"])
SHAPES = st.dictionaries(FIELDS, VALUES, max_size=9)


def refused(body: bytes, form: Format = "json", decoder: requests.Decoder = DECODER) -> Problem:
    with pytest.raises(Problem) as caught:
        decoder.decode(body, form)
    return caught.value


def status_of(body: bytes, form: Format) -> int:
    try:
        DECODER.decode(body, form)
    except Problem as problem:
        return problem.status
    return 200


def test_json_and_msgpack_carry_the_same_request() -> None:
    full = GOOD | {"request_id": 3, "ts_ms": 5, "user": {"age": 25}, "context": {"x": 1}, "objectives": ["click"]}
    a = DECODER.decode(msgspec.json.encode(full), "json")
    b = DECODER.decode(msgspec.msgpack.encode(full), "msgpack")
    assert msgspec.to_builtins(a) == msgspec.to_builtins(b)
    assert (a.request_id, a.ts_ms, a.objectives) == (3, 5, ["click"])


def test_a_missing_position_is_the_place_in_the_list() -> None:
    request = DECODER.decode(msgspec.json.encode(GOOD), "json")
    assert [c.position for c in request.candidates] == [0, 4]


def test_attributes_that_the_spec_does_not_read_are_dropped_and_other_fields_refused() -> None:
    DECODER.decode(msgspec.json.encode(GOOD | {"user": {"shoe_size": {"eu": 44}}}), "json")
    assert "shoe_size" in str(refused(msgspec.json.encode(GOOD | {"shoe_size": 44})))


@pytest.mark.parametrize(
    ("change", "status", "code", "named"),
    [
        ({"candidates": []}, 422, "invalid_request", "candidates"),
        ({"candidates": [{"item_id": "a"}] * 3}, 422, "too_many_candidates", "3 candidates, at most 2"),
        ({"user_id": None}, 422, "invalid_request", "user_id"),
        ({"ts_ms": -1}, 422, "invalid_request", "ts_ms"),
        ({"objectives": ["like"]}, 422, "unknown_objective", "'like'"),
        ({"user": {"age": {"years": 3}}}, 422, "invalid_request", "user.age"),
        ({"candidates": [{"item_id": "a", "features": {"year": "old"}}]}, 422, "invalid_request", "features.year"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], status: int, code: str, named: str) -> None:
    problem = refused(json.dumps(GOOD | change).encode(), decoder=requests.Decoder(SMALL))
    assert (problem.status, problem.code) == (status, code)
    assert named in str(problem)
    assert problem.hint


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_a_number_that_no_column_can_hold_is_refused(value: float) -> None:
    body = msgspec.msgpack.encode(GOOD | {"candidates": [{"item_id": "a", "features": {"year": value}}]})
    assert refused(body, "msgpack").status == 422


@pytest.mark.parametrize("form", ["json", "msgpack"])
@hypothesis.given(body=st.binary(max_size=200))
def test_any_bytes_are_a_request_or_a_problem(form: Format, body: bytes) -> None:
    assert status_of(body, form) in {200, 400, 422}


@hypothesis.given(shape=SHAPES)
def test_any_shape_is_a_request_or_a_problem(shape: dict[str, Any]) -> None:
    try:
        body = msgspec.msgpack.encode(GOOD | shape)
    except (OverflowError, UnicodeEncodeError):
        return
    assert status_of(body, "msgpack") in {200, 400, 422}


@pytest.mark.parametrize(
    ("accept", "fallback", "chosen"),
    [
        ("", "msgpack", "msgpack"),
        ("*/*", "msgpack", "msgpack"),
        ("application/json", "msgpack", "json"),
        ("text/html, application/msgpack;q=0.8", "json", "msgpack"),
        ("application/msgpack;q=0.2, application/json;q=0.9", "msgpack", "json"),
        ("application/json;q=0, */*", "msgpack", "msgpack"),
    ],
)
def test_accept_chooses_the_format_of_the_reply(accept: str, fallback: Format, chosen: Format) -> None:
    assert requests.reply_format(accept, fallback) == chosen


@pytest.mark.parametrize("accept", ["text/html", "application/json;q=0", "application/json;q=nan"])
def test_an_accept_without_either_format_is_406(accept: str) -> None:
    with pytest.raises(Problem) as caught:
        requests.reply_format(accept, "json")
    assert caught.value.status == 406


@pytest.mark.parametrize(
    ("content_type", "form"),
    [("", "json"), ("application/json; charset=utf-8", "json"), ("APPLICATION/X-MSGPACK", "msgpack")],
)
def test_content_type_names_the_format(content_type: str, form: Format) -> None:
    assert requests.body_format(content_type) == form


def test_another_content_type_is_415() -> None:
    with pytest.raises(Problem) as caught:
        requests.body_format("application/x-www-form-urlencoded")
    assert caught.value.status == 415
