"""Starts and stops the processes of the demo, streams their logs, restarts what crashed, and leaves nothing running.

Child processes write to files that `poll` reads on, so that a crash of ours can never block or lose their output.
"""

import dataclasses
import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType, TracebackType
from typing import Literal, Self

import psutil

from state.config import Refused
from thousandfold import children

READY_TIMEOUT_S = 90.0
FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 10.0
HEALTHY_AFTER_S = 30.0
SAMPLE_EVERY_S = 1.0
# 0: asked to stop or done. 2: configuration or topics wrong, and they will be wrong again.
FINAL_CODES = (0, 2)


@dataclasses.dataclass(frozen=True, slots=True)
class Process:
    """What to run. `ready` is a file that the process creates once it works (its `--ready-file`); None: ready at once."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ready: pathlib.Path | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """Something that `poll` saw: a process ended, was started again, or will not be."""

    name: str
    what: Literal["ended", "restarted", "gave up"]
    code: int = 0


class StartFailed(Refused, RuntimeError):
    """A process ended or was not ready in time; the message holds the end of its log."""


@dataclasses.dataclass(slots=True)
class _Child:
    process: Process
    log: pathlib.Path
    running: subprocess.Popen[bytes]
    started_s: float
    read_to: int = 0
    partial: bytes = b""
    restart_at_s: float = 0.0
    delay_s: float = FIRST_DELAY_S
    waiting: bool = False
    given_up: bool = False


class Supervisor:
    """Runs `processes` in their order; a context manager that stops them in reverse, on any way out.

    `on_log(name, line)` gets every line that a process prints; `directory` keeps the same as NAME.log. Start it from the
    main thread. Nothing is left running after Ctrl-C, SIGTERM (both leave the block) or, on Linux, kill -9 of this process.
    """

    def __init__(
        self,
        processes: Sequence[Process],
        on_log: Callable[[str, str], None],
        directory: pathlib.Path,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.restarts = {process.name: 0 for process in processes}
        self.peak_rss_mb: dict[str, float] = {}
        self._processes = list(processes)
        self._on_log = on_log
        self._directory = directory
        self._clock = clock
        self._children: dict[str, _Child] = {}
        self._watched: dict[str, Callable[[], int | None]] = {}
        self._sampled_s = float("-inf")
        self._old_handler: signal.Handlers | Callable[[int, FrameType | None], object] | int | None = None

    def __enter__(self) -> Self:
        self._old_handler = signal.signal(signal.SIGTERM, _leave)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # A second signal must not interrupt the cleaning up.
        old_interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            self.stop()
        finally:
            signal.signal(signal.SIGINT, old_interrupt)
            signal.signal(signal.SIGTERM, self._old_handler)

    def watch(self, name: str, pid: Callable[[], int | None]) -> None:
        """Sample the memory of a process that someone else runs, such as the broker."""
        self._watched[name] = pid

    def start(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Start each process once the one before it is ready.

        Raises:
            StartFailed: one ended, or was not ready within `timeout_s`.
        """
        for process in self._processes:
            log = self._directory / f"{process.name}.log"
            self._children[process.name] = child = _Child(process, log, self._spawn(process, log), self._clock())
            end = self._clock() + timeout_s
            while process.ready is not None and not process.ready.exists():
                self._read_logs()
                code = child.running.poll()
                if code is not None:
                    raise StartFailed(f"{process.name} ended with code {code} before it was ready:\n{children.tail(log)}")
                if self._clock() > end:
                    raise StartFailed(f"{process.name} was not ready within {timeout_s:g} s:\n{children.tail(log)}")
                time.sleep(0.02)

    def poll(self) -> list[Event]:
        """Pass on new log lines, restart what crashed and is due, sample memory; call it a few times a second."""
        self._read_logs()
        events = [event for child in self._children.values() for event in self._look_after(child)]
        if self._clock() - self._sampled_s >= SAMPLE_EVERY_S:
            self._sampled_s = self._clock()
            self._sample()
        return events

    def pid(self, name: str) -> int | None:
        """Process id, None while it does not run."""
        child = self._children[name]
        return child.running.pid if child.running.poll() is None else None

    def running(self) -> list[str]:
        """Names of the processes that run now."""
        return [name for name in self._children if self.pid(name) is not None]

    def kill(self, name: str) -> None:
        """Kill -9, for fault tests; `poll` starts it again."""
        children.kill(self._children[name].running)

    def stop(self) -> None:
        """Stop all in reverse order: SIGTERM, and SIGKILL after a while, then whatever they left in their sessions."""
        for child in reversed(self._children.values()):
            child.given_up = True
            children.stop(child.running)
            _kill_session(child.running.pid)
        self._read_logs()

    def _spawn(self, process: Process, log: pathlib.Path) -> subprocess.Popen[bytes]:
        if process.ready is not None:
            process.ready.unlink(missing_ok=True)
        return children.start(process.argv, log, {**os.environ, "PYTHONUNBUFFERED": "1", **process.env})

    def _look_after(self, child: _Child) -> list[Event]:
        name, now = child.process.name, self._clock()
        code = child.running.poll()
        if code is None or child.given_up:
            return []
        if not child.waiting:
            if code in FINAL_CODES:
                child.given_up = True
                return [Event(name, "gave up", code)]
            if now - child.started_s > HEALTHY_AFTER_S:
                child.delay_s = FIRST_DELAY_S
            _kill_session(child.running.pid)
            child.waiting, child.restart_at_s = True, now + child.delay_s
            child.delay_s = min(LONGEST_DELAY_S, 2 * child.delay_s)
            return [Event(name, "ended", code)]
        if now < child.restart_at_s:
            return []
        child.running, child.started_s, child.waiting = self._spawn(child.process, child.log), now, False
        self.restarts[name] += 1
        return [Event(name, "restarted", code)]

    def _read_logs(self) -> None:
        for child in self._children.values():
            with child.log.open("rb") as log:
                log.seek(child.read_to)
                fresh = log.read()
            child.read_to += len(fresh)
            *lines, child.partial = (child.partial + fresh).split(b"\n")
            for line in lines:
                self._on_log(child.process.name, line.decode(errors="replace"))

    def _sample(self) -> None:
        pids = {name: self.pid(name) for name in self._children} | {name: pid() for name, pid in self._watched.items()}
        for name, pid in pids.items():
            if pid is not None:
                self.peak_rss_mb[name] = max(self.peak_rss_mb.get(name, 0.0), rss_mb(pid))


def rss_mb(pid: int) -> float:
    """Resident memory of a process and its descendants, in MB; 0 when it is gone."""
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0.0
    total = 0
    for member in family:
        try:
            total += member.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / 1e6


def _leave(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _kill_session(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return
