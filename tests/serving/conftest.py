"""A real uvicorn server in a thread, for applications whose parts a test provides."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
import starlette.types
import uvicorn

Serve = Callable[[starlette.types.ASGIApp], str]


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@pytest.fixture
def serve() -> Iterator[Serve]:
    """`serve(application)` starts it on a free port and returns its base URL; it ends with the test."""
    running: list[tuple[_Server, threading.Thread]] = []

    def start(application: starlette.types.ASGIApp) -> str:
        listening = socket.create_server(("127.0.0.1", 0))
        server = _Server(uvicorn.Config(application, lifespan="off", log_config=None, access_log=False))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])), daemon=True)
        thread.start()
        while not server.started:
            if not thread.is_alive():
                raise RuntimeError("the server did not start")
        running.append((server, thread))
        return f"http://127.0.0.1:{listening.getsockname()[1]}"

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join(10)
