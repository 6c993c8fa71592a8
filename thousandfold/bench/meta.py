"""`thousandfold bench meta`: what each meta-learning algorithm gains over no adaptation, over a bias, and for whom."""

import pathlib
import statistics
import sys
import tomllib
from collections.abc import Iterator, Mapping
from typing import Annotated

import msgspec
import tomli_w
import typer
from rich.console import Console
from rich.table import Table

from state import config as configuration
from thousandfold import specs
from thousandfold.bench import gains, logs, protocol, quality, report

FEATURES = {"ids": "ml1m_ids", "rich": "ml1m"}
"""Worked examples: what users and items are, and with it what happened to them (the features of the real-time counters)."""
WIDTH = 150
Chosen = dict[str, dict[str, gains.Settings]]


def read(file: pathlib.Path) -> Chosen:
    """What `--choose` wrote: by features and variant, settings of [meta].

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        return msgspec.convert(tomllib.loads(file.read_text(encoding="utf-8")), Chosen)
    except (OSError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise configuration.ConfigError(f"{file}: {error}; thousandfold bench meta --choose --settings FILE writes it") from error


def tables(features: str, table: gains.Table, runs: Mapping[str, gains.Run], where: gains.Parts) -> Iterator[Table]:
    """What each variant says overall, then its AUC over no adaptation by support, by size of the task and by scenario."""
    rows = int(where.whole.sum())
    shown = Table(title=f"{features}: prequential, {rows:,} rows after the burn-in; gain: over its own plain tower")
    for head in ("variant", "AUC", "± se", "GAUC", "AUC over none", "GAUC over none", "AUC gain", "GAUC gain", "rows/s"):
        shown.add_column(head, justify="left" if head == "variant" else "right")
    for variant, run in runs.items():
        told = table[variant, ""]
        auc = told.of("auc")
        error = f"{statistics.stdev(auc) / len(auc) ** 0.5:.4f}" if len(auc) > 1 else ""
        over = [f"{statistics.fmean(f):+.4f}" for f in (*map(told.over_none, gains.FIGURES), *map(told.gain, gains.FIGURES))]
        rate = len(run.adapted[0]) / max(run.seconds, 1e-9)
        shown.add_row(
            variant, f"{statistics.fmean(auc):.4f}", error, f"{statistics.fmean(told.of('gauc')):.4f}", *over, f"{rate:,.0f}"
        )  # fmt: skip
    yield shown
    for title, by in (
        ("support rows", where.support),
        ("tenth of the tasks by size", where.decile),
        ("scenario", where.scenario),
    ):
        yield _by(f"{features}: AUC over none, by {title}", by, table, runs)


def _by(title: str, where: Mapping[str, gains.Bools], table: gains.Table, runs: Mapping[str, gains.Run]) -> Table:
    shown = Table(title=title)
    shown.add_column("variant")
    for name, rows in where.items():
        shown.add_column(f"{name.rpartition('/')[2]}\n{rows.sum():,} rows", justify="right")
    for variant in runs:
        if variant != gains.OFF:
            values = [statistics.fmean(table[variant, name].over_none("auc")) for name in where]
            shown.add_row(variant, *("–" if v != v else f"{v:+.4f}" for v in values))  # noqa: PLR0124  (NaN: no such figure)
    return shown


app = typer.Typer()


@app.command()
def meta(
    features: Annotated[str, typer.Option(help="ids, rich, or both after one another: MovieLens-1M")] = "ids,rich",
    data: Annotated[str, typer.Option(help="ml1m, simulate, or a Parquet file of shown rows, with --spec")] = "ml1m",
    spec: Annotated[pathlib.Path | None, typer.Option(help="a configuration of your own in place of --features")] = None,
    algorithms: Annotated[str, typer.Option(help="comma-separated; baselines always run")] = ",".join(gains.VARIANTS),
    lag: Annotated[str, typer.Option(help="when labels are known: after 1000 (rows), or after 30s, 10m, 2h")] = "0",
    seeds: Annotated[int, typer.Option(min=1, max=20, help="runs of each variant")] = 3,
    limit: Annotated[int | None, typer.Option(min=1000, help="only the lists of the first so many rows")] = None,
    choose: Annotated[bool, typer.Option("--choose", help="choose settings on the first 20 % and write them")] = False,
    settings: Annotated[pathlib.Path | None, typer.Option(help="settings that --choose wrote, or where it shall write")] = None,
    report_file: Annotated[pathlib.Path | None, typer.Option("--report", help="write the figures as JSON")] = None,
) -> None:
    """AUC and GAUC that adaptation gains, for every algorithm, by support, size of the task and scenario, against baselines."""
    progress = quality.Progress()
    # A file or a pipe has no width of its own, and rich would cut the numbers off.
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    if spec is None and data != "ml1m":
        raise logs.LogError(f"--data {data} needs --spec SPEC.toml, the configuration that declares its features; see examples/")
    files = {spec.stem: spec} if spec is not None else {name: specs.path(example(name)) for name in features.split(",")}
    variants = algorithms.split(",")
    chosen: Chosen = read(settings) if settings is not None and not choose else {}
    rows: list[report.Row] = []
    for name, file in files.items():
        config = configuration.load(file)
        gains.check(config, variants, chosen.get(name, {}))
        log = quality.open_log(config, data, None, limit)
        inputs = protocol.prepare(config, log, quality.lag_of(lag), progress.stage(f"{name}: features"))
        if choose:
            chosen[name] = gains.choose(config, inputs, variants, console.print)
            continue
        own = chosen.get(name, {})
        runs = gains.measure(config, inputs, variants, own, range(seeds), progress)
        where = gains.parts(config, inputs)
        table = gains.tell(inputs, runs, where)
        for shown in tables(name, table, runs, where):
            console.print(shown)
        judged = str(own.get("judged", {}).get("variant", config.meta.algorithm))
        targets = gains.TARGETS if (name, data, limit) == ("ids", "ml1m", None) else {}
        rows += gains.rows_of(name, table, runs, where, targets, judged, report.command_line())
    if choose:
        text = tomli_w.dumps(chosen)
        console.print(f"\n# chosen on the first 20 %\n{text}", markup=False)
        if settings is not None:
            settings.write_text(text, encoding="utf-8")
        return
    console.print(report.table([r for r in rows if r.passed is not None], "targets"))
    if report_file is not None:
        report.write(report_file, rows)
        console.print(f"written: {report_file}")


def example(name: str) -> str:
    """The worked example of `--features`.

    Raises:
        ConfigError: there is none.
    """
    if name not in FEATURES:
        raise configuration.ConfigError(f'--features: no "{name}"; there are {", ".join(FEATURES)}')
    return FEATURES[name]
