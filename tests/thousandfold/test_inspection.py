import pathlib
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner

from learner import step
from state import config as configuration
from state import disk_snapshots, ids, snapshots, spec
from tests import minibatches
from thousandfold import inspection, specs

SPEC = """
[model]
name = "{model}"
embedding_width = 4
hidden = [8, 4]
sequence_hidden = 6
[embedding]
capacity = 2048
[join]
window_s = 1.0
[actions]
other = ["save"]
[features]
categories = [
  {{ name = "user", source = "user_id" }},
  {{ name = "item", source = "item_id" }},
  {{ name = "scenario", source = "scenario" }},
  {{ name = "last_items", source = "recent.item", max_values = 3, share = "item" }},
  {{ name = "last_kinds", source = "recent.kind", max_values = 3 }},
  {{ name = "last_ages", source = "recent.age", max_values = 3 }},
]
"""


@pytest.fixture
def files(tmp_path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """A configuration, and a log of two users in which every second row is clicked."""
    file, log, n = tmp_path / "spec.toml", tmp_path / "log.parquet", 400
    file.write_text(SPEC.format(model="dupn"))
    rows = {
        "time": [1_000_000 + 2_000 * (i // 2) for i in range(n)], "user": [f"u{i // 2 % 2}" for i in range(n)],
        "item": [f"i{(7 * i) % 20}" for i in range(n)], "scenario": ["s"] * n, "request": [f"r{i // 2}" for i in range(n)],
        "label": [i % 2 for i in range(n)], "click": [i % 2 for i in range(n)],
    }  # fmt: skip
    pl.DataFrame(rows).write_parquet(log)
    return file, log


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(inspection.app, [str(a) for a in arguments], env={"COLUMNS": "200"})


def test_weights_are_shares_of_attention_and_times_the_mean_of_the_competition() -> None:
    attention = np.array([[0.75, 0.25, 0.0], [0.5, 0.3, 0.2], [0.0, 0.0, 0.0]], np.float32)
    values = np.array([[1, 2, ids.PAD], [2, 1, ids.PAD], [1, 1, 1]], np.uint64)
    found = inspection.weights(attention, values)
    assert set(found) == {1, 2}
    assert found[1] == pytest.approx((2, 1.05 / 2, (0.75 * 2 + 0.3 * 3) / 2))
    assert found[2] == pytest.approx((2, 0.75 / 2, (0.25 * 2 + 0.5 * 3) / 2))


def test_attention_by_kind_and_age_is_printed_after_learning_the_log(files: tuple[pathlib.Path, pathlib.Path]) -> None:
    file, log = files
    drawn = file.with_suffix(".png")
    ran = run("attention", "--data", log, "--spec", file, "--rows", 100, "--plot", drawn)
    assert ran.exit_code == 0, ran.output + str(ran.exception)
    assert drawn.read_bytes().startswith(b"\x89PNG")
    assert "attention by kind of the action (100 rows)" in ran.output
    line = next(line for line in ran.output.splitlines() if "click" in line)
    assert "100.0%" in line
    assert "1.000" in line
    assert "from 3 s" in ran.output.split("attention by age")[1]


def test_attention_is_read_from_a_snapshot(files: tuple[pathlib.Path, pathlib.Path], tmp_path: pathlib.Path) -> None:
    file, log = files
    trainer = step.Trainer(configuration.load(file))
    arrays = {name: array for name, array in trainer.arrays().items() if name in trainer.serving_names}
    manifest = snapshots.Manifest(
        step=1, version=snapshots.version_of(1, 1), created_ms=1, directory=str(tmp_path / "s"), files={}, spec="",
        model="dupn", offsets=(), trained_rows=0,
    )  # fmt: skip
    disk_snapshots.write(tmp_path / "s", manifest, {snapshots.SERVING: arrays}, 1)
    ran = run("attention", "--data", log, "--spec", file, "--snapshot", tmp_path / "s")
    assert ran.exit_code == 0, ran.output + str(ran.exception)
    missing = run("attention", "--data", log, "--spec", file, "--snapshot", tmp_path / "nowhere")
    assert "no intact snapshot" in str(missing.exception)


def test_gates_are_printed_and_drawn_by_scenario(files: tuple[pathlib.Path, pathlib.Path]) -> None:
    file, log = files
    file.write_text(SPEC.format(model="pepnet"))
    drawn = file.with_suffix(".png")
    ran = run("gates", "--data", log, "--spec", file, "--plot", drawn)
    assert ran.exit_code == 0, ran.output + str(ran.exception)
    assert drawn.read_bytes().startswith(b"\x89PNG")
    heads, *lines = [line for line in ran.output.splitlines() if "┃" in line or "│" in line]
    assert heads.split()[1::2] == ["gate", "s"]
    assert len(lines) > 1
    # Neither reads a log of a million rows first.
    assert "no such folder" in str(run("gates", "--data", "nowhere", "--spec", file, "--plot", log / "x.png").exception)
    file.write_text(SPEC.format(model="shared_bottom"))
    assert "has no gates" in str(run("gates", "--data", "nowhere", "--spec", file).exception)


def test_a_model_without_attention_is_refused_with_what_to_use(files: tuple[pathlib.Path, pathlib.Path]) -> None:
    file, _ = files
    file.write_text(SPEC.format(model="shared_bottom"))
    for ran in (run("attention", "--data", "nowhere", "--spec", file), run("split", "--spec", file)):
        assert isinstance(ran.exception, inspection.NothingToInspect)
        assert 'model.name = "dupn"' in str(ran.exception)


@pytest.mark.parametrize("hidden", [(8,), (16, 8), (16, 12, 8)])
def test_the_split_gives_equal_scores_for_fewer_multiply_adds_the_more_candidates_the_fewer(hidden: tuple[int, ...]) -> None:
    config = minibatches.settings(2, model={"name": "dupn", "hidden": hidden})
    found = [inspection.cost(config, n) for n in (1, 10, 100)]
    assert found[0].split == found[0].unsplit
    assert max(c.difference for c in found) < 1e-6
    assert found[2].unsplit == 100 * found[0].unsplit
    assert found[2].split / found[2].unsplit < found[1].split / found[1].unsplit < 0.5


def test_the_page_tells_what_the_split_of_the_example_saves() -> None:
    """With one thread compiled layers take the place of torch's, whose counter does not see them."""
    text = (pathlib.Path(__file__).parents[2] / "docs/models.md").read_text(encoding="utf-8")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = inspection.cost(configuration.load(specs.path(inspection.EXAMPLE)), 10)
    finally:
        torch.set_num_threads(threads)
    assert f"| 10 | {found.split:,} | {found.unsplit:,} | {1 - found.split / found.unsplit:.1%} |".replace("%", " %") in text


def test_the_split_is_printed_for_the_candidates_that_were_asked_for(files: tuple[pathlib.Path, pathlib.Path]) -> None:
    ran = run("split", "--spec", files[0], "--candidates", 7)
    assert ran.exit_code == 0, ran.output
    assert "│          7 │" in ran.output


def test_every_age_has_a_name_of_its_own() -> None:
    names = [inspection._age(k) for k in range(spec.AGE_BUCKETS)]
    assert len(set(names)) == spec.AGE_BUCKETS
    assert (names[0], names[2], names[6]) == ("from 0 s", "from 3 s", "from 1.05 min")
