"""The public HTTP face: `/v1/score`, `/v1/retrieve`, `/healthz`, `/readyz`, `/metrics`. What is asked comes in as `Service`."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec
import starlette.applications
import starlette.exceptions
import starlette.requests
import starlette.routing
from prometheus_client import Histogram
from starlette.responses import Response

from serving import metrics as prometheus
from serving import problems, requests
from serving.problems import Problem
from serving.requests import Format
from state import config as configuration

log = logging.getLogger("serving")
BODY_TIMEOUT_S = 10.0
CLIENT_CLOSED = 499
DRAIN_FACTOR = 8


class Ready(msgspec.Struct, frozen=True):
    """The reply of `/readyz` when a model is loaded."""

    ready: bool
    version: str
    step: int
    created_ms: int
    store: str
    breaker: str


class Service(Protocol):
    """What the HTTP face needs from the rest."""

    config: configuration.Config
    metrics: prometheus.Metrics
    decoder: requests.Decoder

    async def answer(self, request: requests.Request) -> requests.Reply:
        """Score one request. Raises Problem."""
        ...

    async def retrieve(self, search: requests.Search) -> requests.Found:
        """Find items for one user. Raises Problem."""
        ...

    async def readiness(self) -> Ready:
        """Which model answers, and the store's state. Raises Problem 503 while there is no model."""
        ...


def application(service: Service) -> starlette.applications.Starlette:
    """The public application; nothing administrative is reachable through it."""

    async def scored(body: bytes, form: Format) -> requests.Reply:
        return await service.answer(service.decoder.decode(body, form))

    async def found(body: bytes, form: Format) -> requests.Found:
        return await service.retrieve(service.decoder.decode_search(body, form))

    async def score(request: starlette.requests.Request) -> Response:
        response = await _answered(service, request, scored, service.metrics.seconds)
        service.metrics.requests.labels(response.status_code).inc()
        return response

    async def retrieve(request: starlette.requests.Request) -> Response:
        response = await _answered(service, request, found, service.metrics.search_seconds)
        service.metrics.searches.labels(response.status_code).inc()
        return response

    async def ready(request: starlette.requests.Request) -> Response:
        return write(await service.readiness(), answer_format(request))

    return starlette.applications.Starlette(
        routes=[
            starlette.routing.Route("/v1/score", score, methods=["POST"]),
            starlette.routing.Route("/v1/retrieve", retrieve, methods=["POST"]),
            starlette.routing.Route("/readyz", ready, methods=["GET"]),
            *common_routes(service.metrics),
        ],
        exception_handlers=HANDLERS,
    )


def common_routes(metrics: prometheus.Metrics) -> list[starlette.routing.Route]:
    """What both ports answer: `/healthz` and `/metrics`."""

    async def healthy(request: starlette.requests.Request) -> Response:
        return write({"alive": True}, answer_format(request))

    async def exposition(_: starlette.requests.Request) -> Response:
        return Response(metrics.text(), media_type=prometheus.CONTENT_TYPE)

    return [
        starlette.routing.Route("/healthz", healthy, methods=["GET"]),
        starlette.routing.Route("/metrics", exposition, methods=["GET"]),
    ]


async def _answered(
    service: Service,
    request: starlette.requests.Request,
    answer: Callable[[bytes, Format], Awaitable[requests.Reply | requests.Found]],
    took: Histogram,
) -> Response:
    form: Format = "json"
    headers = request.headers
    try:
        read_as = requests.body_format(headers.get("content-type", ""))
        form = read_as
        form = requests.reply_format(headers.get("accept", ""), read_as)
        body = await read_body(request, service.config.serving.max_body_bytes)
        started = time.perf_counter()
        reply = await answer(body, read_as)
        seconds = time.perf_counter() - started
        took.observe(seconds)
        return write(msgspec.structs.replace(reply, took_ms=round(seconds * 1000, 3)), form)
    except Problem as problem:
        return explain(problem, form)
    except starlette.requests.ClientDisconnect:
        return Response(status_code=CLIENT_CLOSED)
    except Exception:
        # Answered here because uvicorn closes a connection that an exception reaches, under the feet of its next request.
        log.exception("a defect while answering")
        return explain(problems.of_status(500), form)


async def read_body(request: starlette.requests.Request, limit: int) -> bytes:
    """The whole body, whether or not its length was announced.

    What exceeds `limit` is read and dropped, up to DRAIN_FACTOR times as much, so that the client gets to read the refusal.

    Raises:
        Problem: 400 a Content-Length that is no number; 408 too slow; 413 too large.
    """
    announced = request.headers.get("content-length", "0")
    if not announced.isdecimal():
        raise Problem(400, "malformed_length", "Content-Length is not a number", "let the HTTP client compute it")
    too_large = Problem(
        413, "body_too_large", f"the body exceeds {limit:,} bytes", "split the request, or raise serving.max_body_bytes"
    )
    if int(announced) > limit * DRAIN_FACTOR:
        too_large.headers["Connection"] = "close"
        raise too_large
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for part in request.stream():
                size += len(part)
                if size <= limit:
                    parts.append(part)
                elif size > limit * DRAIN_FACTOR:
                    too_large.headers["Connection"] = "close"
                    raise too_large
    except TimeoutError as error:
        raise Problem(408, "body_too_slow", f"the body took over {BODY_TIMEOUT_S:g} s", "send it at once") from error
    if size > limit:
        raise too_large
    return b"".join(parts)


def answer_format(request: starlette.requests.Request) -> Format:
    """The format of a reply to a request without a body: what Accept prefers, else JSON."""
    return requests.reply_format(request.headers.get("accept", ""), "json")


def write(value: object, form: Format, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An HTTP response with `value` in that format."""
    return Response(requests.encode(value, form), status, headers, requests.CONTENT_TYPE[form])


def explain(problem: Problem, form: Format) -> Response:
    """The HTTP response that reports a problem."""
    return write(problems.reply(problem), form, problem.status, problem.headers)


def _lenient_format(request: starlette.requests.Request) -> Format:
    try:
        return answer_format(request)
    except Problem:
        return "json"


async def _on_problem(request: starlette.requests.Request, error: Exception) -> Response:
    return explain(error if isinstance(error, Problem) else problems.of_status(500), _lenient_format(request))


async def _on_status(request: starlette.requests.Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, starlette.exceptions.HTTPException) else 500
    problem = problems.of_status(status)
    problem.headers.update(getattr(error, "headers", None) or {})
    return explain(problem, _lenient_format(request))


HANDLERS = {Problem: _on_problem, starlette.exceptions.HTTPException: _on_status, Exception: _on_problem}
"""How an exception becomes a reply, on both ports."""
