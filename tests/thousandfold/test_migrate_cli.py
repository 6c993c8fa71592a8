import pathlib
from typing import Any

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from learner import publishing, rehearsal
from learner.loop import Loop
from models import scorer
from state import config, disk_snapshots, ids, snapshots
from thousandfold import migrate_cli

MODEL = """
[model]
name = "{name}"
embedding_width = 4
hidden = [10, 8]
[learner]
baseline = "off"
[snapshot]
directory = "{folder}"
[features]
categories = [
  {{ name = "user", source = "user_id" }},
  {{ name = "item", source = "item_id" }},
  {{ name = "scenario", source = "scenario" }},{category}
]
numbers = [{{ name = "price", source = "item.price" }}]
"""


@pytest.fixture
def files(tmp_path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """A configuration with a trained snapshot, and that of a cross-domain model of the same features."""
    old, new = tmp_path / "old.toml", tmp_path / "new.toml"
    old.write_text(MODEL.format(name="shared_bottom", folder=tmp_path / "old", category=""))
    new.write_text(MODEL.format(name="trs", folder=tmp_path / "new", category=""))
    train(config.load(old), range(4), tmp_path / "old")
    return old, new


def train(settings: config.Config, offsets: range, folder: pathlib.Path) -> None:
    """Learn from some messages and leave a snapshot."""
    settings = msgspec.structs.replace(settings, learner=msgspec.structs.replace(settings.learner, dedup_rows=1024))
    source = rehearsal.MemorySource(rehearsal.message(settings, offset, seed=offset) for offset in offsets)
    writer = rehearsal.MemoryWriter()
    loop = Loop(settings, source, rehearsal.MemoryLog(), publishing.Publisher(writer, lambda _: None, settings.snapshot))
    while loop.once():
        pass
    loop.publish()
    manifest, parts = writer.snapshots[-1]
    disk_snapshots.write(folder, manifest, parts, keep=5)


def migrated(old: pathlib.Path, new: pathlib.Path, into: pathlib.Path, source: pathlib.Path | None = None) -> Result:
    folder = source or pathlib.Path(config.load(old).snapshot.directory)
    arguments = [
        "--from",
        str(folder),
        "--config",
        str(old),
        "--to-config",
        str(new),
        "--scenario",
        "search",
        "--into",
        str(into),
    ]
    return CliRunner().invoke(migrate_cli.app, arguments, env={"COLUMNS": "300"})


def served(path: pathlib.Path, folder: pathlib.Path, extra: int = 0, scenario: str = "search") -> Any:
    settings = config.load(path)
    manifest = disk_snapshots.newest_intact(folder)
    assert manifest is not None
    found = np.random.default_rng(0).integers(1, 100, (12, 3)).astype(np.uint64)
    found = np.c_[found, np.full((12, extra), 7, np.uint64)]
    found[:, 2] = ids.of(scenario)
    x = np.random.default_rng(1).standard_normal((12, 1)).astype(np.float32)
    model = scorer.Scorer(settings, disk_snapshots.read(folder, manifest, snapshots.SERVING))
    return model.score(found, x, ids.of(scenario), None).plain


def test_the_snapshot_that_is_written_serves_the_scenario_as_the_old_one_did(
    files: tuple[pathlib.Path, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    old, new = files
    done = migrated(old, new, tmp_path / "new")
    assert (done.exit_code, done.exception) == (0, None)
    assert "search is predicted as before" in done.stdout
    assert served(new, tmp_path / "new") == pytest.approx(served(old, tmp_path / "old"), abs=1e-6)
    assert np.ptp(served(old, tmp_path / "old")) > 0.01


def test_models_of_several_scenarios_are_merged_by_one_command(
    files: tuple[pathlib.Path, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    old, new = files
    merged = new.read_text().replace("[10, 8]", "[10, 16]")
    new.write_text(merged.replace("[model]", '[model]\nown_rows = ["user", "item"]\nmoments = "scenario"'))
    arguments = ["--config", str(old), "--to-config", str(new), "--into", str(tmp_path / "new")]
    train(config.load(old), range(10, 14), tmp_path / "other")
    for scenario, folder in (("search", "old"), ("feed", "other")):
        arguments += ["--from", str(tmp_path / folder), "--scenario", scenario]
    done = CliRunner().invoke(migrate_cli.app, arguments, env={"COLUMNS": "300"})
    assert (done.exit_code, done.exception) == (0, None)
    assert "search, feed are predicted as before" in done.stdout
    assert "reads its topics from the beginning" in done.stdout
    for scenario, folder in (("search", "old"), ("feed", "other")):
        before = served(old, tmp_path / folder, scenario=scenario)
        assert served(new, tmp_path / "new", scenario=scenario) == pytest.approx(before, abs=1e-6)
    assert not np.allclose(served(old, tmp_path / "old"), served(old, tmp_path / "other", scenario="feed"), atol=1e-3)
    without = CliRunner().invoke(migrate_cli.app, [*arguments, "--from", str(tmp_path / "old")])
    assert "--from is given 3 times, --scenario 2" in str(without.exception)


def test_a_learner_goes_on_from_it_where_the_old_one_stopped_if_it_reads_the_same_episodes(
    files: tuple[pathlib.Path, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    old, new = files
    assert "goes on where the old one stopped" in migrated(old, new, tmp_path / "new").stdout
    before, after = (disk_snapshots.newest_intact(tmp_path / name) for name in ("old", "new"))
    assert before is not None
    assert after is not None
    assert (after.offsets, after.step, after.sequence) == (before.offsets, before.step, before.sequence)
    settings = config.load(new)
    again = rehearsal.MemorySource([rehearsal.message(settings, 3, seed=3), rehearsal.message(settings, 4, seed=4)])
    publisher = publishing.Publisher(rehearsal.MemoryWriter(), lambda _: None, settings.snapshot)
    loop = Loop(settings, again, rehearsal.MemoryLog(), publisher)
    parts = [disk_snapshots.read(tmp_path / "new", after, part) for part in (snapshots.SERVING, snapshots.TRAINING)]
    loop.load(after, parts[0] | parts[1])
    while loop.once():
        pass
    assert loop.counts.duplicates == 8
    assert loop.step == before.step + 1


def test_with_other_features_it_starts_its_topics_over(files: tuple[pathlib.Path, pathlib.Path], tmp_path: pathlib.Path) -> None:
    old, new = files
    more = '\n  { name = "query", source = "context.query" },'
    new.write_text(MODEL.format(name="trs", folder=tmp_path / "new", category=more))
    assert "reads its topics from the beginning" in migrated(old, new, tmp_path / "new").stdout
    assert served(new, tmp_path / "new", extra=1) == pytest.approx(served(old, tmp_path / "old"), abs=1e-6)


def test_a_wrong_folder_or_configuration_is_named(files: tuple[pathlib.Path, pathlib.Path], tmp_path: pathlib.Path) -> None:
    old, new = files
    assert "there is no intact snapshot" in str(migrated(old, new, tmp_path / "new", source=tmp_path / "none").exception)
    assert "another model or features" in str(migrated(new, new, tmp_path / "a", source=tmp_path / "old").exception)
    assert migrated(old, new, tmp_path / "new").exit_code == 0
    assert "has snapshots already" in str(migrated(old, new, tmp_path / "new").exception)
    assert isinstance(migrated(old, new, tmp_path / "new").exception, config.Refused)
