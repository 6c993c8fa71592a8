"""`thousandfold bench cold-items`: new items' first impressions, by what their rows begin with (Meta-Embedding, Pan et al. 2019).

One prequential pass for each way to begin: zero, random, and generated from the item's attributes. What counts are rows of items
first shown after the part on which settings were chosen, as the training forward itself scores them, so that an impression
knows all minibatches before its own.
"""

import itertools
import pathlib
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console
from rich.table import Table

from state import config as configuration
from thousandfold import specs
from thousandfold.bench import cold_study, figures, logs, protocol, quality, report

I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
IMPRESSIONS = ((1, 1), (2, 5), (6, 20))
"""Classes of an item's impressions, from and to."""
STARTS: dict[str, dict[str, Any]] = {
    "zero": {"embedding.init_scale": 0.0},
    "random": {"embedding.init_scale": 0.1},
    "near_zero": {"embedding.init_scale": 0.01},
    "generated": {"embedding.cold": "meta"},
}
"""`init_scale` is of every new row, users' too. `generated` has the configured one, .01 unless told, as `near_zero`: these two
differ in the items' rows alone."""
RATES = (0.003, 0.01, 0.03)
"""Of the generator; what `--choose` tries."""
UNITS = {"auc": "AUC", "logloss": "nats"}


def impressions(inputs: protocol.Inputs) -> I64:
    """(R,) which impression of its item a row is, from 1."""
    order = np.argsort(inputs.item, kind="stable")
    first = np.flatnonzero(np.r_[True, np.diff(inputs.item[order]) != 0])
    place = np.arange(len(order)) - np.repeat(first, np.diff(np.r_[first, len(order)]))
    found = np.empty(len(order), np.int64)
    found[order] = place + 1
    return found


def classes(inputs: protocol.Inputs, begin: int) -> dict[str, Bools]:
    """Rows (R,) of items first shown at row `begin` or later, by class of impression; and all rows from there on."""
    n, rows = impressions(inputs), np.arange(inputs.rows)
    _, first, of = np.unique(inputs.item, return_index=True, return_inverse=True)
    new = first[of] >= begin
    found = {f"{a}" if a == z else f"{a}-{z}": new & (a <= n) & (n <= z) for a, z in IMPRESSIONS}
    return found | {"all": rows >= begin}


def measure(
    config: configuration.Config, inputs: protocol.Inputs, starts: Mapping[str, Mapping[str, Any]], seed: int, begin: int,
    progress: quality.Progress,
) -> dict[str, dict[str, figures.Figures]]:  # fmt: skip
    """Figures by way to begin and class of impression."""
    where, label, told = classes(inputs, begin), inputs.label[:, 0], {}
    for name, changes in starts.items():
        run = cold_study.configured(config, {**changes, "learner.seed": seed})
        score = protocol.run(run, inputs, progress.stage(f"{name}, seed {seed}")).live[:, 0]
        told[name] = {part: figures.figures(inputs.group[rows], label[rows], score[rows]) for part, rows in where.items()}
    return told


def rows_of(runs: list[dict[str, dict[str, figures.Figures]]]) -> list[report.Row]:
    """The report: each figure, and generated less each other way to begin, seed by seed."""
    rows, parts = [], runs[0][next(iter(runs[0]))]
    for name, part, figure in itertools.product(runs[0], parts, UNITS):
        better: report.Better = "higher" if figure == "auc" else "lower"
        values = [getattr(run[name][part], figure) for run in runs]
        rows.append(report.row(f"cold_items/{figure}/{part}/{name}", values, UNITS[figure], better=better))
        if "generated" in runs[0] and name != "generated":
            over = [getattr(run["generated"][part], figure) - v for run, v in zip(runs, values, strict=True)]
            unit = f"{UNITS[figure]}, generated less {name}"
            rows.append(report.row(f"cold_items/over/{figure}/{part}/{name}", over, unit, better=better))
    return rows


def table(runs: list[dict[str, dict[str, figures.Figures]]], rows: list[report.Row]) -> Table:
    """AUC and logloss by class of impression, means and standard errors over seeds."""
    found = {row.id: row for row in rows}
    shown = Table(title=f"AUC / logloss of items first shown after the choice of settings, by impression; {len(runs)} seeds")
    shown.add_column("first row")
    parts = runs[0][next(iter(runs[0]))]
    for part, told in parts.items():
        shown.add_column(f"{part}\n{told.rows:,} rows", justify="right")
    for name in runs[0]:
        cells = []
        for part in parts:
            pair = [found[f"cold_items/{figure}/{part}/{name}"] for figure in UNITS]
            cells.append(" / ".join(f"{r.value or float('nan'):.4f}" + (f" ± {r.stderr:.4f}" if r.stderr else "") for r in pair))
        shown.add_row(name, *cells)
    return shown


app = typer.Typer()


@app.command("cold-items")
def command(
    data: Annotated[str, typer.Option(help="ml1m, or a Parquet file of shown rows, with --spec")] = "ml1m",
    spec: Annotated[pathlib.Path | None, typer.Option(help="a configuration of your own")] = None,
    seeds: Annotated[int, typer.Option(min=1, max=20, help="runs of each way to begin")] = 3,
    starts: Annotated[str, typer.Option(help="comma-separated ways to begin")] = ",".join(STARTS),
    rate: Annotated[float | None, typer.Option(help="rate of the generator; as configured without it")] = None,
    limit: Annotated[int | None, typer.Option(min=1000, help="only the lists of the first so many rows")] = None,
    choose: Annotated[bool, typer.Option("--choose", help="try rates of the generator on the first 20 %")] = False,
    report_file: Annotated[pathlib.Path | None, typer.Option("--report", help="write the figures as JSON")] = None,
) -> None:
    """AUC and logloss of new items at impressions 1, 2 to 5 and 6 to 20: zero, random and generated first values."""
    console, progress = Console(width=None if sys.stdout.isatty() else 150), quality.Progress()
    if spec is None and data != "ml1m":
        raise logs.LogError(f"--data {data} needs --spec SPEC.toml, the configuration that declares its features; see examples/")
    unknown = [name for name in quality.listed(starts) if name not in STARTS]
    if unknown:
        raise configuration.ConfigError(f'--starts: no "{unknown[0]}"; there are {", ".join(STARTS)}')
    config = configuration.load(spec or specs.path("ml1m_ids"))
    config = msgspec.structs.replace(config, meta=msgspec.structs.replace(config.meta, mode="off"))
    log = quality.open_log(config, data, None, limit, say=console.print)
    inputs = protocol.prepare(config, log, protocol.Lag(), progress.stage("features"))
    begin = round(quality.CHOICE_SHARE * inputs.rows)
    ways: dict[str, dict[str, Any]] = {name: dict(STARTS[name]) for name in quality.listed(starts)}
    if choose:
        tried = {f"rate {r:g}": {**STARTS["generated"], "embedding.cold_rate": r} for r in RATES}
        inputs, begin, ways = inputs.head(begin), begin // 2, tried | {n: w for n, w in ways.items() if n != "generated"}
    elif rate is not None and "generated" in ways:
        ways["generated"]["embedding.cold_rate"] = rate
    runs = [measure(config, inputs, ways, seed, begin, progress) for seed in range(seeds)]
    rows = rows_of(runs)
    console.print(table(runs, rows))
    if report_file is not None:
        report.write(report_file, rows)
        console.print(f"written: {report_file}")
