import pathlib

import msgspec
import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from state import config as configuration
from thousandfold.bench import merge, protocol, report

SPEC = """
[model]
embedding_width = 4
hidden = [8, 4]
[embedding]
capacity = 20000
[features]
categories = [
  { name = "user", source = "user_id" },
  { name = "item", source = "item_id" },
  { name = "scenario", source = "scenario" },
]
numbers = [{ name = "price", source = "item.price" }]
"""
CONFIG = configuration.parse(SPEC)


def lists(n: int = 60) -> protocol.Inputs:
    """Lists of 5 rows, in turns of two scenarios whose users and items are the same."""
    generator = np.random.default_rng(0)
    scenario = np.arange(n).astype(np.uint64) % 2 + 1
    user, rows = generator.integers(0, 4, n).astype(np.uint64), 5 * n
    item = generator.integers(0, 20, rows).astype(np.uint64)
    ids = np.c_[np.repeat(user, 5), item, np.repeat(scenario, 5)]
    start, ts = np.arange(0, rows + 1, 5), np.arange(n, dtype=np.int64)
    x = generator.standard_normal((rows, 1)).astype(np.float32)
    label = (generator.random((rows, 1)) < 0.5).astype(np.float32)
    names = {1: "a", 2: "b"}
    return protocol.Inputs(user, user, scenario, user, ts, start, np.arange(n), item, item, ids, x, label, names, protocol.Lag())


def test_what_scenarios_share_is_held_and_fetched_once() -> None:
    inputs = lists()
    settings = msgspec.structs.replace(CONFIG, model=msgspec.structs.replace(CONFIG.model, own_towers=False))
    merged, alone, auc = merge.measure(settings, "shared_bottom", "shared_bottom", inputs, rounds=1)
    assert merged.rows == alone.rows == inputs.rows
    assert auc.keys() == {"a", "b"}
    assert all(0 < value < 1 for pair in auc.values() for value in pair)
    assert merged.embedding_rows == 4 + 20 + 2
    assert alone.embedding_rows == 2 * (4 + 20 + 1)
    assert 2 * merged.parameters == alone.parameters
    assert merged.keys < alone.keys
    assert merged.state_bytes < alone.state_bytes


def test_a_model_has_room_for_the_scenarios_that_it_serves() -> None:
    settings = merge.named(CONFIG, "trs", 2)
    assert (settings.scenarios.slots, settings.model.own_towers, settings.meta.mode) == (2, True, "off")
    assert not merge.named(CONFIG, "shared_bottom", 1).model.own_towers


def test_minibatches_hold_every_row_once_in_order() -> None:
    inputs = lists()
    made = merge.minibatches(CONFIG, inputs)
    assert (np.concatenate([step.batch.ids for step in made]) == inputs.ids).all()
    assert [step.now_ms for step in made] == sorted(step.now_ms for step in made)
    assert max(len(step.batch.ids) for step in made) <= CONFIG.learner.rows_per_step


def test_costs_add_up_and_the_shares_are_of_the_sum() -> None:
    one = merge.Cost(parameters=10, embedding_rows=4, keys=6.0, seconds=2.0, rows=100, state_bytes=1000)
    alone = merge.total([one, one])
    found = {row.id: row.value for row in merge.rows_of(one._replace(rows=200, seconds=3.0), alone, {"a": (0.7, 0.6)})}
    assert found["merge/single/rate"] == pytest.approx(200 / 4)
    assert found["merge/merged/rate"] == pytest.approx(200 / 3)
    assert found["merge/share/parameters"] == pytest.approx(0.5)
    assert found["merge/share/seconds"] == pytest.approx(0.75)
    assert (found["merge/merged/auc/a"], found["merge/single/auc/a"]) == (0.7, 0.6)


def test_the_command_writes_its_report(tmp_path: pathlib.Path) -> None:
    spec, out = tmp_path / "spec.toml", tmp_path / "merge.json"
    spec.write_text(SPEC)
    arguments = ["--data", "simulate", "--limit", "2000", "--rounds", "1", "--spec", str(spec), "--report", str(out)]
    done = CliRunner().invoke(merge.app, arguments)
    assert (done.exit_code, done.exception) == (0, None)
    assert {row.id for row in report.read(out).rows} >= {"merge/share/keys", "merge/share/seconds"}


def test_the_command_takes_a_parquet_log_with_its_spec(tmp_path: pathlib.Path) -> None:
    spec, log, out, rows = tmp_path / "spec.toml", tmp_path / "log.parquet", tmp_path / "merge.json", 2_000
    spec.write_text(SPEC)
    random = np.random.default_rng(0)
    frame = pl.DataFrame(
        {
            "time": np.arange(rows) * 1_000, "request": np.arange(rows), "user": random.integers(0, 30, rows),
            "item": random.integers(0, 20, rows), "scenario": ["home", "away"] * (rows // 2),
            "click": (random.random(rows) < 0.4).astype(int), "price": random.random(rows),
        }
    )  # fmt: skip
    frame.write_parquet(log)
    arguments = ["--data", str(log), "--limit", "2000", "--rounds", "1", "--report", str(out)]
    done = CliRunner().invoke(merge.app, [*arguments, "--spec", str(spec)])
    assert (done.exit_code, done.exception) == (0, None)
    assert {row.id for row in report.read(out).rows} >= {"merge/merged/auc/home", "merge/single/auc/away"}
    assert "needs --spec SPEC.toml" in str(CliRunner().invoke(merge.app, arguments).exception)
