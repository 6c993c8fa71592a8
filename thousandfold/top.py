"""The live table of any running deployment, from the Prometheus endpoints of its processes."""

import pathlib
import time
from typing import Annotated
from urllib.parse import urlsplit

import typer
from rich.console import Console
from rich.live import Live

from state import config as configuration
from state.config import Config, Refused
from thousandfold import live

REFRESH_S = 1.0

app = typer.Typer()


class NothingAnswers(Refused, RuntimeError):
    """No process of the deployment answered; the message says where it was looked for."""


def endpoints(config: Config, extra: list[str]) -> dict[str, str]:
    """Where the metrics are: those of the configuration on this machine, or the URLs given instead."""
    if extra:
        return {urlsplit(url).netloc: url for url in extra}
    found = {
        "streams": config.streams.metrics_port,
        "learner": config.learner.metrics_port,
        "serving": config.serving.port,
    }
    return {name: f"http://127.0.0.1:{port}/metrics" for name, port in found.items() if port}


@app.command()
def top(
    config: Annotated[pathlib.Path, typer.Option(help="the configuration of the deployment")] = pathlib.Path("thousandfold.toml"),
    url: Annotated[list[str] | None, typer.Option(help="a metrics URL; repeat it for several processes or machines")] = None,
    once: Annotated[bool, typer.Option("--once", help="print one table and leave")] = False,
) -> None:
    """Show rows, rates and quality per scenario, lag, model age and serving, once a second until Ctrl-C."""
    settings = configuration.load(config)
    where = endpoints(settings, url or [])
    console = Console()
    reading = look(settings, where, None)
    if len(reading.unreachable) == len(where):
        raise NothingAnswers(f"no answer from {', '.join(where.values())}; start the processes, or give their --url")
    if once:
        time.sleep(REFRESH_S)
        console.print(live.render(look(settings, where, reading), title(settings)))
        return
    try:
        with Live(console=console, auto_refresh=False) as screen:
            while True:
                screen.update(live.render(reading, title(settings)), refresh=True)
                time.sleep(REFRESH_S)
                reading = look(settings, where, reading)
    except KeyboardInterrupt:
        return


def look(config: Config, where: dict[str, str], before: live.Reading | None) -> live.Reading:
    """One reading of every endpoint."""
    samples, silent = live.scrape(where)
    return live.read(samples, silent, time.monotonic(), time.time(), config.objectives[0].name, config.scenarios.known, before)


def title(config: Config) -> str:
    """What stands above the table."""
    return f"Thousandfold at {config.kafka.bootstrap}, objective {config.objectives[0].name}"
