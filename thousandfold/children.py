"""Child processes that never outlive their parent: the one way that anything here starts a server."""

import ctypes
import os
import pathlib
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

STOP_AFTER_S = 10.0
_PR_SET_PDEATHSIG = 1


def start(argv: Sequence[str], log: pathlib.Path, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start `argv`, its output appended to `log`. On Linux the kernel ends it when this process ends, kill -9 included.

    It gets a session of its own, so that Ctrl-C in a terminal reaches us alone and we stop children in order.
    """
    with log.open("ab") as out:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=dict(environment) if environment is not None else None,
            start_new_session=True,
            preexec_fn=dies_with_parent(),  # noqa: PLW1509 it calls one function looked up before the fork
        )


def dies_with_parent(number: int = signal.SIGKILL) -> Callable[[], None] | None:
    """What a child calls before exec so that it gets signal `number` when its parent dies; None where there is no such thing.

    The kernel watches the thread that forked: start children from a thread that lives as long as the process.
    """
    if sys.platform != "linux":
        return None
    # Looked up before the fork: between fork and exec only the bare call is safe.
    prctl, parent = ctypes.CDLL(None, use_errno=True).prctl, os.getpid()

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return ask


class Server:
    """A server that we run on data of its own; without `argv` it is somebody else's, and nothing here touches it."""

    def __init__(self, name: str, argv: tuple[str, ...], directory: pathlib.Path | None) -> None:
        self.name, self.directory = name, directory
        self._argv = argv
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Process id, None when it is not ours or does not run."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def kill(self) -> None:
        """Kill -9, for fault tests; `start` brings it back on the same data."""
        if self._process:
            kill(self._process)

    def stop(self) -> None:
        """Stop it if it is ours."""
        if self._process:
            stop(self._process)

    def _spawn(self, log: pathlib.Path) -> subprocess.Popen[bytes]:
        self._process = start(self._argv, log)
        return self._process


def stop(process: subprocess.Popen[bytes], timeout_s: float = STOP_AFTER_S) -> int:
    """SIGTERM, then after `timeout_s` SIGKILL; returns the exit code."""
    if process.poll() is None:
        process.terminate()
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL, and wait until it is gone."""
    process.kill()
    process.wait()


def free_ports(count: int) -> list[int]:
    """Different TCP ports on the loopback that nothing listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def tail(log: pathlib.Path, lines: int = 15) -> str:
    """The last lines of a log, for an error message."""
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
