"""Speed and memory of meta-gradients: the learner's closed forms against `torch.func.vmap(grad)` and a loop over tasks.

One thread, one process, the allocator as the learner sets it, random tasks of 16 support and 4 query rows; ways take turns, each
is timed several times and its fastest pass counts. Every way's gradients are compared before it is timed.
"""

import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Annotated

import torch
import typer
from rich.console import Console

from learner.__main__ import MEMORY
from state import config as configuration
from thousandfold.bench import adaptation_native, report
from thousandfold.bench import adaptation_peers as peers

TASKS, MANY, ROUNDS, LOOP_ROUNDS = 512, 4096, 9, 2
TARGETS = {"first_order/1_step": 5.0, "first_order/3_steps": 4.0, "second_order/1_step": 1.8}
"""Times that `vmap(grad)` takes as long."""
LOOP_TARGET, MEMORY_TARGET, GRADIENT_TARGET = 50.0, 1 / 3, 1e-5
WAYS: dict[str, Callable[[peers.Tasks, peers.Parameters, int], peers.Gradients]] = {
    "first_order": adaptation_native.first_order,
    "second_order": peers.closed_form,
    "vmap_first_order": lambda d, p, steps: peers.by_vmap(d, p, steps, second=False),
    "vmap_second_order": lambda d, p, steps: peers.by_vmap(d, p, steps, second=True),
    "loop": peers.by_loop,
}


def apart(one: peers.Gradients, other: peers.Gradients) -> float:
    """The largest difference of two ways, in units of the largest gradient of the parameter."""
    pairs = zip([g.clone() for g in one()], other(), strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def fastest(ways: Mapping[str, peers.Gradients], rounds: int) -> dict[str, float]:
    """CPU seconds of the fastest of `rounds` passes of each way, in turns.

    On a busy machine a long pass always waits for the processor and a short one may not, so the clock would favour the short.
    """
    took: dict[str, float] = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds + 1):
        for name, run in ways.items():
            began = time.process_time()
            run()
            took[name] = min(took[name], time.process_time() - began)
    return took


def _against_vmap(order: str, steps: int, count: int, rounds: int) -> list[report.Row]:
    given, start = peers.tasks(count), peers.parameters()
    ways = {name: WAYS[name](given, start, steps) for name in (order, f"vmap_{order}")}
    wrong = apart(*ways.values())
    took = fastest(ways, rounds)
    name = f"{order}/{steps}_step{'s' * (steps > 1)}"
    peer = took[f"vmap_{order}"]
    return [
        report.row(f"adaptation/{name}/speed", peer / took[order], "times vmap(grad)", target=TARGETS.get(name)),
        report.row(f"adaptation/{name}/tasks", count / took[order], "tasks/s"),
        report.row(f"adaptation/{name}/gradient", wrong, "relative", better="lower", target=GRADIENT_TARGET),
    ]


def _against_loop(count: int, rounds: int) -> report.Row:
    given, start = peers.tasks(count), peers.parameters()
    ways = {name: WAYS[name](given, start, 1) for name in ("first_order", "loop")}
    wrong = apart(*ways.values())
    if wrong > GRADIENT_TARGET:
        raise ArithmeticError(f"the loop's gradients differ by {wrong:.1e}: the two ways do not compute the same")
    took = fastest(ways, rounds)
    return report.row(
        "adaptation/first_order/1_step/loop", took["loop"] / took["first_order"], "times a loop", target=LOOP_TARGET
    )


def peak_mb(way: str, count: int) -> float:
    """What one pass over `count` tasks adds at most to the memory of this process, in MB; the tasks themselves are not counted.

    Raises:
        Refused: the system does not tell (only Linux does).
    """
    given, start = peers.tasks(count), peers.parameters()
    WAYS[way](peers.Tasks(*(part[:8] for part in given)), start, 1)()
    try:
        # What compiling took before is forgotten.
        pathlib.Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = _status_mb("VmRSS")
        WAYS[way](given, start, 1)()
        return _status_mb("VmHWM") - before
    except OSError as error:
        raise configuration.Refused(f"the peak of memory is measured on Linux only: {error}") from error


def _status_mb(name: str) -> float:
    lines = pathlib.Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


def _peak_elsewhere(way: str, count: int) -> float:
    # A process of its own: the peak of one that has run another way is that way's.
    argv = [sys.executable, "-m", "thousandfold", "bench", "adaptation", "--memory-of", way, "--tasks", str(count)]
    return float(subprocess.run(argv, check=True, capture_output=True, text=True).stdout.split()[-1])


def run(count: int = TASKS, many: int = MANY, rounds: int = ROUNDS, say: Callable[[str], None] = print) -> list[report.Row]:
    """Measure; returns the rows of the report."""
    torch.set_num_threads(1)
    rows = []
    for order, steps in (("first_order", 1), ("first_order", 3), ("first_order", 5), ("second_order", 1), ("second_order", 3)):
        rows += _against_vmap(order, steps, count, rounds)
    rows.append(_against_loop(count, min(rounds, LOOP_ROUNDS)))
    own, theirs = (_peak_elsewhere(way, many) for way in ("first_order", "vmap_first_order"))
    say(f"{many:,} tasks, memory of one pass: {own:.0f} MB, by vmap(grad) {theirs:.0f} MB")
    rows.append(
        report.row("adaptation/memory", own / max(theirs, 1e-9), "of vmap(grad)'s", better="lower", target=MEMORY_TARGET)
    )  # fmt: skip
    return rows


app = typer.Typer()


@app.command("adaptation")
def command(
    tasks: Annotated[int, typer.Option(min=8, help="tasks of a minibatch; memory is measured at eight times as many")] = TASKS,
    rounds: Annotated[int, typer.Option(min=1, help="passes of each way, the fastest counts")] = ROUNDS,
    memory_of: Annotated[str | None, typer.Option(hidden=True)] = None,
    report_file: Annotated[pathlib.Path | None, typer.Option("--report", help="write the rows to this JSON file")] = None,
) -> None:
    """Tasks per second and memory of meta-gradients, against vmap(grad) and a loop over tasks."""
    if memory_of is not None:
        torch.set_num_threads(1)
        typer.echo(f"{peak_mb(memory_of, tasks):.3f}")
        return
    if any(os.environ.get(name) != value for name, value in MEMORY.items()):
        # The C library reads these when a process starts.
        again = subprocess.run([sys.executable, "-m", "thousandfold", *sys.argv[1:]], env=os.environ | MEMORY, check=False)
        raise typer.Exit(again.returncode)
    console = Console()
    rows = run(tasks, tasks * MANY // TASKS, rounds, console.print)
    console.print(report.table(rows, "adaptation"))
    if report_file:
        report.write(report_file, rows)
