"""`thousandfold bench quality`: the model against its baselines on one log, prequentially, in one run on the same inputs."""

import itertools
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console
from rich.table import Table

from state import config as configuration
from state import ids
from thousandfold import specs
from thousandfold.bench import baselines, figures, logs, protocol, report
from thousandfold.data import blocks, ml1m, simulator

F32 = npt.NDArray[np.float32]
TARGETS = {"auc": 0.790, "gauc": 0.733}
"""What overall AUC and GAUC of MovieLens-1M must reach."""
CHOICE_SHARE = 0.2
PEERS = ("river", "bias", "fm32")
LIVE, LIVE_PEERS = "_live", ("fm32_live",)
RANKED = ("auc", "gauc")
"""Figures in which the model must be above its peers, overall and in every scenario."""
BETTER: dict[str, report.Better] = {"auc": "higher", "gauc": "higher", "logloss": "lower", "calibration": "higher"}
UNITS = {"auc": "AUC", "gauc": "AUC in a group", "logloss": "nats", "calibration": "predicted / seen"}
GRIDS: dict[str, tuple[Any, ...]] = {
    "model.wide": ("off", "product", "fm"),
    "optimizer.embedding_rate": (0.005, 0.01, 0.02, 0.05),
    "optimizer.dense_rate": (0.00025, 0.0005, 0.001, 0.005, 0.01, 0.02),
    "optimizer.wide_rate": (0.01, 0.02, 0.03, 0.05),
    "meta.inner_rate": (0.02, 0.05, 0.1),
    "meta.weight": (0.25, 0.5, 1.0),
}
"""Settings of the model that `--choose` tries, one after the other, each with the best values of those before it."""
BASELINE_GRIDS: dict[str, tuple[float, ...]] = {
    "quality.river_rate": (0.003, 0.01, 0.03),
    "quality.bias_rate": (0.03, 0.1, 0.3),
    "quality.fm_rate": (0.005, 0.01, 0.02, 0.03, 0.05),
    "quality.fm_live_rate": (0.005, 0.01, 0.02, 0.03, 0.05),
    "quality.bias_tuning_rate": (0.005, 0.02, 0.05),
}
Predictions = dict[str, list[F32]]
Say = Callable[[str], None]


class Progress:
    """A line on standard error that says how far a stage is, at most twice a second."""

    def __init__(self) -> None:
        self._stage, self._began, self._told = "", 0.0, 0.0
        self._live = sys.stderr.isatty()

    def stage(self, name: str) -> protocol.Tell:
        """Begin a stage; the result is told rows done and rows in all."""
        self._stage, self._began = name, time.monotonic()
        self._told = self._began
        return self._tell

    def _tell(self, done: int, whole: int) -> None:
        now = time.monotonic()
        if done < whole and now - self._told < (0.5 if self._live else 15.0):
            return
        self._told = now
        rate = done / max(now - self._began, 1e-9)
        text = f"{self._stage}: {done:,} of {whole:,} rows, {rate:,.0f} rows/s, {(whole - done) / max(rate, 1e-9):.0f} s left"
        print(f"\r\x1b[2K{text}" if self._live else text, file=sys.stderr, end="\n" if not self._live or done >= whole else "")


class Measured(NamedTuple):
    """Predictions (R,) of every model for one objective, one array per seed (one if deterministic), and seconds taken."""

    objective: str
    predictions: Predictions
    seconds: dict[str, float]


def measure(
    config: configuration.Config, inputs: protocol.Inputs, seeds: Sequence[int], progress: Progress | None = None
) -> list[Measured]:
    """All models on the same inputs; the model in the configuration runs once per seed, for all objectives together."""
    progress = progress or Progress()
    quality, name, seconds = config.quality, config.model.name, {}
    passes = []
    began = time.monotonic()
    for seed in seeds:
        seeded = override(config, "learner.seed", seed)
        passes.append(protocol.run(seeded, inputs, progress.stage(f"{name}, seed {seed}")))
    seconds[name] = (time.monotonic() - began) / len(seeds)
    out = []
    for o, objective in enumerate(config.objectives):
        began = time.monotonic()
        found: Predictions = {name: [p.adapted[:, o] for p in passes], "unadapted": [p.unadapted[:, o] for p in passes]}
        found["bias_tuning"] = [baselines.bias_tuning(inputs, o, p.unadapted[:, o], quality.bias_tuning_rate) for p in passes]
        blocked = protocol.blocked(inputs, quality.block_rows)
        found["fm32"] = [baselines.fm32(blocked, o, quality.fm_rate, quality.fm_width, seed) for seed in seeds]
        if not any(inputs.lag):
            found[name + LIVE] = [p.live[:, o] for p in passes]
            found["fm32" + LIVE] = [baselines.fm32(inputs, o, quality.fm_live_rate, quality.fm_width, seed) for seed in seeds]
        found["bias"] = [baselines.bias(inputs, o, quality.bias_rate)]
        seconds["others"] = time.monotonic() - began
        began = time.monotonic()
        found["river"] = [baselines.river(inputs, o, quality.river_rate, progress.stage("river"))]
        seconds["river"] = time.monotonic() - began
        out.append(Measured(objective.name, found, dict(seconds)))
    return out


def rows_of(
    config: configuration.Config,
    inputs: protocol.Inputs,
    measured: Sequence[Measured],
    targets: dict[str, float] | None = None,
    command: str = "",
) -> list[report.Row]:
    """The report: every figure of every model, overall and per scenario, after the burn-in.

    The model passes where it is above all of PEERS in AUC and in GAUC and, overall, at the targets; `MODEL_live` where it is
    above the factorisation machine that learns as often. With several objectives the ids end in `/OBJECTIVE`.
    """
    counted = np.arange(inputs.rows) >= round(config.quality.burn_in * inputs.rows)
    of_row = np.repeat(inputs.scenario, np.diff(inputs.start))
    scenarios = scenarios_of(config, inputs)
    parts = [("", counted), *((f"/{name}", counted & (of_row == code)) for name, code in scenarios)]
    rows = []
    for (o, m), (suffix, chosen) in itertools.product(enumerate(measured), parts):
        label, group = inputs.label[chosen, o], inputs.group[chosen]
        several = f"/{m.objective}" if len(measured) > 1 else ""
        table = {name: [figures.figures(group, label, p[chosen]) for p in runs] for name, runs in m.predictions.items()}
        for (name, runs), figure in itertools.product(table.items(), BETTER):
            peers = {config.model.name: PEERS, config.model.name + LIVE: LIVE_PEERS}.get(name, ()) if figure in RANKED else ()
            peer = _best_peer(table, figure, peers) if peers else None
            target = (targets or {}).get(figure) if name == config.model.name and not suffix else None
            values = [float(getattr(run, figure)) for run in runs]
            line = report.row(
                f"{figure}/{name}{suffix}{several}", values, UNITS[figure], better=BETTER[figure], target=target, peer=peer,
                command=command,
            )  # fmt: skip
            rows.append(line)
    return rows


def _best_peer(table: dict[str, list[figures.Figures]], figure: str, peers: Sequence[str]) -> tuple[str, float]:
    means = {name: float(np.mean([getattr(run, figure) for run in table[name]])) for name in peers}
    best = max(means, key=lambda name: means[name])
    return best, means[best]


def scenarios_of(config: configuration.Config, inputs: protocol.Inputs) -> list[tuple[str, int]]:
    """Scenarios as (name, hash): the configured ones first, then by rows, at most `scenarios.max_shown`."""
    sizes = dict(zip(*(a.tolist() for a in np.unique(inputs.scenario, return_counts=True)), strict=True))
    first = [ids.of(name) for name in config.scenarios.known if ids.of(name) in sizes]
    rest = sorted(set(sizes) - set(first), key=lambda code: -sizes[code])
    return [(inputs.scenarios[code], code) for code in [*first, *rest][: config.scenarios.max_shown]]


def override(config: configuration.Config, key: str, value: Any) -> configuration.Config:
    """The configuration with `section.setting` replaced."""
    section, _, setting = key.partition(".")
    changed = msgspec.structs.replace(getattr(config, section), **{setting: value})
    return msgspec.structs.replace(config, **{section: changed})


def choose(config: configuration.Config, inputs: protocol.Inputs, say: Say = print) -> dict[str, Any]:
    """Settings by the mean of AUC and GAUC of the first objective on the first fifth of the log, of which half is burn-in.

    Model settings one after the other (`GRIDS`), seed 0, from those of the configuration; the baselines' rates by themselves,
    those of the factorisation machine by blocks and live each by its own score, while the model has one set for both.
    """
    part = inputs.head(round(CHOICE_SHARE * inputs.rows))
    counted = np.arange(part.rows) >= part.rows // 2
    label, group = part.label[counted, 0], part.group[counted]

    def judge(key: str, value: Any, score: F32) -> float:
        found = figures.figures(group, label, score[counted])
        say(f"{key} = {value}: AUC {found.auc:.4f}, GAUC {found.gauc:.4f}, logloss {found.logloss:.4f}")
        return found.auc if np.isnan(found.gauc) else (found.auc + found.gauc) / 2

    def attempt(settings: configuration.Config, key: str, value: Any) -> tuple[float, F32]:
        scores = protocol.run(settings, part)
        return judge(key, value, scores.adapted[:, 0]), scores.unadapted[:, 0]

    chosen: dict[str, Any] = {}
    best = attempt(config, "as configured", 0)
    for key, values in GRIDS.items():
        section, _, setting = key.partition(".")
        now = getattr(getattr(config, section), setting)
        tried = {v: attempt(override(config, key, v), key, v) for v in values if v != now} | {now: best}
        chosen[key] = max(tried, key=lambda v: tried[v][0])
        best = tried[chosen[key]]
        config = override(config, key, chosen[key])
    unadapted = best[1]
    blocked = protocol.blocked(part, config.quality.block_rows)
    models: dict[str, Callable[[float], F32]] = {
        "quality.river_rate": lambda rate: baselines.river(part, 0, rate),
        "quality.bias_rate": lambda rate: baselines.bias(part, 0, rate),
        "quality.fm_rate": lambda rate: baselines.fm32(blocked, 0, rate, config.quality.fm_width, 0),
        "quality.fm_live_rate": lambda rate: baselines.fm32(part, 0, rate, config.quality.fm_width, 0),
        "quality.bias_tuning_rate": lambda rate: baselines.bias_tuning(part, 0, unadapted, rate),
    }
    for key, values in BASELINE_GRIDS.items():
        worth = {v: judge(key, v, models[key](v)) for v in values}
        chosen[key] = max(worth, key=lambda v: worth[v])
    return chosen


def written(chosen: dict[str, Any]) -> list[str]:
    """Chosen settings as lines of a configuration file."""
    return [f"{key} = {json.dumps(value)}" for key, value in chosen.items()]


def listed(text: str) -> list[str]:
    """Names between commas, each once, in their order."""
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def lag_of(text: str) -> protocol.Lag:
    """`--lag`: "0", "1000" or "1000rows" (rows), "30s", "10m" or "2h".

    Raises:
        LogError: anything else.
    """
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    try:
        if text[-1:] in units and not text.endswith("rows"):
            lag = protocol.Lag(seconds=float(text[:-1]) * units[text[-1]])
        else:
            lag = protocol.Lag(rows=int(text.removesuffix("rows").strip()))
    except ValueError:
        lag = protocol.Lag(rows=-1)
    if lag.rows < 0 or lag.seconds < 0 or not np.isfinite(lag.seconds):
        raise logs.LogError(f"--lag {text!r}: give rows (1000) or a time (30s, 10m, 2h)")
    return lag


def configured(data: str, spec: pathlib.Path | None) -> configuration.Config:
    """The configuration of `--spec`, or for MovieLens-1M the worked example.

    Raises:
        LogError: other data without a spec.
        ConfigError: the file is no configuration.
    """
    if spec is None and data != "ml1m":
        raise logs.LogError(f"--data {data} needs --spec SPEC.toml, the configuration that declares its features; see examples/")
    return configuration.load(spec or specs.path("ml1m"))


def open_log(
    config: configuration.Config, data: str, actions: pathlib.Path | None, limit: int | None, say: Say = print,
    what: str = "this benchmark",
) -> logs.Log:  # fmt: skip
    """The log that `--data` names: "ml1m", "simulate" or a Parquet file; `limit` keeps the lists of the first rows.

    With `what`, who measures it: objectives of other kinds than binary, or of single scenarios, are refused; "" takes them.

    Raises:
        LogError: the file cannot be measured.
        DataError: MovieLens-1M cannot be had.
    """
    if what:
        logs.binary_only(config, what)
    if data not in {"ml1m", "simulate"}:
        log = logs.read(config, pathlib.Path(data), actions, say)
        return log if limit is None else logs.head(log, limit)
    if actions is not None:
        raise logs.LogError("--actions goes with --data FILE.parquet; ml1m and simulate have their own")
    if data == "ml1m":
        ratings = ml1m.load(say=say)
        rated = not set(ml1m.RATED).isdisjoint(config.action_kinds)
        world, found = ml1m.world(ratings, loved=True, rated=rated), [ml1m.block(ratings, loved=True, rated=rated)]
    else:
        made = simulator.Simulator()
        world, found = made.world, list(_first(made.events(), limit or 300_000))
    log = logs.from_blocks(config, world, found)
    return log if limit is None else logs.head(log, limit)


def _first(events: Iterator[blocks.Block], rows: int) -> Iterator[blocks.Block]:
    held = 0
    for block in events:
        yield block
        held += len(block.item)
        if held >= rows:
            return


def tables(config: configuration.Config, inputs: protocol.Inputs, measured: Sequence[Measured], lag: str) -> Iterator[Table]:
    """One table per objective: a line per model, a column per figure and scenario."""
    rows = {r.id: r for r in rows_of(config, inputs, measured)}
    names = ["", *(f"/{name}" for name, _ in scenarios_of(config, inputs))]
    for m in measured:
        several = f"/{m.objective}" if len(measured) > 1 else ""
        shown = Table(
            title=f"{m.objective}: prequential, label lag {lag}, after {config.quality.burn_in:.0%} of {inputs.rows:,} rows"
        )
        for head in ("model", "AUC", "± se", "GAUC", "logloss", "calibration", *(f"AUC{n}" for n in names[1:])):
            shown.add_column(head, justify="left" if head == "model" else "right")
        for name in m.predictions:
            cells = [rows[f"auc/{name}{several}"]] + [rows[f"{f}/{name}{several}"] for f in ("gauc", "logloss", "calibration")]
            stderr = cells[0].stderr
            values = [_number(r.value) for r in cells]
            more = [_number(rows[f"auc/{name}{n}{several}"].value) for n in names[1:]]
            shown.add_row(name, values[0], "" if stderr is None else f"{stderr:.4f}", *values[1:], *more)
        yield shown


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


app = typer.Typer()


@app.command()
def quality(
    data: Annotated[str, typer.Option(help="ml1m, simulate, or a Parquet file of shown rows")] = "ml1m",
    spec: Annotated[
        pathlib.Path | None, typer.Option(help="the configuration file with the feature spec; ml1m has its own")
    ] = None,
    actions: Annotated[pathlib.Path | None, typer.Option(help="a Parquet file of actions, for --data FILE")] = None,
    lag: Annotated[str, typer.Option(help="when labels are known: after 1000 (rows), or after 30s, 10m, 2h")] = "0",
    seeds: Annotated[int, typer.Option(min=1, max=20, help="runs of each random model")] = 3,
    limit: Annotated[int | None, typer.Option(min=1000, help="only the lists of the first so many rows")] = None,
    choose_settings: Annotated[bool, typer.Option("--choose", help="choose rates on the first 20 % and print them")] = False,
    report_file: Annotated[pathlib.Path | None, typer.Option("--report", help="write the figures as JSON")] = None,
) -> None:
    """AUC, GAUC, logloss and calibration of the model and its baselines, predicted before trained on, in order of time."""
    console = Console()
    config = configured(data, spec)
    chosen_lag, progress = lag_of(lag), Progress()
    log = open_log(config, data, actions, limit)
    inputs = protocol.prepare(config, log, chosen_lag, progress.stage("features"))
    if choose_settings:
        found = choose(config, inputs)
        console.print("\n".join(["", "# chosen on the first 20 %", *written(found)]))
        return
    measured = measure(config, inputs, range(seeds), progress)
    command = report.command_line()
    rows = rows_of(config, inputs, measured, TARGETS if data == "ml1m" and limit is None else None, command)
    for table in tables(config, inputs, measured, lag):
        console.print(table)
    console.print(report.table([r for r in rows if r.passed is not None], "targets"))
    for name, value in measured[0].seconds.items():
        console.print(f"{name}: {value:.0f} s a pass, {inputs.rows / max(value, 1e-9):,.0f} rows/s")
    if report_file is not None:
        report.write(report_file, rows)
        console.print(f"written: {report_file}")
