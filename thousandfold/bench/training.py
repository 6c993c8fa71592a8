"""The training step at the size of an offline minibatch, against other implementations and against the machine.

20 fields x 16 numbers, a million rows, 1,024 rows a step, 3 scenarios x 2 objectives, meta-learning off, equal threads. Ids are
made up and skewed, the same for all. Candidates take turns; a ratio is the median over the rounds of what each round gave, so
that other work on the machine, which slows all of a round, weighs little. With one thread, seconds are processor time of the
process, for steps and for the peak alike: waiting for a core is left out. With more they are a clock's on the wall.
"""

import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import torch
import typer
from rich.console import Console

from learner import products
from learner.__main__ import environment
from learner.step import Trainer
from models import base, embedding
from state import config as configuration
from state import spec
from state.config import Config
from thousandfold.bench import fma, report, training_peers
from thousandfold.bench.training_peers import Cycle, Minibatch, Size, Step

FIELDS, ROWS, BATCH, BATCHES, ROUNDS = 20, 1_000_000, 1024, 32, 9
SLICE_S = 0.2
SKEW = 3.0
MODELS: Mapping[str, Callable[[Config], int]] = {"pepnet": fma.pepnet, "mmoe": fma.mmoe}
TARGETS = {"torch_rechub": 4.0, "naive_torch": 2.3, "per_field": 20.0, "fbgemm": 2.5}
FLOOR_SHARE = 0.4
START_MS = 1_700_000_000_000


def size(rows: int = ROWS) -> Size:
    """What all candidates are built to: the last field is the scenario, the others share `rows` table rows."""
    each = rows // (FIELDS - 1)
    return Size((*[each] * (FIELDS - 1), 3), 16, 4, (128, 64), (128, 64), 32, 3, 2)


def settings(model: str, wanted: Size, threads: int = 1) -> Config:
    """Our configuration of that size."""
    names = [*(f"f{i}" for i in range(len(wanted.rows) - 1)), "scenario"]
    sources = {"f0": "user_id", "f1": "item_id", "scenario": "scenario"}
    categories = tuple(spec.Category(name=n, source=sources.get(n, f"context.{n}")) for n in names)
    default = Config()
    objectives = tuple(configuration.Objective(name=f"o{i}", action=f"o{i}") for i in range(wanted.objectives))
    return msgspec.structs.replace(
        default, features=spec.Features(categories=categories), objectives=objectives,
        model=configuration.Model(
            name=model, embedding_width=wanted.width, hidden=wanted.hidden, gate_hidden=wanted.gate_hidden,
            experts=wanted.experts, expert_hidden=wanted.expert_hidden, personal_features=("f0", "f1"),
        ),
        scenarios=msgspec.structs.replace(default.scenarios, slots=wanted.scenarios),
        embedding=configuration.Embedding(capacity=max(1024, sum(wanted.rows) + 4 * BATCH * FIELDS)),
        meta=msgspec.structs.replace(default.meta, mode="off"),
        learner=msgspec.structs.replace(default.learner, threads=threads, rows_per_step=BATCH),
    )  # fmt: skip


def minibatches(wanted: Size, rows: int = BATCH, count: int = BATCHES, seed: int = 0) -> list[Minibatch]:
    """Ids of a skewed popularity (cubes of uniform draws), scattered over each table; a scenario per row; coin-flip labels."""
    rng, made = np.random.default_rng(seed), []
    top = np.array(wanted.rows)
    for _ in range(count):
        ids = (top * rng.random((rows, len(top))) ** SKEW).astype(np.int64) * 7919 % top
        scenario = rng.integers(0, wanted.scenarios, rows)
        ids[:, -1] = scenario
        label = (rng.random((rows, wanted.objectives)) < 0.3).astype(np.float32)
        made.append(Minibatch(*(torch.from_numpy(part) for part in (ids, scenario, label))))
    return made


def batch(made: Minibatch) -> base.Batch:
    """The same rows as the learner gets them: lists of one row, no support."""
    ids, label = made.ids.numpy().astype(np.uint64), made.label.numpy()
    rows = len(ids)
    ones, none = np.ones(rows, np.int64), np.zeros(rows, np.int64)
    return base.Batch(
        ids, np.zeros((rows, 0), np.float32), label, np.ones_like(label), made.scenario.numpy().astype(np.uint64), ones, none,
        ids[:0], np.zeros((0, 0), np.float32), label[:0],
    )  # fmt: skip


def fill(table: embedding.Table, wanted: Size) -> None:
    """Give every id its row, as it is after a while."""
    most = max(wanted.rows)
    for first in range(0, most, BATCH):
        place = np.arange(first, min(first + BATCH, most)).reshape(-1, 1)
        table.admit((place % np.array(wanted.rows)).astype(np.uint64), START_MS)


def trained(settings: Config, wanted: Size, made: Sequence[Minibatch]) -> Step:
    """The product's own step."""
    trainer, following = Trainer(settings), Cycle([batch(m) for m in made])
    fill(trainer.table, wanted)

    def step() -> None:
        skipped = trainer.step(following(), START_MS).skipped
        if skipped:
            raise RuntimeError(f"a step was skipped: {skipped}")

    return step


def updated(wanted: Size, made: Sequence[Minibatch], gradient: npt.NDArray[np.float32]) -> Step:
    """Our lookup and update alone, on rows that the id map has found; gradient (B, F x E), first-order weights have none."""
    table = embedding.Table(settings("pepnet", wanted))
    fill(table, wanted)
    rows, slot = len(gradient), np.zeros(len(gradient), np.int64)
    found = Cycle([table.admit(m.ids.numpy().astype(np.uint64), START_MS) for m in made])
    slope, out = np.zeros((rows, table.row), np.float32), np.empty((rows, table.row), np.float32)
    slope[:, : gradient.shape[1]] = gradient
    numbers = np.zeros((rows, 0), np.float32)

    def step() -> None:
        at = found()
        table.gather(at, numbers, slot, out, learn=True)
        table.descend(at, slope)

    return step


class Timing(NamedTuple):
    """Seconds a step of every candidate, one of each round; `peak`: multiply-adds per second, measured in the same rounds."""

    seconds: dict[str, list[float]]
    peak: list[float]

    def ratio(self, slower: str, faster: str) -> float:
        """How many steps of `faster` go into one of `slower`: the median over the rounds."""
        return statistics.median(a / b for a, b in zip(self.seconds[slower], self.seconds[faster], strict=True))

    def share(self, name: str, multiply_adds: float) -> float:
        """How much of the measured peak a step of so many multiply-adds uses: the median over the rounds."""
        return statistics.median(multiply_adds / s / p for s, p in zip(self.seconds[name], self.peak, strict=True))


def measure(
    candidates: Mapping[str, Step], rounds: int, slice_s: float = SLICE_S, clock: Callable[[], float] = time.process_time
) -> Timing:
    """Every candidate in every round, for about `slice_s` seconds each by `clock`, and the peak before them."""
    calls: dict[str, int] = {}
    for name, step in candidates.items():
        step()
        step()
        began = clock()
        step()
        calls[name] = max(1, round(slice_s / (clock() - began)))
    timing = Timing({name: [] for name in candidates}, [])
    for _ in range(rounds):
        timing.peak.append(fma.peak(slice_s / 2, clock))
        for name, step in candidates.items():
            began = clock()
            for _ in range(calls[name]):
                step()
            timing.seconds[name].append((clock() - began) / calls[name])
    return timing


def candidates(wanted: Size, threads: int, rows: int = BATCH, count: int = BATCHES) -> tuple[dict[str, Step], dict[str, Step]]:
    """Training steps, and embedding updates, by name; what is not installed is not there."""
    # Torch's default, said aloud: it warns until it is told.
    torch.sparse.check_sparse_tensor_invariants.disable()  # type: ignore[no-untyped-call]
    made = minibatches(wanted, rows, count)
    gradient = torch.randn(rows, wanted.inputs, generator=torch.Generator().manual_seed(0)) * 1e-3
    steps: dict[str, Step | None] = {model: trained(settings(model, wanted, threads), wanted, made) for model in MODELS}
    scenario = len(wanted.rows) - 1
    steps |= {
        "naive_torch/pepnet": training_peers.naive(wanted, training_peers.Gated(wanted, scenario, (0, 1)), made),
        "naive_torch/mmoe": training_peers.naive(wanted, training_peers.Mixture(wanted), made),
        "torch_rechub": training_peers.rechub(wanted, made),
    }
    updates: dict[str, Step | None] = {
        "ours": updated(wanted, made, gradient.numpy()),
        "per_field": training_peers.embeddings(wanted, made, gradient),
        "fbgemm": training_peers.fbgemm(wanted, made, gradient),
    }
    torch.set_num_threads(threads)
    present = [{name: step for name, step in group.items() if step is not None} for group in (steps, updates)]
    return present[0], present[1]


def _against(name: str, peer: str, value: float | None) -> report.Row:
    if value is None:
        absent = report.row(name, float("nan"), "not installed", target=TARGETS[peer])
        return msgspec.structs.replace(absent, passed=None)
    return report.row(name, value, f"x {peer}", target=TARGETS[peer])


def rows_of(steps: Timing, updates: Timing, work: Mapping[str, int], rows: int, threads: int) -> list[report.Row]:
    """The report: `work` has the multiply-adds of a row by model. A peer that was not timed has no value and does not miss."""
    found = []
    for model in MODELS:
        seconds, done = statistics.median(steps.seconds[model]), float(work[model] * rows)
        found.append(report.row(f"training/{model}", rows / seconds, "rows/s"))
        for peer, name in (("torch_rechub", "torch_rechub"), ("naive_torch", f"naive_torch/{model}")):
            value = steps.ratio(name, model) if name in steps.seconds else None
            found.append(_against(f"training/{model}/{peer}", peer, value))
        floor = done / threads / statistics.median(steps.peak)
        found += [
            report.row(f"training/{model}/floor", floor * 1e3, f"ms a step: {done / 1e6:,.0f}M multiply-adds", better="lower"),
            report.row(f"training/{model}/floor_share", steps.share(model, done / threads), "of the peak", target=FLOOR_SHARE),
        ]
    peak = statistics.median(steps.peak) / 1e9
    found.append(report.row("training/peak", peak, "G multiply-adds/s, one thread, loop of FMAs on registers"))
    for peer in ("per_field", "fbgemm"):
        value = updates.ratio(peer, "ours") if peer in updates.seconds else None
        found.append(_against(f"training/embedding/{peer}", peer, value))
    return found


def run(rounds: int = ROUNDS, threads: int = 1, say: Callable[[str], None] = print) -> list[report.Row]:
    """Measure; returns the rows of the report."""
    wanted = size()
    steps, updates = candidates(wanted, threads)
    load = os.getloadavg()[0]
    clock, named = (time.process_time, "processor time") if threads == 1 else (time.perf_counter, "time on the wall")
    timing = measure(steps, rounds, clock=clock), measure(updates, rounds, clock=clock)
    say(f"load of the machine {load:.1f} before, {os.getloadavg()[0]:.1f} after; {threads} threads")
    say(f"medians of {rounds} rounds, {named}")
    for vary in (False, True):
        found = products.measure(products.row_counts(BATCH, vary), products.shapes(settings("mmoe", wanted), wanted.inputs))
        faster, error = found["mkl"].seconds / found["onednn"].seconds, found["onednn"].error
        say(f"products, rows {'that vary' if vary else 'fixed'}: oneDNN {faster:.2f} x MKL, its relative error {error:.1e}")
    for group in timing:
        say("ms a step: " + ", ".join(f"{name} {statistics.median(s) * 1e3:.2f}" for name, s in group.seconds.items()))
    return rows_of(*timing, {model: count(settings(model, wanted)) for model, count in MODELS.items()}, BATCH, threads)


app = typer.Typer()


@app.command("training")
def command(
    rounds: Annotated[int, typer.Option(min=1, help="rounds in which every candidate takes its turn")] = ROUNDS,
    threads: Annotated[int, typer.Option(min=1, help="torch threads of all candidates")] = 1,
    report_file: Annotated[pathlib.Path | None, typer.Option("--report", help="write the rows to this JSON file")] = None,
) -> None:
    """The training step against naive torch, torch-rechub, fbgemm's embeddings and the processor's peak.

    Peers are installed by `make bench`, or by pip install --no-deps -r requirements-peers.txt.
    """
    # The allocator and thread pools read these when a process starts; all candidates are measured with them.
    variables = environment(msgspec.structs.replace(Config(), learner=configuration.Learner(threads=threads)))
    if any(os.environ.get(name) != value for name, value in variables.items()):
        again = [sys.executable, "-m", "thousandfold", *sys.argv[1:]]
        raise typer.Exit(subprocess.run(again, env=os.environ | variables, check=False).returncode)
    console = Console()
    rows = run(rounds, threads, console.print)
    console.print(report.table(rows, "training"))
    if report_file:
        report.write(report_file, rows)
