"""The process: two uvicorn servers on one event loop, the watcher beside them, and an orderly end."""

import asyncio
import contextlib
import gc
import logging
import pathlib
import signal
import socket
from collections.abc import Iterator

import msgspec
import starlette.types
import torch
import uvicorn

from serving import app, http_admin, http_public
from state import config as configuration

log = logging.getLogger("serving")
DRAIN_S = 4
KEEP_ALIVE_S = 75
ADMIN_HOST = "127.0.0.1"


class Addresses(msgspec.Struct, frozen=True):
    """The content of the ready file."""

    address: str
    admin: str | None


class _Server(uvicorn.Server):
    """A server that leaves signals to the process, which runs two."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def run(config: configuration.Config, ready_file: pathlib.Path | None) -> int:
    """Serve until SIGTERM or SIGINT. 0 after an orderly end, 2 when a port cannot be had."""
    torch.set_num_threads(config.serving.threads)
    try:
        public = _listen(config.serving.host, config.serving.port)
        admin = _listen(ADMIN_HOST, config.serving.admin_port) if config.serving.admin_port else None
    except OSError as error:
        log.critical("cannot listen on %s; set serving.port and serving.admin_port to free ports", error)
        return 2
    asyncio.run(_serve(config, public, admin, ready_file))
    return 0


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named as TCP, or asyncio would not switch off Nagle's algorithm: a reply would wait 40 ms for an acknowledgement.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise OSError(f"{host}:{port} ({error.strerror})") from error
    return listening


async def _serve(
    config: configuration.Config, public: socket.socket, admin: socket.socket | None, ready_file: pathlib.Path | None
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with app.running(config) as service:
        faces = [(_server(http_public.application(service)), public)]
        if admin is not None:
            faces.append((_server(http_admin.application(service)), admin))
        serving = [asyncio.create_task(server.serve(sockets=[listening])) for server, listening in faces]
        while not all(server.started for server, _ in faces):  # noqa: ASYNC110 -- uvicorn has no event for it
            await asyncio.sleep(0.01)
        gc.collect()
        gc.freeze()
        _announce(service, public, admin, ready_file)
        await stop.wait()
        log.info("asked to stop; requests in progress are finished")
        for server, _ in faces:
            server.should_exit = True
        await asyncio.gather(*serving)


def _server(application: starlette.types.ASGIApp) -> _Server:
    return _Server(
        uvicorn.Config(
            application,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=DRAIN_S,
        )
    )


def _announce(service: app.Service, public: socket.socket, admin: socket.socket | None, ready_file: pathlib.Path | None) -> None:
    addresses = Addresses(_url(public), _url(admin) if admin else None)
    current = service.live.current
    version = current.version if current else "none yet"
    log.info("ready: %s, administration %s, model %s", addresses.address, addresses.admin, version)
    if ready_file is not None:
        whole = ready_file.with_name(ready_file.name + ".partial")
        whole.write_bytes(msgspec.json.encode(addresses))
        whole.replace(ready_file)


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
