"""`thousandfold topics`: create the topics of a configuration, or say how they differ."""

import pathlib
from typing import Annotated

import typer

from state import config as configuration
from state import kafka_topics

app = typer.Typer(help="Create and check the topics.", no_args_is_help=True)
File = Annotated[pathlib.Path, typer.Option("--config", help="the configuration file")]
DEFAULT_FILE = pathlib.Path("thousandfold.toml")


@app.command()
def create(
    config: File = DEFAULT_FILE,
    keep_for_ever: Annotated[bool, typer.Option("--keep-for-ever", help="no retention, as the embedded broker needs")] = False,
) -> None:
    """Create what is missing and raise limits that are too small; nothing is deleted or repartitioned."""
    loaded = configuration.load(config)
    done = kafka_topics.create(loaded, keep_for_ever=keep_for_ever)
    print("\n".join(done) or f"all {len(kafka_topics.table(loaded))} topics are as configured")


@app.command()
def check(config: File = DEFAULT_FILE) -> None:
    """Compare the brokers' topics with the configuration; exit 2 when they differ."""
    loaded = configuration.load(config)
    kafka_topics.require(loaded)
    print(f"all {len(kafka_topics.table(loaded))} topics are as configured at {loaded.kafka.bootstrap}")
