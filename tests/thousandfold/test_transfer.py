"""A new objective from a log: what each mode starts from, learns and is measured on."""

import functools
import itertools
import pathlib
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from learner import step
from state import config as configuration
from thousandfold import transfer
from thousandfold.bench import logs, protocol
from thousandfold.data import simulator

SPEC = """
[scenarios]
known = ["home", "search", "offers"]
[[objectives]]
name = "click"
action = "click"
[[objectives]]
name = "save"
action = "save"
{extra}
[actions]
other = ["view", "search"]
[model]
embedding_width = 4
hidden = [8, 4]
gate_hidden = 4
wide = "product"
[embedding]
capacity = 20000
[support]
size = 4
[quality]
block_rows = 100
[features]
categories = [
  {{ name = "user", source = "user_id" }},
  {{ name = "item", source = "item_id" }},
  {{ name = "scenario", source = "scenario" }},
]
statistics = [{{ name = "item_rate", key = ["item"], kind = "rate", prior = 10 }}]
"""
SMALL = simulator.Settings(users=60, items=60, delay_median_s=0, delay_p90_s=0, base=0.0, lists_per_s=5, save_share=0.6)


@functools.cache
def task(extra: str = "", new: str = "save") -> transfer.Task:
    config, made = configuration.parse(SPEC.format(extra=extra)), simulator.Simulator(SMALL, 3)
    log = logs.head(logs.from_blocks(config, made.world, list(itertools.islice(made.events(), 1))), 3_000)
    return transfer.task(config, log, new, 0.5, protocol.Lag())


@functools.cache
def results() -> dict[str, transfer.Result]:
    return {r.mode: r for r in transfer.run(task(), list(transfer.MODES), lambda _: None)}


def test_every_mode_is_measured_on_the_same_rows_after_the_cut() -> None:
    cut = int(task().inputs.start[task().first])
    found = results()
    assert list(found) == ["rs", "ra", "rt", "ft"]
    for r in found.values():
        assert [(q.scenario, q.objective, q.variant) for q in r.figures] == [
            (name, "save", "adapted") for name in ("home", "search", "offers", "(all)")
        ]
        assert r.figures[-1].rows == task().inputs.rows - cut
        assert 0 < r.early[-1].rows <= 0.2 * r.figures[-1].rows
        assert np.isfinite([r.figures[-1].auc, r.figures[-1].gauc, r.figures[-1].logloss]).all()
    assert [r.rows for r in found.values()] == [task().inputs.rows - (cut if m != "ra" else 0) for m in found]
    assert found["rt"].trained < found["ft"].trained == found["rs"].trained < found["ra"].trained


def trainers() -> tuple[step.Trainer, step.Trainer]:
    base = transfer.base_model(task())
    new = step.Trainer(transfer.only(task().config, [1]), native=False)
    return base, new


def test_what_objectives_share_is_taken_over_and_what_they_own_starts_anew() -> None:
    base, new = trainers()
    fresh, heads = transfer.views(new.dense.copy(), new.shapes), transfer.heads(new.settings)
    transfer.take_over(new, base)
    found, known = transfer.views(new.dense, new.shapes), transfer.views(base.dense, base.shapes)
    assert {"output.weight", "output.bias", "wide.scale"} <= heads
    assert "tower.weight" not in heads
    for name, value in found.items():
        np.testing.assert_array_equal(value, fresh[name] if name in heads else known[name])
    np.testing.assert_array_equal(new.table.arrays()["table"], base.table.arrays()["table"])
    assert not any(array.any() for name, array in new.adam.arrays().items() if "mean" in name)


def test_a_frozen_trunk_keeps_its_bytes_while_tower_and_heads_learn() -> None:
    base, new = trainers()
    transfer.take_over(new, base)
    learned = transfer.shallow(new)
    new.engine = transfer.Frozen(new.engine, new.gradient, learned)
    before, rows = new.dense.copy(), new.table.arrays()["table"].copy()
    protocol.run(new.settings, transfer.tail(transfer.columns(task().inputs, [1]), task().first), trainer=new)
    np.testing.assert_array_equal(new.dense[~learned], before[~learned])
    assert (new.dense[learned] != before[learned]).mean() > 0.5
    np.testing.assert_array_equal(new.table.arrays()["table"][: len(rows)], rows)


def test_what_an_adaptation_has_learned_is_taken_over_and_learns_on_a_frozen_trunk() -> None:
    learned = task('[meta]\nalgorithm="meta_sgd"\n')
    base, new = transfer.base_model(learned), step.Trainer(transfer.only(learned.config, [1]), native=False)
    transfer.take_over(new, base)
    found, known = transfer.views(new.dense, new.shapes), transfer.views(base.dense, base.shapes)
    assert found["meta.rate.error"].any()
    np.testing.assert_array_equal(found["meta.rate.error"], known["meta.rate.error"])
    mask = transfer.views(transfer.shallow(new).astype(np.float32), new.shapes)
    assert all(mask[name].all() for name in new.shapes if name.startswith("meta."))
    assert [r.mode for r in transfer.run(learned, ["rt"], lambda _: None)] == ["rt"]


def test_a_ranking_and_an_objective_of_one_scenario_can_be_new() -> None:
    extra = '[[objectives]]\nname="order"\naction="click"\nkind="ranking"\nweights={save=5.0}\nscenarios=["home"]\n'
    found = transfer.run(task(extra, "order"), ["ra", "ft"], lambda _: None)
    for r in found:
        by_name = {q.scenario: q for q in r.figures}
        assert by_name["search"].rows == 0 < by_name["home"].rows
        assert by_name["home"].gauc > 0
        assert np.isnan(by_name["home"].auc)


def test_labels_of_every_kind_come_from_a_parquet_file_and_wrong_ones_are_named(tmp_path: pathlib.Path) -> None:
    rows = 40
    table: dict[str, Any] = {
        "time": np.arange(rows) // 2 * 1_000, "user": [f"u{k // 2 % 4}" for k in range(rows)],
        "item": [f"i{k % 7}" for k in range(rows)], "scenario": ["home", "home", "search", "search"] * (rows // 4),
        "request": [f"r{k // 2}" for k in range(rows)],
        "click": [0, 1] * (rows // 2), "save": [0, 1, 1, 0] * (rows // 4), "power": [None, 2] * (rows // 2),
        "length": [1.5, None] * (rows // 2),
    }  # fmt: skip
    extra = (
        '[[objectives]]\nname="power"\naction="view"\nkind="multiclass"\nclasses=3\nscenarios=["home"]\n'
        '[[objectives]]\nname="length"\naction="view"\nkind="regression"\n'
    )
    config, file = configuration.parse(SPEC.format(extra=extra)), tmp_path / "log.parquet"
    table["power"][1], table["length"][0] = 1, 2.5
    pl.DataFrame(table, strict=False).write_parquet(file)
    log = logs.read(config, file)
    home = np.repeat([True, False] * (rows // 4), 2)
    assert np.array_equal(np.isnan(log.label[:, 2]), ~home | (np.arange(rows) % 2 == 0))
    assert np.array_equal(np.isnan(log.label[:, 3]), np.arange(rows) % 2 == 1)
    assert len(log.actions.ts) > 0
    with pytest.raises(logs.LogError, match='"power" is multiclass; bench x compares binary objectives'):
        logs.binary_only(config, "bench x")
    table["power"][1] = 3
    pl.DataFrame(table, strict=False).write_parquet(file)
    with pytest.raises(logs.LogError, match='"power" holds what is no class, 0 to 2'):
        logs.read(config, file)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--objective", "buy"], '"buy" is not declared; there are click, save'),
        (["--objective", "save", "--mode", "rx"], "there are rs, ra, rt, ft and all"),
        (["--objective", "love", "--action", "love"], "knows the actions click, view, save, search only"),
        (["--objective", "click", "--action", "click"], "names must differ"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(tmp_path: pathlib.Path, arguments: list[str], words: str) -> None:
    file = tmp_path / "spec.toml"
    file.write_text(SPEC.format(extra=""))
    ran = CliRunner().invoke(transfer.app, ["--data", "simulate", "--spec", str(file), "--limit", "1000", *arguments])
    assert isinstance(ran.exception, configuration.Refused)
    assert words in str(ran.exception)


def test_the_command_prints_one_column_per_mode(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "spec.toml"
    file.write_text(SPEC.format(extra=""))
    arguments = ["--data", "simulate", "--spec", str(file), "--limit", "2000", "--objective", "viewed", "--action", "view"]
    ran = CliRunner().invoke(transfer.app, arguments, env={"COLUMNS": "120"})
    assert ran.exit_code == 0, ran.output
    for word in (
        "rs alone",
        "ra with all",
        "rt frozen trunk",
        "ft fine-tuned",
        "before it: click, save",
        "AUC in home",
        "seconds",
    ):
        assert word in ran.output
