"""From the snapshots of one configuration to the first one of another: what `migrate` and `transfer --from` have in common."""

import pathlib
from typing import Any

import numpy as np
import numpy.typing as npt

from learner import publishing, rehearsal
from learner.loop import Loop, layout_of
from state import disk_snapshots, snapshots
from state.config import Config, ConfigError
from state.snapshots import Manifest

Arrays = dict[str, npt.NDArray[Any]]


def opened(old: Config, source: pathlib.Path, into: pathlib.Path) -> tuple[Manifest, Arrays]:
    """The newest intact snapshot of a folder, which the old configuration made, with the arrays of both parts.

    Raises:
        ConfigError: there is no snapshot, it is of another configuration, or `into` has snapshots.
    """
    manifest = disk_snapshots.newest_intact(source)
    if manifest is None:
        raise ConfigError(f"--from {source}: there is no intact snapshot; name the folder of snapshot.directory")
    if (manifest.model, manifest.spec) != (old.model.name, layout_of(old).spec):
        raise ConfigError(f"--from {source}: the snapshot was made with another model or features than --config says")
    if disk_snapshots.versions(into):
        raise ConfigError(f"--into {into}: has snapshots already; name a new folder")
    every = (snapshots.SERVING, snapshots.TRAINING)
    return manifest, {name: array for part in every for name, array in disk_snapshots.read(source, manifest, part).items()}


def blank(new: Config) -> Loop:
    """A learner of the new configuration that has learned nothing and is connected to nothing."""
    publisher = publishing.Publisher(rehearsal.MemoryWriter(), lambda _: None, new.snapshot)
    return Loop(new, rehearsal.MemorySource(), rehearsal.MemoryLog(), publisher)


def begun(new: Config, manifest: Manifest) -> Manifest:
    """The manifest of the new configuration's first snapshot: it comes after the old one, and its topics begin at the start."""
    return Manifest(
        version="", directory="", files={}, step=0, created_ms=manifest.created_ms + 1, spec=layout_of(new).spec,
        model=new.model.name, offsets=(), trained_rows=manifest.trained_rows, seed=new.learner.seed, threads=new.learner.threads,
        code=manifest.code,
    )  # fmt: skip


def group(arrays: Arrays, name: str) -> Arrays:
    """The arrays `name/...` of a snapshot, without that."""
    return {key.removeprefix(f"{name}/"): np.asarray(array) for key, array in arrays.items() if key.startswith(f"{name}/")}
