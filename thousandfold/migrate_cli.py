"""`thousandfold migrate`: a model of one scenario becomes that scenario's own expert in a cross-domain model."""

import pathlib
from typing import Annotated

import msgspec
import typer

from learner import publishing, rehearsal
from learner.loop import Loop, layout_of
from models import migration
from state import config as configuration
from state import disk_snapshots, snapshots
from state.config import ConfigError
from state.snapshots import Manifest

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
    manifest = disk_snapshots.newest_intact(source)
    if manifest is None:
        raise ConfigError(f"--from {source}: there is no intact snapshot; name the folder of snapshot.directory")
    if (manifest.model, manifest.spec) != (old.model.name, layout_of(old).spec):
        raise ConfigError(f"--from {source}: the snapshot was made with another model or features than --config says")
    if disk_snapshots.versions(into):
        raise ConfigError(f"--into {into}: has snapshots already; name a new folder")
    every = (snapshots.SERVING, snapshots.TRAINING)
    arrays = {name: array for part in every for name, array in disk_snapshots.read(source, manifest, part).items()}
    moved = migration.migrate(old, arrays, new, scenario)
    publisher = publishing.Publisher(rehearsal.MemoryWriter(), lambda _: None, new.snapshot)
    loop = Loop(new, rehearsal.MemorySource(), rehearsal.MemoryLog(), publisher)
    loop.trainer.load(loop.trainer.arrays() | moved)
    made = Manifest(
        version="", directory="", files={}, step=0, created_ms=manifest.created_ms + 1, spec=layout_of(new).spec,
        model=new.model.name, offsets=(), trained_rows=manifest.trained_rows, seed=new.learner.seed, threads=new.learner.threads,
        code=manifest.code,
    )  # fmt: skip
    if made.spec == manifest.spec and new.topics == old.topics:
        loop.seen.load({name.removeprefix("seen/"): array for name, array in arrays.items() if name.startswith("seen/")})
        made = msgspec.structs.replace(
            made, offsets=manifest.offsets, step=manifest.step, sequence=manifest.sequence, skipped=manifest.skipped
        )
    return disk_snapshots.write(into, made, loop.parts(), new.snapshot.keep)
