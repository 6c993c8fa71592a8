"""A deployment without an objective becomes one with it: the snapshot that its learner starts from."""

import pathlib
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from learner import publishing, rehearsal
from learner.loop import Loop
from models import scorer
from state import config, disk_snapshots, ids, snapshots
from thousandfold import transfer

TEXT = """
[[objectives]]
name = "click"
action = "click"
{objective}
[actions]
other = [{other}]
[model]
embedding_width = 4
hidden = [10, 8]
[learner]
baseline = "off"
dedup_rows = 1024
[snapshot]
directory = "{folder}"
[features]
categories = [
  {{ name = "user", source = "user_id" }},
  {{ name = "item", source = "item_id" }},
  {{ name = "scenario", source = "scenario" }},
]
numbers = [{{ name = "price", source = "item.price" }}]
"""
SAVE = '[[objectives]]\nname = "save"\naction = "save"\n'


def text(folder: pathlib.Path, objective: str = "", other: str = '"view"') -> str:
    return TEXT.format(objective=objective, other=other, folder=folder)


def started(settings: config.Config, episodes: list[Any]) -> tuple[Loop, rehearsal.MemoryWriter]:
    writer = rehearsal.MemoryWriter()
    publisher = publishing.Publisher(writer, lambda _: None, settings.snapshot)
    return Loop(settings, rehearsal.MemorySource(episodes), rehearsal.MemoryLog(), publisher), writer


def deployed(folder: pathlib.Path, other: str = '"view"') -> config.Config:
    """A configuration without the objective, with a trained snapshot."""
    (folder / "old.toml").write_text(text(folder / "old", other=other))
    settings = config.load(folder / "old.toml")
    loop, writer = started(settings, [rehearsal.message(settings, offset, seed=offset) for offset in range(4)])
    while loop.once():
        pass
    loop.publish()
    manifest, parts = writer.snapshots[-1]
    disk_snapshots.write(folder / "old", manifest, parts, keep=5)
    return settings


def transferred(folder: pathlib.Path, *options: str, spec: str = "new.toml", objective: str = "save") -> Result:
    arguments = ["--objective", objective, "--spec", str(folder / spec), "--from", str(folder / "old"), *options]
    return CliRunner().invoke(transfer.app, arguments, env={"COLUMNS": "300"})


def served(settings: config.Config, folder: pathlib.Path) -> Any:
    manifest = disk_snapshots.newest_intact(folder)
    assert manifest is not None
    found = np.random.default_rng(0).integers(1, 100, (12, 3)).astype(np.uint64)
    found[:, 2] = ids.of("even")
    x = np.random.default_rng(1).standard_normal((12, 1)).astype(np.float32)
    model = scorer.Scorer(settings, disk_snapshots.read(folder, manifest, snapshots.SERVING))
    return model.score(found, x, ids.of("even"), None).plain


def test_the_learner_starts_from_a_snapshot_that_says_of_the_old_objective_what_was_said_before(tmp_path: pathlib.Path) -> None:
    old = deployed(tmp_path)
    (tmp_path / "new.toml").write_text(text(tmp_path / "new", SAVE))
    done = transferred(tmp_path, "--into", str(tmp_path / "new"))
    assert (done.exit_code, done.exception) == (0, None)
    assert "click predicted as before; save starts fresh" in done.stdout
    new, was = config.load(tmp_path / "new.toml"), served(old, tmp_path / "old")
    assert served(new, tmp_path / "new")[:, :1] == pytest.approx(was, abs=1e-6)
    assert np.ptp(was) > 0.01
    manifest, before = (disk_snapshots.newest_intact(tmp_path / name) for name in ("new", "old"))
    assert manifest is not None
    assert before is not None
    assert manifest.spec != before.spec, "the new kind of action is part of what a sample means"
    assert (manifest.offsets, manifest.step, manifest.trained_rows) == ((), 0, before.trained_rows)
    loop, _ = started(new, [rehearsal.message(new, 0, seed=9)])
    loop.load(manifest, {k: v for p in (snapshots.SERVING, snapshots.TRAINING) for k, v in _read(tmp_path / "new", p).items()})
    assert loop.once()
    assert loop.step == 1
    assert loop.counts.duplicates == 0


def _read(folder: pathlib.Path, part: str) -> Any:
    manifest = disk_snapshots.newest_intact(folder)
    assert manifest is not None
    return disk_snapshots.read(folder, manifest, part)


def test_a_kind_of_action_that_was_declared_otherwise_before_needs_the_old_configuration(tmp_path: pathlib.Path) -> None:
    old = deployed(tmp_path, other='"view", "save"')
    (tmp_path / "new.toml").write_text(text(tmp_path / "new", SAVE))
    into = ["--into", str(tmp_path / "new")]
    assert "another model or features than --config says" in str(transferred(tmp_path, *into).exception)
    done = transferred(tmp_path, *into, "--config", str(tmp_path / "old.toml"))
    assert (done.exit_code, done.exception) == (0, None)
    new = config.load(tmp_path / "new.toml")
    assert served(new, tmp_path / "new")[:, :1] == pytest.approx(served(old, tmp_path / "old"), abs=1e-6)
    assert "has snapshots already" in str(transferred(tmp_path, *into, "--config", str(tmp_path / "old.toml")).exception)


def test_what_is_missing_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "new.toml").write_text(text(tmp_path / "new", SAVE))
    into = ["--into", str(tmp_path / "new")]
    assert "needs --from DIR, --into DIR and --spec NEW.toml" in str(transferred(tmp_path).exception)
    assert "no --action" in str(transferred(tmp_path, *into, "--action", "save").exception)
    assert '--objective "buy": --spec must declare it' in str(transferred(tmp_path, *into, objective="buy").exception)
    assert "there is no intact snapshot" in str(transferred(tmp_path, *into).exception)
    assert isinstance(transferred(tmp_path, *into).exception, config.Refused)
