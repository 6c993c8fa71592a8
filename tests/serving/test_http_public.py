import contextlib
import json
import logging
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import hypothesis
import msgspec
import pytest
from hypothesis import strategies as st

from serving import http_public, requests
from serving.metrics import Metrics
from serving.problems import Problem
from state import config as configuration

CONFIG = configuration.parse("""
[features]
categories = [{ name = "user", source = "user_id" }, { name = "item", source = "item_id" },
  { name = "scenario", source = "scenario" }]
numbers = [{ name = "year", source = "item.year" }]
""")
GOOD: dict[str, Any] = {"user_id": "u1", "scenario": "s", "candidates": [{"item_id": "a"}, {"item_id": "b"}]}


class Service:
    """Answers with the positions as scores; `failure` is raised instead when set."""

    def __init__(self) -> None:
        self.config = CONFIG
        self.metrics = Metrics()
        self.decoder = requests.Decoder(CONFIG)
        self.failure: Exception | None = None

    async def answer(self, request: requests.Request) -> requests.Reply:
        if self.failure is not None:
            raise self.failure
        scores = {"click": [float(c.position or 0) for c in request.candidates]}
        known = {"adapted": False, "support_rows": 0, "mode": "plain", "degraded": None, "took_ms": 0.0}
        return msgspec.convert({"request_id": None, "version": "v1", "step": 7, "scores": scores, **known}, requests.Reply)

    async def retrieve(self, search: requests.Search) -> requests.Found:
        if self.failure is not None:
            raise self.failure
        known = {"known": 9, "adapted": False, "support_rows": 0, "mode": "plain", "degraded": None, "took_ms": 0.0}
        asked = {
            "request_id": search.request_id,
            "version": "v1",
            "step": 7,
            "items": ["a"] * search.k,
            "scores": [0.5] * search.k,
        }
        return msgspec.convert(asked | known, requests.Found)

    async def readiness(self) -> http_public.Ready:
        if self.failure is not None:
            raise self.failure
        return http_public.Ready(ready=True, version="v1", step=7, created_ms=1, store="up", breaker="closed")


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def client(serve: Any, service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=serve(http_public.application(service)), timeout=20) as opened:
        yield opened


def code(response: httpx.Response) -> str:
    """The code of a refusal, whose body must be the documented shape."""
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message", "hint"}
    assert body["error"]["message"]
    assert body["error"]["hint"]
    return str(body["error"]["code"])


def test_json_and_msgpack_get_the_same_reply_in_their_own_format(client: httpx.Client) -> None:
    packed = client.post("/v1/score", content=msgspec.msgpack.encode(GOOD), headers={"content-type": "application/msgpack"})
    plain = client.post("/v1/score", json=GOOD)
    assert packed.headers["content-type"] == "application/msgpack"
    a, b = msgspec.msgpack.decode(packed.content), plain.json()
    assert a.pop("took_ms") > 0
    assert b.pop("took_ms") > 0
    assert a == b
    assert a["scores"] == {"click": [0.0, 1.0]}


def test_accept_decides_the_format_of_the_reply(client: httpx.Client) -> None:
    response = client.post("/v1/score", json=GOOD, headers={"accept": "application/msgpack"})
    assert msgspec.msgpack.decode(response.content)["version"] == "v1"


def test_an_error_comes_in_the_format_of_the_request(client: httpx.Client) -> None:
    response = client.post("/v1/score", content=b"\x80", headers={"content-type": "application/msgpack"})
    assert response.status_code == 422
    assert msgspec.msgpack.decode(response.content)["error"]["code"] == "invalid_request"


@pytest.mark.parametrize(
    ("method", "path", "status", "expected"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/v1/score", 405, "method_not_allowed"),
        ("DELETE", "/metrics", 405, "method_not_allowed"),
        ("GET", "/admin/versions", 404, "not_found"),
        ("POST", "/admin/rollback", 404, "not_found"),
    ],
)
def test_a_wrong_path_or_method_is_explained(client: httpx.Client, method: str, path: str, status: int, expected: str) -> None:
    response = client.request(method, path)
    assert (response.status_code, code(response)) == (status, expected)


def test_a_method_that_is_not_allowed_names_those_that_are(client: httpx.Client) -> None:
    assert "POST" in client.get("/v1/score").headers["allow"]


@pytest.mark.parametrize(
    ("body", "headers", "status", "expected"),
    [
        (b"{", {}, 400, "malformed_body"),
        (b"", {}, 400, "malformed_body"),
        (b"a=1", {"content-type": "application/x-www-form-urlencoded"}, 415, "unsupported_media_type"),
        (json.dumps(GOOD).encode(), {"accept": "text/html"}, 406, "not_acceptable"),
        (json.dumps(GOOD | {"candidates": [{"item_id": i} for i in range(1001)]}).encode(), {}, 422, "too_many_candidates"),
    ],
)
def test_what_cannot_be_answered_is_refused(
    client: httpx.Client, body: bytes, headers: dict[str, str], status: int, expected: str
) -> None:
    response = client.post("/v1/score", content=body, headers={"content-type": "application/json"} | headers)
    assert (response.status_code, code(response)) == (status, expected)


def test_a_thousand_candidates_are_answered(client: httpx.Client) -> None:
    response = client.post("/v1/score", json=GOOD | {"candidates": [{"item_id": i} for i in range(1000)]})
    assert len(response.json()["scores"]["click"]) == 1000


@pytest.mark.parametrize("size", [CONFIG.serving.max_body_bytes + 1, 3 * CONFIG.serving.max_body_bytes])
@pytest.mark.parametrize("announced", [True, False])
def test_a_body_over_the_limit_is_refused_with_and_without_its_length(client: httpx.Client, size: int, announced: bool) -> None:
    def parts() -> Iterator[bytes]:
        for at in range(0, size, 65536):
            yield b" " * min(65536, size - at)

    response = client.post("/v1/score", content=b" " * size if announced else parts())
    assert ("content-length" in response.request.headers) == announced
    assert (response.status_code, code(response)) == (413, "body_too_large")


def test_an_endless_body_is_cut_off(client: httpx.Client) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b" " * 65536

    # It may be closed before the client has read the refusal.
    with contextlib.suppress(httpx.WriteError, httpx.RemoteProtocolError, httpx.ReadError):
        assert client.post("/v1/score", content=endless()).status_code == 413
    assert client.get("/healthz").status_code == 200


def test_an_enormous_announcement_is_refused_unread(client: httpx.Client) -> None:
    url = client.base_url
    with socket.create_connection((url.host, url.port or 80), timeout=10) as opened:
        opened.sendall(b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n")
        assert b"413" in opened.recv(4096)


def test_a_body_at_the_limit_is_read(client: httpx.Client) -> None:
    body = json.dumps(GOOD).encode()
    assert client.post("/v1/score", content=body + b" " * (CONFIG.serving.max_body_bytes - len(body))).status_code == 200


def test_a_problem_keeps_its_status_and_headers(client: httpx.Client, service: Service) -> None:
    service.failure = Problem(503, "no_model", "no model yet", "wait", {"Retry-After": "2"})
    for response in (client.post("/v1/score", json=GOOD), client.get("/readyz")):
        assert (response.status_code, code(response), response.headers["retry-after"]) == (503, "no_model", "2")


def test_a_defect_is_a_500_in_the_shape_of_every_error_and_hides_its_cause(
    client: httpx.Client, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    service.failure = ZeroDivisionError("a secret")
    caplog.set_level(logging.ERROR)
    response = client.post("/v1/score", json=GOOD)
    assert (response.status_code, code(response)) == (500, "internal")
    assert "secret" not in response.text
    service.failure = None
    assert client.post("/v1/score", json=GOOD).status_code == 200
    assert 'thousandfold_requests_total{status="500"} 1.0' in client.get("/metrics").text
    assert "a secret" in caplog.text


def test_health_readiness_and_metrics(client: httpx.Client) -> None:
    client.post("/v1/score", json=GOOD)
    client.post("/v1/score", content=b"{")
    assert client.get("/healthz").json() == {"alive": True}
    assert client.get("/readyz").json()["version"] == "v1"
    text = client.get("/metrics").text
    assert 'thousandfold_requests_total{status="200"} 1.0' in text
    assert 'thousandfold_requests_total{status="400"} 1.0' in text
    assert "thousandfold_request_seconds_count 1.0" in text


@hypothesis.settings(max_examples=150, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(
    body=st.binary(max_size=64) | st.dictionaries(st.text(max_size=9), st.none() | st.integers()).map(json.dumps),
    content_type=st.sampled_from(["application/json", "application/msgpack", "text/plain", "", ";;"]),
    accept=st.sampled_from(["", "*/*", "application/msgpack", "application/json;q=x", ",,;", "image/png"]),
)
def test_nothing_that_is_sent_makes_a_500(client: httpx.Client, body: bytes | str, content_type: str, accept: str) -> None:
    response = client.post("/v1/score", content=body, headers={"content-type": content_type, "accept": accept})
    assert 400 <= response.status_code < 500
