"""`thousandfold produce`: send a data set or simulated traffic to the topics of a configuration."""

import pathlib
import sys
from typing import Annotated, Literal

import msgspec
import typer

from state import config as configuration
from state import kafka_topics
from thousandfold import produce
from thousandfold.data import blocks, simulator

UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0}
ConfigOption = Annotated[pathlib.Path, typer.Option("--config", help="the configuration file")]
SpeedOption = Annotated[
    float | None, typer.Option(min=1e-9, help="divide the time between lists by this; delays stay as they are")
]
RateOption = Annotated[float | None, typer.Option(min=1e-3, help="rows (items shown) per second, evenly; default 1,000")]
ForOption = Annotated[str | None, typer.Option("--for", help="stop after this time: 90s, 10m, 2h")]
LimitOption = Annotated[int | None, typer.Option(min=1, help="stop after this many shown lists and their actions")]
FormatOption = Annotated[Literal["json", "msgpack"], typer.Option("--format", help="of the messages")]
SeedOption = Annotated[int, typer.Option(help="of delays and of the simulated world")]
MedianOption = Annotated[float | None, typer.Option(min=0, help="median seconds from an impression to its action")]
P90Option = Annotated[float | None, typer.Option(min=0, help="90th percentile of the same; default ten times the median")]
app = typer.Typer(no_args_is_help=True, help="Send a data set or simulated traffic to the topics.")


def seconds_of(text: str) -> float:
    """A time such as 90s, 10m or 2h, in seconds.

    Raises:
        Refused: it is none.
    """
    try:
        value = float(text[:-1]) * UNITS_S[text[-1:]] if text[-1:] in UNITS_S else float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise configuration.Refused(f"--for {text!r}: give a time such as 90s, 10m or 2h")
    return value


def _run(
    source: produce.Source,
    config_file: pathlib.Path,
    speed: float | None,
    rate: float | None,
    seconds: str | None,
    limit: int | None,
    form: produce.Format,
    seed: int,
    delay: tuple[float | None, float | None],
    settings: simulator.Settings | None,
) -> None:
    if speed is not None and rate is not None:
        raise configuration.Refused("give --speed or --rate, not both")
    median, p90 = delay
    chosen = None if median is None else blocks.Delay(median, 10 * median if p90 is None else p90)
    if chosen is not None and chosen.p90_s < chosen.median_s:
        raise configuration.Refused(f"--delay-p90 {chosen.p90_s:g} is below --delay-median {chosen.median_s:g}")
    config = configuration.load(config_file)
    duration = None if seconds is None else seconds_of(seconds)
    kafka_topics.require(config)
    summary = produce.produce(
        config,
        source,
        produce.Pace(speed=speed) if speed is not None else produce.Pace(rate=rate or 1_000.0),
        stop=produce.until_signalled(),
        seconds=duration,
        limit=limit,
        form=form,
        seed=seed,
        delay=chosen,
        settings=settings,
        progress=_show,
        say=lambda text: print(text, file=sys.stderr),
    )
    print(msgspec.json.encode(summary).decode())
    if summary.failed:
        raise typer.Exit(1)


def _show(summary: produce.Summary, behind_s: float) -> None:
    late = f", {behind_s:.1f} s behind" if behind_s > 1 else ""
    rate = summary.rows / max(summary.seconds, 1e-9)
    sent = f"{summary.lists:,} lists, {summary.rows:,} rows ({rate:,.0f}/s), {summary.actions:,} actions"
    live = sys.stderr.isatty()
    before, after = ("\r\x1b[2K", "") if live else ("", "\n")
    print(f"{before}{summary.seconds:.0f} s: {sent}{late}", file=sys.stderr, end=after, flush=True)


@app.callback()
def front() -> None:
    """Events are re-stamped onto now; Ctrl-C or SIGTERM delivers what is in flight and prints the summary."""


@app.command("ml1m")
def produce_ml1m(
    config: ConfigOption,
    speed: SpeedOption = None,
    rate: RateOption = None,
    seconds: ForOption = None,
    limit: LimitOption = None,
    form: FormatOption = "json",
    seed: SeedOption = 0,
    delay_median: MedianOption = None,
    delay_p90: P90Option = None,
) -> None:
    """MovieLens-1M: a user's ratings of one second are one shown list, a rating above 3 is a click."""
    _run("ml1m", config, speed, rate, seconds, limit, form, seed, (delay_median, delay_p90), None)


@app.command("simulate")
def produce_simulated(
    config: ConfigOption,
    speed: SpeedOption = None,
    rate: RateOption = None,
    seconds: ForOption = None,
    limit: LimitOption = None,
    form: FormatOption = "json",
    seed: SeedOption = 0,
    delay_median: MedianOption = None,
    delay_p90: P90Option = None,
    settings: Annotated[
        pathlib.Path | None, typer.Option(help="a TOML file with settings of the simulator (thousandfold/data/simulator.py)")
    ] = None,
) -> None:
    """Simulated traffic: sessions, position bias, drift, new users and items, duplicates, disorder."""
    _run("simulate", config, speed, rate, seconds, limit, form, seed, (delay_median, delay_p90), _settings(settings))


def _settings(file: pathlib.Path | None) -> simulator.Settings | None:
    if file is None:
        return None
    try:
        return msgspec.toml.decode(file.read_bytes(), type=simulator.Settings)
    except (OSError, msgspec.MsgspecError) as error:
        raise configuration.Refused(f"{file}: {error}") from error
