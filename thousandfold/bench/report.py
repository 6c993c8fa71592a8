"""The one form in which every benchmark reports: what was measured, where, against which target, and by which command."""

import contextlib
import math
import os
import pathlib
import platform
import statistics
import sys
from collections.abc import Iterable, Sequence
from importlib import metadata
from typing import Literal

import msgspec
import psutil
from rich.table import Table

from state import config as configuration

Better = Literal["higher", "lower"]
PACKAGES = ("numpy", "numba", "torch", "river", "confluent-kafka", "faust-streaming")


class Row(msgspec.Struct, kw_only=True):
    """One figure. `passed` is None without a target; `peer` is the id or value it was compared with; `stderr` is over runs."""

    id: str
    value: float | None
    unit: str
    target: float | None
    better: Better
    passed: bool | None
    peer: str | None
    stderr: float | None
    command: str


class Report(msgspec.Struct):
    """All rows of one run, and the machine that they were measured on."""

    machine: dict[str, str | int | float]
    rows: list[Row]


def machine() -> dict[str, str | int | float]:
    """Processor, memory, system and the versions that figures depend on."""
    found: dict[str, str | int | float] = {
        "cpu": _processor(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def command_line() -> str:
    """The command that this process was started with, but for where its report went."""
    given = list(sys.argv[1:])
    while "--report" in given:
        at = given.index("--report")
        del given[at : at + 2]
    return " ".join(["thousandfold", *(word for word in given if not word.startswith("--report="))])


def row(
    name: str,
    values: float | Sequence[float],
    unit: str,
    *,
    better: Better = "higher",
    target: float | None = None,
    peer: tuple[str, float] | None = None,
    command: str = "",
) -> Row:
    """A figure, or several runs of it: their mean and standard error. Passed: at least the target and better than the peer.

    A figure that is not finite has no value and does not pass.
    """
    runs = [float(v) for v in values] if isinstance(values, Sequence) else [float(values)]
    mean = statistics.fmean(runs)
    finite = all(map(math.isfinite, runs))
    stderr = statistics.stdev(runs) / math.sqrt(len(runs)) if len(runs) > 1 and finite else None
    passed: bool | None = None
    if target is not None or peer is not None:
        sign = 1 if better == "higher" else -1
        passed = finite and (target is None or sign * mean >= sign * target) and (peer is None or sign * mean > sign * peer[1])
    return Row(
        id=name,
        value=mean if finite else None,
        unit=unit,
        target=target,
        better=better,
        passed=passed,
        peer=None if peer is None else f"{peer[0]} = {peer[1]:.6g}",
        stderr=stderr,
        command=command or command_line(),
    )


def write(path: str | os.PathLike[str], rows: Iterable[Row]) -> Report:
    """Write a report as JSON, whole or not at all, into a folder that is made if need be, and return it.

    Raises:
        Refused: it cannot be written.
    """
    report = Report(machine(), list(rows))
    file = pathlib.Path(path)
    temporary = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
        temporary.replace(file)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise configuration.Refused(f"--report {path}: {error.strerror}; name a file that can be written") from error
    return report


def read(path: str | os.PathLike[str]) -> Report:
    """A report that `write` wrote.

    Raises:
        ValueError: the file is no report.
    """
    try:
        return msgspec.json.decode(pathlib.Path(path).read_bytes(), type=Report)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path} is no benchmark report: {error}") from error


def table(rows: Iterable[Row], title: str) -> Table:
    """Figures with pass or miss, for the terminal."""
    shown = Table(title=title)
    for name in ("figure", "value", "± se", "unit", "target", "against", ""):
        left = name in {"figure", "unit", "against", ""}
        # A figure's name is what it is found by in the report: on a narrow terminal it is broken, not cut off.
        shown.add_column(name, justify="left" if left else "right", overflow="fold" if name == "figure" else "ellipsis")
    for r in rows:
        verdict = "" if r.passed is None else "[green]pass[/]" if r.passed else "[red]miss[/]"
        value = "–" if r.value is None else f"{r.value:,.4f}" if abs(r.value) < 100 else f"{r.value:,.0f}"
        stderr = "" if r.stderr is None else f"{r.stderr:.2g}"
        shown.add_row(r.id, value, stderr, r.unit, "" if r.target is None else f"{r.target:g}", r.peer or "", verdict)
    return shown
