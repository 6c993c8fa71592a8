"""What fresh parameters are worth: quality against the time between two updates of the model (D6, DUPN's daily increments).

A base is fitted on the first part of a log. From there on the model scores as it was at its last update: after every so many
rows, or so much event time, it trains on what has come since, and the next rows are scored by that. Features and support sets
are as fresh as ever, since the streams keep them and not the learner: what is measured is the age of the parameters alone.
"""

import itertools
import pathlib
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
import typer
from rich.console import Console

from learner import episodes, step
from state import config as configuration
from thousandfold.bench import areas, figures, grids, logs, protocol, quality, report

NEVER = "never"
INTERVALS = ("100", "1000", "10000", "1d", NEVER)
MS = {"m": 60_000, "h": 3_600_000, "d": 86_400_000}
VARIANTS = ("adapted", "unadapted")
Bounds = list[tuple[int, int]]


class Passed(NamedTuple):
    """Predictions (R, O) at one interval by variant and seed, NaN before the increments begin, and how often it was updated."""

    scores: dict[str, list[quality.F32]]
    updates: int


class Gain(NamedTuple):
    """Of one objective at one interval: figures by variant, and its AUC less that of the last interval, with its error."""

    interval: str
    figures: dict[str, list[figures.Figures]]
    over: areas.Difference
    updates: int


def bounds(inputs: protocol.Inputs, first: int, interval: str, block_rows: int) -> Bounds:
    """Lists [from, to) between two updates, from list `first` on: whole lists of so many rows, or of so much event time.

    What is never updated is scored in blocks of `block_rows`, which changes nothing.

    Raises:
        LogError: the interval is none.
    """
    wanted = str(block_rows) if interval == NEVER else interval
    if re.fullmatch(r"[1-9][0-9]*", wanted):
        return [(first + a, first + z) for a, z in episodes.cut(np.diff(inputs.start[first:]), int(wanted))]
    if not re.fullmatch(r"[1-9][0-9]*[mhd]", wanted):
        raise logs.LogError(f"--intervals: {interval!r} is none; give rows (1000), event time (30m, 6h, 1d) or {NEVER}")
    age = (inputs.ts[first:] - inputs.ts[first]) // (int(wanted[:-1]) * MS[wanted[-1]])
    ends = [0, *(np.flatnonzero(np.diff(age)) + 1).tolist(), len(age)]
    return [(first + a, first + z) for a, z in itertools.pairwise(ends)]


def measure(
    config: configuration.Config, inputs: protocol.Inputs, first: int, intervals: Sequence[str], seeds: Sequence[int],
    progress: quality.Progress | None = None,
) -> dict[str, Passed]:  # fmt: skip
    """Fit the base on the lists before `first` once per seed, and go on from it at every interval.

    Raises:
        FloatingPointError: see `protocol.run`.
    """
    progress = progress or quality.Progress()
    planned = {interval: bounds(inputs, first, interval, config.quality.block_rows) for interval in intervals}
    found = {
        interval: Passed({variant: [] for variant in VARIANTS}, 0 if interval == NEVER else len(planned[interval]) - 1)
        for interval in intervals
    }
    for seed in seeds:
        seeded = quality.override(config, "learner.seed", seed)
        base = step.Trainer(seeded)
        protocol.run(seeded, inputs.head(int(inputs.start[first])), progress.stage(f"base, seed {seed}"), base)
        fitted = {name: array.copy() for name, array in base.arrays().items()}
        for interval in intervals:
            trainer = step.Trainer(seeded)
            trainer.load(fitted)
            learned = first if interval == NEVER else planned[interval][-1][0]
            schedule = protocol.Schedule(planned[interval], learned)
            tell = progress.stage(f"{interval}, seed {seed}")
            scores = protocol.run(seeded, inputs, tell, trainer, schedule=schedule)
            for variant in VARIANTS:
                found[interval].scores[variant].append(getattr(scores, variant))
    return found


def gains(inputs: protocol.Inputs, first: int, objective: int, found: dict[str, Passed]) -> list[Gain]:
    """Figures of the rows from list `first` on that have the objective; differences are on the same rows and seeds."""
    counted = np.flatnonzero(np.isfinite(inputs.label[:, objective]) & (np.arange(inputs.rows) >= inputs.start[first]))
    users = np.unique(inputs.user, return_inverse=True)[1]
    user = np.repeat(users, np.diff(inputs.start))[counted]
    label, group = inputs.label[counted, objective], inputs.group[counted]
    rows = areas.Rows(label, group, user, int(users.max(initial=-1)) + 1)
    own = {
        interval: {v: [run[counted, objective] for run in runs] for v, runs in passed.scores.items()}
        for interval, passed in found.items()
    }
    area = {i: [areas.auc(rows, run, areas.ascending(run)) for run in runs["adapted"]] for i, runs in own.items()}
    *_, last = found
    return [
        Gain(
            interval,
            {v: [figures.figures(group, label, run) for run in scores] for v, scores in runs.items()},
            areas.difference(area[interval], area[last]),
            found[interval].updates,
        )
        for interval, runs in own.items()
    ]


def rows_of(name: str, told: Sequence[Gain], command: str = "") -> Iterator[report.Row]:
    """The report of one objective; `name` begins its ids."""
    for gain in told:
        for variant, figure in ((v, f) for v in VARIANTS for f in ("auc", "gauc", "logloss")):
            values = [float(getattr(run, figure)) for run in gain.figures[variant]]
            unit, better = quality.UNITS[figure], quality.BETTER[figure]
            yield report.row(f"{name}/{gain.interval}/{figure}/{variant}", values, unit, better=better, command=command)
        line = report.row(f"{name}/{gain.interval}/auc_over_{told[-1].interval}", gain.over.value, "AUC", command=command)
        yield msgspec.structs.replace(line, stderr=gain.over.stderr if np.isfinite(gain.over.stderr) else None)
        yield report.row(f"{name}/{gain.interval}/updates", gain.updates, "updates", better="lower", command=command)


def table(title: str, told: Sequence[Gain]) -> grids.Grid:
    """One line per interval."""
    last = told[-1].interval
    heads = ["update every", "updates", "AUC", "GAUC", "logloss", f"AUC over {last}", "± se", "AUC unadapted"]
    return grids.Grid(title, heads, [[_words(g.interval), f"{g.updates:,}", *_cells(g)] for g in told])


def _words(interval: str) -> str:
    return f"{int(interval):,} rows" if interval.isdigit() else interval


def _cells(gain: Gain) -> list[str]:
    adapted, plain = ({f: _mean(gain.figures[v], f) for f in ("auc", "gauc", "logloss")} for v in VARIANTS)
    over = f"{gain.over.value:+.4f}" if np.isfinite(gain.over.value) else grids.number(None)
    shown = [grids.number(adapted[figure]) for figure in ("auc", "gauc", "logloss")]
    return [*shown, over, grids.number(gain.over.stderr), grids.number(plain["auc"])]


def _mean(runs: Sequence[figures.Figures], figure: str) -> float:
    return float(np.mean([getattr(run, figure) for run in runs]))


app = typer.Typer()


@app.command()
def increments(
    data: Annotated[str, typer.Option(help="ml1m, simulate, or a Parquet file of shown rows")] = "ml1m",
    spec: Annotated[pathlib.Path | None, typer.Option(help="the configuration with the feature spec; ml1m has its own")] = None,
    actions: Annotated[pathlib.Path | None, typer.Option(help="a Parquet file of actions, for --data FILE")] = None,
    intervals: Annotated[
        str, typer.Option(help=f"comma-separated: rows (1000), event time (30m, 6h, 1d) or {NEVER}; the last is compared with")
    ] = ",".join(INTERVALS),
    base: Annotated[float, typer.Option(min=0.01, max=0.99, help="share of the rows that the base is fitted on")] = 0.5,
    seeds: Annotated[int, typer.Option(min=1, max=20, help="runs of each interval")] = 3,
    limit: Annotated[int | None, typer.Option(min=1000, help="only the lists of the first so many rows")] = None,
    report_file: Annotated[pathlib.Path | None, typer.Option("--report", help="write the figures as JSON")] = None,
) -> None:
    """Quality against the time between two updates of the model, from one base fit."""
    console = Console() if sys.stdout.isatty() else Console(width=160)
    config, progress, command = quality.configured(data, spec), quality.Progress(), report.command_line()
    chosen = quality.listed(intervals)
    log = quality.open_log(config, data, actions, limit, what="bench increments")
    inputs = protocol.prepare(config, log, protocol.Lag(), progress.stage("features"))
    first = int(np.searchsorted(inputs.start, base * inputs.rows))
    if not chosen or not 0 < first < len(inputs.ts):
        raise logs.LogError("--intervals and --base must leave something to measure; name an interval, or use more of the log")
    found = measure(config, inputs, first, chosen, range(seeds), progress)
    rows = list[report.Row]()
    for o, objective in enumerate(config.objectives):
        told = gains(inputs, first, o, found)
        name = f"increments/{objective.name}" if len(config.objectives) > 1 else "increments"
        rows += rows_of(name, told, command)
        after = inputs.rows - int(inputs.start[first])
        console.print(grids.terminal(table(f"{objective.name}: {config.model.name}, {after:,} rows after the base", told)))
    if report_file is not None:
        report.write(report_file, rows)
        console.print(f"written: {report_file}")
