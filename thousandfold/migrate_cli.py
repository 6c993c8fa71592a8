"""`thousandfold migrate`: models of one scenario each become those scenarios' own experts in one cross-domain model."""

import pathlib
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import msgspec
import typer

from models import donors, migration
from state import config as configuration
from state import disk_snapshots
from state.config import ConfigError
from state.snapshots import Manifest
from thousandfold import conversion

app = typer.Typer(help="Load models of one scenario each as those scenarios' own experts, without loss.")


class Source(NamedTuple):
    """A model to take over: the configuration that it was trained with, its snapshots, and the scenario that it served."""

    settings: configuration.Config
    folder: pathlib.Path
    scenario: str


@app.command()
def migrate(
    source: Annotated[
        list[pathlib.Path], typer.Option("--from", help="folder with the snapshots of an old model; repeat for every model")
    ],
    config: Annotated[
        list[pathlib.Path],
        typer.Option("--config", help="the configuration that it was trained with; one for each --from, or one for all"),
    ],
    to_config: Annotated[pathlib.Path, typer.Option("--to-config", help='the new configuration, with model.name = "trs"')],
    scenario: Annotated[list[str], typer.Option(help="name of the scenario that it served; one for each --from")],
    into: Annotated[pathlib.Path, typer.Option(help="folder for the new snapshot, without any so far")],
) -> None:
    """Write a snapshot of the new configuration in which every scenario is predicted as its old model predicts it."""
    if len(scenario) != len(source) or len(config) not in {1, len(source)}:
        raise ConfigError(
            f"--from is given {len(source)} times, --scenario {len(scenario)} and --config {len(config)} times; "
            "give a --scenario for each --from, and a --config for each or one for all"
        )
    olds = [configuration.load(path) for path in config] * (len(source) if len(config) == 1 else 1)
    given = [Source(*parts) for parts in zip(olds, source, scenario, strict=True)]
    written = write(given, configuration.load(to_config), into)
    served = ", ".join(scenario) + (" is" if len(scenario) == 1 else " are")
    print(f"{into / written.version}: {served} predicted as before; put snapshot.directory there and start the learner")
    print("it goes on where the old one stopped" if written.offsets else "it reads its topics from the beginning")


def write(given: Sequence[Source], new: configuration.Config, into: pathlib.Path) -> Manifest:
    """Migrate the newest intact snapshots; that of one model goes on at its offsets if both read the same episodes.

    Raises:
        ConfigError: there is no snapshot, one is of another configuration, `into` has snapshots, or they do not fit.
    """
    found = [conversion.opened(source.settings, source.folder, into) for source in given]
    loaded = [donors.load(s.settings, arrays, s.scenario) for s, (_, arrays) in zip(given, found, strict=True)]
    moved = migration.migrate(loaded, new)
    latest, arrays = max(found, key=lambda part: part[0].created_ms)
    loop, made = conversion.blank(new), conversion.begun(new, latest)
    loop.trainer.load(loop.trainer.arrays() | moved)
    if len(given) == 1 and made.spec == latest.spec and new.topics == given[0].settings.topics:
        loop.seen.load(conversion.group(arrays, "seen"))
        made = msgspec.structs.replace(
            made, offsets=latest.offsets, step=latest.step, sequence=latest.sequence, skipped=latest.skipped
        )
    made = msgspec.structs.replace(made, trained_rows=sum(manifest.trained_rows for manifest, _ in found))
    return disk_snapshots.write(into, made, loop.parts(), new.snapshot.keep)
