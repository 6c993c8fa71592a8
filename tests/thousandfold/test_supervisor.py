import itertools
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from thousandfold import children, supervisor
from thousandfold.supervisor import Event, Process, StartFailed, Supervisor

ROOT = pathlib.Path(supervisor.__file__).parent.parent
SLEEP = "import time; time.sleep(60)"


def python(name: str, code: str, ready: pathlib.Path | None = None, **env: str) -> Process:
    return Process(name, (sys.executable, "-c", code), env, ready)


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.fixture
def lines() -> list[tuple[str, str]]:
    return []


@pytest.fixture
def run(tmp_path: pathlib.Path, lines: list[tuple[str, str]]) -> Iterator[Callable[..., Supervisor]]:
    started: list[Supervisor] = []

    def make(*processes: Process, **more: object) -> Supervisor:
        one = Supervisor(processes, lambda name, line: lines.append((name, line)), tmp_path, **more)  # type: ignore[arg-type]
        started.append(one)
        return one

    yield make
    for one in started:
        one.stop()


def test_each_process_starts_when_the_one_before_it_is_ready(
    run: Callable[..., Supervisor], tmp_path: pathlib.Path, lines: list[tuple[str, str]]
) -> None:
    ready = tmp_path / "first.ready"
    first = f"import time, pathlib; time.sleep(.3); pathlib.Path({str(ready)!r}).touch(); time.sleep(60)"
    second = f"import os, time; print('first is ready', os.path.exists({str(ready)!r})); time.sleep(60)"
    one = run(python("first", first, ready), python("second", second))
    one.start()
    until(lambda: (one.poll(), ("second", "first is ready True") in lines)[1])
    assert one.running() == ["first", "second"]


def test_processes_stop_in_reverse_order(
    run: Callable[..., Supervisor], tmp_path: pathlib.Path, lines: list[tuple[str, str]]
) -> None:
    code = (
        "import os, pathlib, signal, sys, time\n"
        "def bye(*_):\n    print('stopped', time.monotonic_ns()); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, bye); pathlib.Path(os.environ['READY']).touch(); time.sleep(60)"
    )
    one = run(*(python(name, code, tmp_path / name, READY=str(tmp_path / name)) for name in ("a", "b")))
    one.start()
    one.stop()
    stopped = {name: int(line.split()[1]) for name, line in lines if line.startswith("stopped")}
    assert stopped["b"] < stopped["a"]


def test_a_process_that_ignores_sigterm_is_killed(
    run: Callable[..., Supervisor], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children.stop, "__defaults__", (0.2,))
    ready = tmp_path / "deaf"
    code = (
        f"import pathlib, signal as s, time; s.signal(s.SIGTERM, s.SIG_IGN); pathlib.Path({str(ready)!r}).touch(); time.sleep(60)"
    )
    one = run(python("deaf", code, ready))
    one.start()
    pid = one.pid("deaf")
    assert pid is not None
    one.stop()
    assert gone(pid)


def test_a_killed_process_is_restarted_and_counted(run: Callable[..., Supervisor]) -> None:
    one = run(python("worker", SLEEP))
    one.start()
    old = one.pid("worker")
    one.kill("worker")
    assert one.poll() == [Event("worker", "ended", -signal.SIGKILL)]
    until(lambda: any(event.what == "restarted" for event in one.poll()))
    assert one.restarts == {"worker": 1}
    assert one.pid("worker") not in {old, None}


def test_a_process_that_keeps_crashing_is_restarted_ever_more_slowly(run: Callable[..., Supervisor]) -> None:
    now = [0.0]
    one = run(python("crash", "raise SystemExit(1)"), clock=lambda: now[0])
    one.start()
    at = []
    for tick in range(300):
        now[0] = tick / 10
        until(lambda: one.pid("crash") is None)
        at += [now[0] for event in one.poll() if event.what == "restarted"]
    gaps = [b - a for a, b in itertools.pairwise(at)]
    assert gaps == pytest.approx([1, 2, 4, 8, 10], abs=0.2)


@pytest.mark.parametrize("code", [0, 2])
def test_a_process_that_is_done_or_wrongly_configured_is_not_restarted(run: Callable[..., Supervisor], code: int) -> None:
    one = run(python("one", f"raise SystemExit({code})"))
    one.start()
    until(lambda: one.pid("one") is None)
    assert one.poll() == [Event("one", "gave up", code)]
    assert one.poll() == []
    assert one.restarts == {"one": 0}


def test_a_process_that_ends_before_it_is_ready_shows_its_log(run: Callable[..., Supervisor], tmp_path: pathlib.Path) -> None:
    one = run(python("bad", "print('no such broker'); raise SystemExit(2)", tmp_path / "never"))
    with pytest.raises(StartFailed, match=r"bad ended with code 2 before it was ready:\nno such broker"):
        one.start()


def test_a_stale_ready_file_does_not_count(run: Callable[..., Supervisor], tmp_path: pathlib.Path) -> None:
    ready = tmp_path / "ready"
    ready.touch()
    one = run(python("slow", SLEEP, ready))
    with pytest.raises(StartFailed, match=r"slow was not ready within 0\.2 s"):
        one.start(timeout_s=0.2)


def test_lines_cut_in_two_by_a_poll_arrive_whole(run: Callable[..., Supervisor], lines: list[tuple[str, str]]) -> None:
    code = "import time\nfor part in ('hel', 'lo\\nwor', 'ld\\n'):\n    print(part, end='', flush=True); time.sleep(.2)"
    one = run(python("talker", code))
    one.start()
    until(lambda: (one.poll(), len(lines) == 2)[1])
    assert lines == [("talker", "hello"), ("talker", "world")]


def test_peak_memory_counts_a_process_with_its_children(run: Callable[..., Supervisor]) -> None:
    grandchild = f"import subprocess, sys; subprocess.run([sys.executable, '-c', 'x = bytearray(80_000_000)\\n{SLEEP}'])"
    one = run(python("parent", grandchild))
    one.watch("outside", os.getpid)
    one.start()
    until(lambda: (one.poll(), one.peak_rss_mb.get("parent", 0) > 80)[1])
    assert one.peak_rss_mb["outside"] > 10
    pid = one.pid("parent")
    assert pid is not None
    [child] = psutil.Process(pid).children()
    one.stop()
    until(lambda: gone(child.pid))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_running_however_the_supervisor_ends(number: int, tmp_path: pathlib.Path) -> None:
    code = (
        "import pathlib, sys, time\nfrom thousandfold.supervisor import Process, Supervisor\n"
        f"p = [Process(n, (sys.executable, '-c', {SLEEP!r})) for n in 'ab']\n"
        f"with Supervisor(p, print, pathlib.Path({str(tmp_path)!r})) as one:\n"
        "    one.start(); print(one.pid('a'), one.pid('b'), flush=True)\n    while True: one.poll(); time.sleep(.05)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT
    ) as parent:
        assert parent.stdout is not None
        pids = [int(text) for text in parent.stdout.readline().split()]
        assert len(pids) == 2
        parent.send_signal(number)
        parent.wait(20)
    until(lambda: all(gone(pid) for pid in pids))
