"""The shelf that the learner writes: a folder of snapshots, of which only the `serving` part is read."""

import pathlib
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from models.base import Known, Support
from serving.live import Model, Scores
from serving.watching import Entry, Refused
from state import config as configuration
from state import disk_snapshots, ids, meta_supports, snapshots, spec

Build = Callable[[configuration.Config, Mapping[str, npt.NDArray[Any]]], Scores]


class DiskShelf:
    """Snapshots of one configuration. `build` turns the arrays of a serving part into something that scores."""

    def __init__(self, config: configuration.Config, build: Build) -> None:
        self._config = config
        self._build = build
        self._spec = spec.fingerprint(config.features, config.action_kinds)
        self._one = threading.Lock()

    def entries(self) -> Sequence[Entry]:
        """The names in the folder, newest first; nothing is opened."""
        return [_entry(name) for name in disk_snapshots.versions(self._config.snapshot.directory)]

    def load(self, entry: Entry) -> Model:
        """Read and check a snapshot's serving part and build its scorer. See `Shelf.load` for what it raises."""
        folder = self._config.snapshot.directory
        with self._one:
            try:
                manifest = disk_snapshots.manifest_of(folder, entry.version)
                self._check(manifest)
                arrays = disk_snapshots.read(folder, manifest, snapshots.SERVING)
            except snapshots.Damaged as error:
                if not (pathlib.Path(folder) / entry.version).exists():
                    raise FileNotFoundError(entry.version) from error
                raise Refused(str(error)) from error
            try:
                scorer = self._build(self._config, arrays)
                self._try(scorer)
            except (KeyError, ValueError, RuntimeError) as error:
                raise Refused(f"its arrays are not those of model {self._config.model.name!r}: {error}") from error
        return Model(manifest.version, manifest.step, manifest.created_ms, scorer)

    def _check(self, manifest: snapshots.Manifest) -> None:
        if manifest.spec != self._spec:
            raise Refused(f"made for feature spec {manifest.spec}, this configuration is {self._spec}; use the learner's file")
        if manifest.model != self._config.model.name:
            raise Refused(f"it holds a {manifest.model!r}, model.name is {self._config.model.name!r}")

    def _try(self, scorer: Scores) -> None:
        """Score once, so that a model of NaN is never swapped in, and kernels are compiled before a request needs them."""
        features = self._config.features
        rows = np.full((2, spec.id_width(features)), ids.PAD, np.uint64)
        x = np.full((2, len(spec.number_names(features))), np.nan, np.float32)
        for support in (None, self._support(scorer, rows, x)):
            if not np.isfinite(scorer.score(rows, x, 0, support).adapted).all():
                raise Refused("it gives scores that are no numbers")

    def _support(self, scorer: Scores, rows: npt.NDArray[np.uint64], x: npt.NDArray[np.float32]) -> Support | Known:
        """Support of the kind that requests are going to have."""
        if self._config.support.mode == "features":
            return Support(rows[:1], x[:1], np.zeros((1, len(self._config.objectives)), np.float32))
        kept = np.zeros(max(self._config.meta.min_support, 1), meta_supports.layout(self._config, scorer.shape).dtype)
        return Known(*meta_supports.parts_of(kept, scorer.shape), kept["label"])


def _entry(name: str) -> Entry:
    created, _, step = name.partition("-")
    return Entry(name, int(step), int(created))
