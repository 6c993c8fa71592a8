"""The command: which log and features, which algorithms with which settings, and where the results go."""

import functools
import pathlib
import sys
from typing import Annotated, NamedTuple

import tomli_w
import typer
from rich.console import Console

from state import config as configuration
from thousandfold import specs
from thousandfold.bench import chosen as chosen_file
from thousandfold.bench import grids, logs, pages, protocol, quality, report
from thousandfold.bench.meta import choice, gains, order, planted, plots, study, tables
from thousandfold.bench.meta.parts import parts

FEATURES = {"rich": "ml1m", "ids": "ml1m_ids"}
"""Worked examples: what users and items are, and with it what happened to them (the features of the real-time counters)."""
WIDTH = 200
Chosen = dict[str, dict[str, gains.Settings]]


def read(file: pathlib.Path) -> Chosen:
    """What `--choose` wrote: by features and variant, settings of [meta].

    Raises:
        ConfigError: the file cannot be read.
    """
    return chosen_file.read(file, Chosen, "meta")


def example(name: str) -> str:
    """The worked example of `--features`.

    Raises:
        ConfigError: there is none.
    """
    if name not in FEATURES:
        raise configuration.ConfigError(f'--features: no "{name}"; there are {", ".join(FEATURES)}')
    return FEATURES[name]


class Source(NamedTuple):
    """Where a log comes from, how much of it is read and how late its labels are."""

    data: str
    limit: int | None
    lag: protocol.Lag

    def read(self, config: configuration.Config) -> logs.Log:
        """The log, for one configuration, whose objectives may be of single scenarios.

        Raises:
            LogError: an objective is not binary, or the file cannot be measured.
        """
        logs.binary_only(config, "bench meta", everywhere=False)
        return quality.open_log(config, self.data, None, self.limit, what="")

    def prepare(self, config: configuration.Config, log: logs.Log, tell: protocol.Tell) -> protocol.Inputs:
        """What models read."""
        return protocol.prepare(config, log, self.lag, tell)


app = typer.Typer()


@app.command()
def meta(
    features: Annotated[str, typer.Option(help="ids, rich (with the real-time counters), or both: MovieLens-1M")] = "rich,ids",
    data: Annotated[str, typer.Option(help="ml1m, planted (known truth), or, with --spec, simulate or a Parquet file")] = "ml1m",
    spec: Annotated[pathlib.Path | None, typer.Option(help="a configuration of your own in place of --features")] = None,
    algorithms: Annotated[str, typer.Option(help="comma-separated; baselines always run")] = ",".join(gains.VARIANTS),
    lag: Annotated[str, typer.Option(help="when labels are known: after 1000 (rows), or after 30s, 10m, 2h")] = "0",
    seeds: Annotated[int, typer.Option(min=1, max=20, help=f"runs of {', '.join(gains.MAIN)}, --judged")] = 3,
    seeds_of_others: Annotated[int | None, typer.Option(min=1, max=20, help="runs of the other algorithms")] = None,
    limit: Annotated[int | None, typer.Option(min=1000, help="only the lists of the first so many rows")] = None,
    choose: Annotated[bool, typer.Option("--choose", help="choose settings on the first 20 % and write them")] = False,
    choice_rows: Annotated[int | None, typer.Option(min=1000, help="--choose reads no more rows than this")] = None,
    judged: Annotated[str | None, typer.Option(help="the algorithm that bars are about; else the configured one")] = None,
    keys: Annotated[str, typer.Option(help="settings that --choose searches")] = ",".join(choice.GRID),
    settings: Annotated[pathlib.Path | None, typer.Option(help="settings that --choose wrote, or where it shall write")] = None,
    report_file: Annotated[pathlib.Path | None, typer.Option("--report", help="write the figures as JSON")] = None,
    out: Annotated[pathlib.Path | None, typer.Option(help="folder for tables, plots, the page and finished passes")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="take finished passes from --out, if settings and data agree")] = False,
    drawn_order: Annotated[bool, typer.Option("--drawn-order", help="each task's rows in a drawn order, learned anew")] = False,
) -> None:
    """AUC and GAUC that adaptation gains, for every algorithm, by support, size of the task and scenario, against baselines."""
    # A file or a pipe has no width of its own, and rich would cut the numbers off.
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    if data == planted.PLANTED and not choose:
        _planted(console, limit or planted.ROWS, seeds, report_file, out, gains.Store(_passes(out), resume))
        return
    if spec is None and data != "ml1m":
        raise logs.LogError(f"--data {data} needs --spec SPEC.toml, the configuration that declares its features; see examples/")
    if resume and out is None:
        raise logs.LogError("--resume needs --out DIR, the folder of the passes that are finished")
    if out is not None and not choose:
        pages.begin(out)
    names = sorted(quality.listed(features), reverse=True) if spec is None else []
    files = {spec.stem: spec} if spec is not None else {name: specs.path(example(name)) for name in names}
    variants, progress = quality.listed(algorithms), quality.Progress()
    source = Source(data, limit, quality.lag_of(lag))
    chosen: Chosen = read(settings) if settings is not None and (settings.exists() or not choose) else {}
    configs = {name: configuration.load(file) for name, file in files.items()}
    for name, config in configs.items():
        gains.check(config, [*variants, *([judged] if judged else [])], chosen.get(name, {}))
    if choose:
        say = functools.partial(console.print, soft_wrap=True, highlight=False)
        for name, config in configs.items():
            part = choice.first(source.read(config), choice_rows)
            inputs = source.prepare(config, part, progress.stage(f"{name}: features"))
            chosen[name] = choice.choose(config, inputs, variants, chosen.get(name, {}), quality.listed(keys), say)
        _tell_choice(console, chosen, settings)
        return
    main = {*gains.MAIN, judged}
    seeds_of = {v: seeds if v in main else seeds_of_others or seeds for v in gains.VARIANTS}
    store = gains.Store(_passes(out), resume)
    made, real_time, orders = list[study.Study](), None, dict[str, order.Losses]()
    for name, config in configs.items():
        inputs = source.prepare(config, source.read(config), progress.stage(f"{name}: features"))
        inputs = order.moved(inputs, 0) if drawn_order else inputs
        runs = gains.measure(config, inputs, variants, chosen.get(name, {}), seeds_of, progress, store)
        if name == "ids" and real_time is not None:
            runs = {gains.OFF: runs.pop(gains.OFF), gains.REAL_TIME: real_time, **runs}
        real_time = runs[gains.OFF]
        where = parts(config, inputs)
        orders[name] = order.measure(inputs, runs[gains.OFF].adapted, gains.bias_rate(config, chosen.get(name, {})), where)
        made.append(study.Study(name, runs, where, study.tell(inputs, runs, where), judged or config.meta.algorithm))
    _show(console, made, orders, (data, limit, drawn_order) == ("ml1m", None, False), report_file, out)


def _passes(out: pathlib.Path | None) -> pathlib.Path | None:
    return None if out is None else out / "passes"


def _tell_choice(console: Console, chosen: Chosen, settings: pathlib.Path | None) -> None:
    text = tomli_w.dumps(chosen)
    console.print(f"\n# chosen on the first 20 %\n{text}", markup=False)
    if settings is not None:
        settings.write_text(text, encoding="utf-8")


def _planted(
    console: Console, rows: int, seeds: int, report_file: pathlib.Path | None, out: pathlib.Path | None, store: gains.Store
) -> None:  # fmt: skip
    command, progress = report.command_line(), quality.Progress()
    made = [planted.measure(name, rows, seeds, progress, store) for name in planted.WORLDS]
    told = planted.rows_of(made, command)
    shown = [tables.verdicts([r for r in told if r.target is not None]), *(planted.table(world) for world in made)]
    drawn = {world.name: planted.picture(world) for world in made} if out is not None else {}
    _write(console, told, shown, drawn, report_file, out)


def _show(
    console: Console, made: list[study.Study], orders: dict[str, order.Losses], whole: bool,
    report_file: pathlib.Path | None, out: pathlib.Path | None,
) -> None:  # fmt: skip
    command = report.command_line()
    bars = [row for one in made if whole for row in study.judge(one, command)]
    rows = [*bars, *(row for one in made for row in study.rows_of(one, command))]
    rows += [row for name, found in orders.items() for row in order.rows_of(name, found, command)]
    shown = list[grids.Grid]()
    for one in made:
        shown += [tables.overall(one), *tables.by_part(one), order.table(one.features, orders[one.features])]
    if bars:
        shown = [tables.verdicts(bars), *shown]
    drawn = {name: body for one in made for name, body in plots.pictures(one).items()} if out is not None else {}
    _write(console, rows, shown, drawn, report_file, out)


def _write(
    console: Console, rows: list[report.Row], shown: list[grids.Grid], drawn: dict[str, bytes],
    report_file: pathlib.Path | None, out: pathlib.Path | None,
) -> None:  # fmt: skip
    for grid in shown:
        console.print(grids.terminal(grid))
    if report_file is not None:
        report.write(report_file, rows)
        console.print(f"written: {report_file}")
    if out is not None:
        console.print(f"written: {pages.write(out, 'What adaptation gains', report.command_line(), shown, drawn, [])}")
