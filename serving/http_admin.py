"""The administrative HTTP face, on loopback only: versions, rollback and follow, the meta-learning switch, moments, metrics."""

import asyncio
import concurrent.futures
from collections.abc import Callable
from typing import Literal, Protocol, TypeVar

import msgspec
import starlette.applications
import starlette.requests
import starlette.routing
from starlette.responses import Response

from serving import http_public
from serving import metrics as prometheus
from serving.live import Live, Model
from serving.problems import Problem
from serving.watching import Watcher
from state import config as configuration

Kind = TypeVar("Kind", bound=msgspec.Struct)
Result = TypeVar("Result")
Mode = Literal["on", "off", "fine_tune_only"]
LOOPBACK = {"127.0.0.1", "localhost", "::1"}
BODY_LIMIT_BYTES = 4096


class Version(msgspec.Struct, frozen=True):
    """A snapshot that lies in the folder, or that answered here; `first_scored_ms` is when it first did."""

    version: str
    step: int
    created_ms: int
    on_disk: bool
    swapped_ms: int | None
    first_scored_ms: int | None
    refused: str | None


class Versions(msgspec.Struct, frozen=True):
    """`current` answers; `pinned` is what a rollback holds it at; newest first."""

    current: str | None
    pinned: str | None
    versions: list[Version]


class Rollback(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `POST /admin/rollback`: a version, or none for the newest intact one before the current."""

    version: str | None = None


class Switch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `POST /admin/meta`: the mode of one scenario, or of all that have none of their own."""

    mode: Mode
    scenario: str | int | None = None


class Modes(msgspec.Struct, frozen=True):
    """The switches set in this process, by scenario (`*`: all that have none of their own); the rest is as the snapshot says."""

    switches: dict[str, Mode]


class Side(msgspec.Struct, frozen=True):
    """Moments of a number in training or in serving: see `serving.divergence.Side`."""

    rows: float
    missing: float
    mean: float | None
    deviation: float | None


class Number(msgspec.Struct, frozen=True):
    """A number in a scenario, trained and served, and how far apart: see `serving.divergence.Row`."""

    number: str
    scenario: str
    trained: Side
    served: Side
    mean: float | None
    deviation: float | None
    missing: float | None
    worst: float
    state: Literal["few", "calm", "alarm"]


class Moments(msgspec.Struct, frozen=True):
    """Numbers as `version` was trained on and as they were scored here, the furthest apart first, with the thresholds."""

    version: str | None
    thresholds: configuration.Divergence
    numbers: list[Number]


class Service(Protocol):
    """What administration changes."""

    live: Live
    watcher: Watcher
    metrics: prometheus.Metrics
    loader: concurrent.futures.Executor

    def switch(self, scenario: str | int | None, mode: Mode) -> Modes:
        """Set a mode and return those in force."""
        ...

    def moments(self) -> Moments:
        """The numbers scored, beside those trained on."""
        ...

    def swapped(self, model: Model) -> None:
        """Count a swap."""
        ...


def application(service: Service) -> starlette.applications.Starlette:
    """The administrative application. It refuses what a web page in a browser on this machine could send."""

    async def versions(request: starlette.requests.Request) -> Response:
        _guard(request)
        return http_public.write(await _versions(service), http_public.answer_format(request))

    async def rollback(request: starlette.requests.Request) -> Response:
        wanted = await _body(request, Rollback)
        before = service.live.current
        model = await _in_loader(service, service.watcher.rollback, wanted.version)
        if model is None:
            raise Problem(404, "no_such_version", "there is no intact snapshot to roll back to", "see GET /admin/versions")
        if before is None or model.version != before.version:
            service.swapped(model)
        return http_public.write(await _versions(service), http_public.answer_format(request))

    async def follow(request: starlette.requests.Request) -> Response:
        _guard(request)
        service.watcher.follow()
        return http_public.write(await _versions(service), http_public.answer_format(request))

    async def meta(request: starlette.requests.Request) -> Response:
        switch = await _body(request, Switch)
        return http_public.write(service.switch(switch.scenario, switch.mode), http_public.answer_format(request))

    async def moments(request: starlette.requests.Request) -> Response:
        _guard(request)
        return http_public.write(service.moments(), http_public.answer_format(request))

    return starlette.applications.Starlette(
        routes=[
            starlette.routing.Route("/admin/versions", versions, methods=["GET"]),
            starlette.routing.Route("/admin/rollback", rollback, methods=["POST"]),
            starlette.routing.Route("/admin/follow", follow, methods=["POST"]),
            starlette.routing.Route("/admin/meta", meta, methods=["POST"]),
            starlette.routing.Route("/admin/moments", moments, methods=["GET"]),
            *http_public.common_routes(service.metrics),
        ],
        exception_handlers=http_public.HANDLERS,
    )


def _guard(request: starlette.requests.Request) -> None:
    """Refuse another Host (DNS rebinding) and anything that a browser marks as coming from a page."""
    host = request.url.hostname or ""
    if host not in LOOPBACK or "origin" in request.headers:
        raise Problem(403, "not_local", "administration is for programs on this machine", "call 127.0.0.1 without an Origin")


async def _body(request: starlette.requests.Request, kind: type[Kind]) -> Kind:
    _guard(request)
    body = await http_public.read_body(request, BODY_LIMIT_BYTES)
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except msgspec.ValidationError as error:
        raise Problem(422, "invalid_request", str(error), "see docs/serving.md") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Problem(400, "malformed_body", f"the body is not JSON: {error}", "administration speaks JSON") from error


async def _versions(service: Service) -> Versions:
    lying = {e.version: e for e in await _in_loader(service, service.watcher.entries)}
    seen = {s.version: s for s in service.live.seen()}
    rows = [
        Version(
            version=name,
            step=(lying.get(name) or seen[name]).step,
            created_ms=(lying.get(name) or seen[name]).created_ms,
            on_disk=name in lying,
            swapped_ms=seen[name].swapped_ms if name in seen else None,
            first_scored_ms=seen[name].first_scored_ms if name in seen else None,
            refused=service.watcher.refused.get(name),
        )
        for name in sorted(lying.keys() | seen.keys(), reverse=True)
    ]
    current = service.live.current
    return Versions(current.version if current else None, service.watcher.pinned, rows)


async def _in_loader(service: Service, function: Callable[..., Result], *arguments: object) -> Result:
    return await asyncio.get_running_loop().run_in_executor(service.loader, function, *arguments)
