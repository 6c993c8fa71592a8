"""`thousandfold migrate`: a model of one scenario becomes that scenario's own expert in a cross-domain model."""

import pathlib
from typing import Annotated

import msgspec
import typer

from models import migration
from state import config as configuration
from state import disk_snapshots
from state.snapshots import Manifest
from thousandfold import conversion

app = typer.Typer(help="Load a model of one scenario as that scenario's own expert, without loss.")


@app.command()
def migrate(
    source: Annotated[pathlib.Path, typer.Option("--from", help="folder with the snapshots of the old model")],
    config: Annotated[pathlib.Path, typer.Option("--config", help="the configuration that the old model was trained with")],
    to_config: Annotated[pathlib.Path, typer.Option("--to-config", help='the new configuration, with model.name = "trs"')],
    scenario: Annotated[str, typer.Option(help="name of the scenario that the old model served")],
    into: Annotated[pathlib.Path, typer.Option(help="folder for the new snapshot, without any so far")],
) -> None:
    """Write a snapshot of the new configuration in which the scenario is predicted as the old model predicts it."""
    old, new = configuration.load(config), configuration.load(to_config)
    written = write(old, source, new, scenario, into)
    print(f"{into / written.version}: {scenario} is predicted as before; put snapshot.directory there and start the learner")
    print("it goes on where the old one stopped" if written.offsets else "it reads its topics from the beginning")


def write(
    old: configuration.Config, source: pathlib.Path, new: configuration.Config, scenario: str, into: pathlib.Path
) -> Manifest:
    """Migrate the newest intact snapshot; the new one goes on at its offsets if both read the same episodes.

    Raises:
        ConfigError: there is no snapshot, it is of another configuration, `into` has snapshots, or the two do not fit.
    """
    manifest, arrays = conversion.opened(old, source, into)
    moved = migration.migrate(old, arrays, new, scenario)
    loop, made = conversion.blank(new), conversion.begun(new, manifest)
    loop.trainer.load(loop.trainer.arrays() | moved)
    if made.spec == manifest.spec and new.topics == old.topics:
        loop.seen.load(conversion.group(arrays, "seen"))
        made = msgspec.structs.replace(
            made, offsets=manifest.offsets, step=manifest.step, sequence=manifest.sequence, skipped=manifest.skipped
        )
    return disk_snapshots.write(into, made, loop.parts(), new.snapshot.keep)
