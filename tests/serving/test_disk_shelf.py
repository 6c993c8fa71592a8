"""What a snapshot is tried on before it answers."""

import pathlib
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from learner import step
from models import base, scorer
from serving import disk_shelf, watching
from state import config as configuration
from state import disk_snapshots, snapshots, spec
from tests import minibatches


def written(folder: pathlib.Path, mode: str) -> configuration.Config:
    settings = minibatches.settings(support={"mode": mode}, meta={"min_support": 3})
    settings = msgspec.structs.replace(settings, snapshot=msgspec.structs.replace(settings.snapshot, directory=str(folder)))
    trainer = step.Trainer(settings)
    manifest = snapshots.Manifest(
        version="", directory="", files={}, step=1, spec=spec.fingerprint(settings.features, settings.action_kinds),
        model=settings.model.name, created_ms=5, offsets=(), trained_rows=1, sequence=1, skipped=(), seed=0, threads=1, code="",
    )  # fmt: skip
    serving = {name: trainer.arrays()[name] for name in trainer.serving_names}
    disk_snapshots.write(str(folder), manifest, {snapshots.SERVING: serving}, 3)
    return settings


class Watched(scorer.Scorer):
    """Remembers what it was adapted on."""

    tried: list[base.Support | base.Known | None]
    spoilt = False

    def score(self, ids: base.U64, x: base.F32, scenario: int, support: base.Support | base.Known | None) -> scorer.Scored:
        self.tried.append(support)
        found = super().score(ids, x, scenario, support)
        return found._replace(adapted=found.adapted * np.float32(np.nan)) if self.spoilt and support is not None else found


@pytest.mark.parametrize(("mode", "kind"), [("features", base.Support), ("meta_inputs", base.Known)])
def test_a_snapshot_is_tried_without_support_and_on_support_of_the_kind_that_requests_have(
    tmp_path: pathlib.Path, mode: str, kind: type
) -> None:
    settings = written(tmp_path, mode)
    spoilt = False

    def build(config: configuration.Config, arrays: Mapping[str, npt.NDArray[Any]]) -> Watched:
        made = Watched(config, arrays)
        made.tried, made.spoilt = [], spoilt
        return made

    shelf = disk_shelf.DiskShelf(settings, build)
    (entry,) = shelf.entries()
    found = shelf.load(entry).scorer
    assert isinstance(found, Watched)
    assert [type(support) for support in found.tried] == [type(None), kind]
    if mode == "meta_inputs":
        assert found.tried[1] is not None
        assert len(found.tried[1].label) == 3
    spoilt = True
    with pytest.raises(watching.Refused, match="no numbers"):
        shelf.load(entry)
