"""`thousandfold bench retrieval`: which towers are searched, and the table of what was found."""

import math
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console
from rich.table import Table

from state import config as configuration
from thousandfold import specs
from thousandfold.bench import logs, protocol, quality, report, retrieval, retrieval_stream

F64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
HISTORY = {"0": (0, 1), "1-4": (1, 5), "5-16": (5, 17), "17+": (17, retrieval.NEVER)}
FIGURES = ("recall@10", "recall@50", "ndcg@10")
MODES = retrieval_stream.MODES
WIDTH = 130


class Shown(NamedTuple):
    """Counted actions of a pass: figures of each (P,), by method and figure, users (P,), and which belong to a part."""

    of: dict[str, dict[str, F64]]
    user: npt.NDArray[np.int64]
    parts: dict[str, Bools]


def shown(log: retrieval.Log, config: configuration.Config, ranks: retrieval.Ranks, skip: int) -> Shown:
    """What a pass found of the actions from the log's action `skip` on: in all, by scenario and by what the user did before."""
    counted = ranks.row >= (log.acted[skip] if skip else 0)
    row, history = ranks.row[counted], ranks.history[counted]
    scenario = np.repeat(log.inputs.scenario, np.diff(log.inputs.start))[row]
    parts = {"all": np.ones(len(row), np.bool_)}
    parts |= {name: scenario == code for name, code in quality.scenarios_of(config, log.inputs)}
    parts |= {f"{name} before": (history >= low) & (history < high) for name, (low, high) in HISTORY.items()}
    return Shown({name: of_each(r[counted]) for name, r in ranks.of.items()}, log.user[row], parts)


def of_each(ranks: npt.NDArray[np.int64]) -> dict[str, F64]:
    """By figure what each action adds to it: found among the first 10 and 50, and its gain among the first 10."""
    gain = np.where(ranks < 10, 1 / np.log2(ranks.clip(max=10) + 2.0), 0.0)
    return dict(zip(FIGURES, ((ranks < 10).astype(np.float64), (ranks < 50).astype(np.float64), gain), strict=True))


def mean(values: F64, user: npt.NDArray[np.int64]) -> tuple[float, float]:
    """A mean over actions and its standard error over users, whose actions hang together; nan where there are none."""
    if not len(values):
        return math.nan, math.nan
    value = float(values.mean())
    of_user = np.bincount(user, weights=values - value)
    users = len(np.unique(user))
    error = math.sqrt(float((of_user**2).sum()) * users / max(users - 1, 1)) / len(values)
    return value, error if users > 1 else math.nan


def table(measured: dict[str, Shown], command: str = "") -> tuple[Table, list[report.Row]]:
    """Figures of every method on every part, and what adapting gains; those of the whole and of scenarios as rows."""
    drawn, rows = Table(title="what a user acts on next, among all items met so far"), list[report.Row]()
    for head in ("method", "part", "actions", *FIGURES):
        drawn.add_column(head, justify="left" if head in {"method", "part"} else "right")
    for label, found, values in _methods(measured):
        for part, inside in found.parts.items():
            told = {f: mean(values[f][inside], found.user[inside]) for f in FIGURES}
            cells = [f"{v:+.4f} ± {e:.4f}" if label.endswith("gain") else f"{v:.4f}" for v, e in told.values()]
            drawn.add_row(label if part == "all" else "", part, f"{inside.sum():,}", *cells)
            if part.endswith(" before") or not inside.any():
                continue
            for figure, (value, error) in told.items():
                name = f"retrieval/{label}/{figure}" + (f"/{part}" if part != "all" else "")
                row = report.row(name, value, "share", command=command)
                rows.append(msgspec.structs.replace(row, stderr=None if math.isnan(error) else error))
    return drawn, rows


def _methods(measured: dict[str, Shown]) -> Iterator[tuple[str, Shown, dict[str, F64]]]:
    """Popularity once for every set of actions, then the towers of every pass, and adapted less unadapted."""
    told = set[tuple[str, int]]()
    for variant, found in measured.items():
        for name, values in found.of.items():
            if name not in MODES and (name, len(found.user)) not in told:
                told.add((name, len(found.user)))
                yield name, found, values
        for name in MODES:
            yield f"{variant}, {name}", found, found.of[name]
        plain, adapted = (found.of[name] for name in MODES)
        yield f"{variant}, gain", found, {f: adapted[f] - plain[f] for f in FIGURES}


def passes(
    config: configuration.Config, log: retrieval.Log, stream: bool, without: bool, every: int, progress: quality.Progress
) -> dict[str, Callable[[], retrieval.Ranks]]:  # fmt: skip
    """What is run, by name."""
    alone = msgspec.structs.replace(config, meta=msgspec.structs.replace(config.meta, weight=0.0))
    plain = {"softmax": config} | ({"softmax without meta loss": alone} if without else {})

    def streamed(name: str, own: configuration.Config) -> Callable[[], retrieval.Ranks]:
        return lambda: retrieval_stream.measure(own, log, every, progress.stage(name))

    def trained(name: str, own: configuration.Config) -> Callable[[], retrieval.Ranks]:
        return lambda: retrieval.measure(own, log, retrieval.Options(), progress.stage(name))

    if not stream:
        return {f"two_tower, {name}": trained(name, own) for name, own in plain.items()}
    plain["logistic"] = retrieval_stream.pointwise(config)
    return {f"learner, {name}": streamed(name, own) for name, own in plain.items()}


app = typer.Typer()


@app.command()
def command(
    data: Annotated[str, typer.Option(help="ml1m, simulate, or a Parquet file of shown rows")] = "ml1m",
    spec: Annotated[pathlib.Path | None, typer.Option(help="a configuration of your own, with --data")] = None,
    limit: Annotated[int | None, typer.Option(min=1000, help="only the lists of the first so many rows")] = None,
    burn_in: Annotated[float, typer.Option(min=0, max=0.9, help="share of the actions that no figure counts")] = 0.2,
    without: Annotated[bool, typer.Option("--without", help="train without the meta loss as well, and adapt that")] = False,
    stream: Annotated[bool, typer.Option(help="the continuous learner's step, else a trainer over single actions")] = True,
    every: Annotated[int, typer.Option(min=1, help="with --stream: search for one list in so many; all are learned from")] = 1,
    report_file: Annotated[pathlib.Path | None, typer.Option("--report", help="write the figures as JSON")] = None,
) -> None:
    """Recall and NDCG of the next action, searched before it is learned, adapted and not, against popularity."""
    config = configuration.load(spec or specs.path("ml1m_retrieval"))
    if config.model.name != "two_tower":
        raise configuration.ConfigError(f'model.name: "{config.model.name}" has no vectors to search; use "two_tower"')
    if spec is None and data != "ml1m":
        raise logs.LogError(f"--data {data} needs --spec SPEC.toml, the configuration that declares its features; see examples/")
    progress = quality.Progress()
    events = quality.open_log(config, data, None, limit, what="")
    log = retrieval.log_of(protocol.prepare(config, events, protocol.Lag(), progress.stage("features")))
    skip, console = int(burn_in * len(log.acted)), Console(width=None if sys.stdout.isatty() else WIDTH)
    measured, rates = dict[str, Shown](), list[str]()
    for name, run in passes(config, log, stream, without, every, progress).items():
        ranks = run()
        measured[name] = shown(log, config, ranks, skip)
        rates.append(f"{name}: {len(ranks.history) / max(ranks.seconds, 1e-9):,.0f} actions/s searched and learned")
    drawn, rows = table(measured, report.command_line())
    console.print(drawn)
    console.print("\n".join(rates))
    if report_file is not None:
        report.write(report_file, rows)
