import functools
import itertools
import pathlib
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from state import config as configuration
from thousandfold import specs
from thousandfold.bench import figures, gains, logs, meta, protocol, quality, report
from thousandfold.data import simulator

SPEC = """
[model]
name = "shared_bottom"
embedding_width = 4
hidden = [8, 4]
[embedding]
capacity = 20000
[support]
size = 6
[meta]
support_rows = 6
[quality]
block_rows = 100
[features]
categories = [
  { name = "user", source = "user_id" },
  { name = "item", source = "item_id" },
  { name = "scenario", source = "scenario" },
]
"""
CONFIG = configuration.parse(SPEC)
SMALL = simulator.Settings(users=60, items=60, delay_median_s=0, delay_p90_s=0, base=0.0, lists_per_s=5)
QUIET = quality.Progress()


@functools.cache
def inputs(rows: int = 1_500) -> protocol.Inputs:
    made = simulator.Simulator(SMALL, 3)
    whole = logs.from_blocks(CONFIG, made.world, list(itertools.islice(made.events(), 1)))
    return protocol.prepare(CONFIG, logs.head(whole, rows), protocol.Lag())


@functools.cache
def measured() -> tuple[dict[str, gains.Run], gains.Parts, gains.Table]:
    runs = gains.measure(CONFIG, inputs(), ["film", "reptile", "fine_tune_only"], {}, [0, 1], QUIET)
    where = gains.parts(CONFIG, inputs())
    return runs, where, gains.tell(inputs(), runs, where)


def test_rows_are_told_apart_by_the_support_that_their_list_had() -> None:
    found = inputs()
    n = gains.support_rows(CONFIG, found)
    for i in range(0, len(found.ts), 17):
        earlier = [j for j in range(int(found.known[i])) if found.task[j] == found.task[i] and found.ts[j] < found.ts[i]]
        rows = sum(int(found.start[j + 1] - found.start[j]) for j in earlier)
        assert set(n[found.start[i] : found.start[i + 1]].tolist()) == {min(rows, 6)}


def test_every_counted_row_is_in_one_tenth_of_the_tasks_and_larger_tasks_are_in_later_ones() -> None:
    found, (_, where, _) = inputs(), measured()
    assert int(where.whole.sum()) == found.rows - round(0.1 * found.rows)
    assert np.array_equal(np.sum(list(where.decile.values()), 0), where.whole.astype(int))
    assert np.array_equal(np.sum(list(where.support.values()), 0), where.whole.astype(int))
    tasks = np.repeat(found.task, np.diff(found.start))
    sizes = [[int((tasks == t).sum()) for t in np.unique(tasks[rows])] for rows in where.decile.values()]
    assert all(max(a) <= min(b) for a, b in itertools.pairwise(sizes))
    assert len(where.decile) == 10


def test_gains_are_against_the_own_plain_tower_and_against_a_model_that_never_adapted() -> None:
    runs, where, table = measured()
    label, whole = inputs().label[:, 0], where.whole
    told = table["film", ""]
    for s in range(2):
        auc = [figures.auc(label[whole], scores[s][whole]) for scores in
               (runs["film"].adapted, runs["film"].unadapted, runs["off"].adapted)]  # fmt: skip
        assert told.of("auc")[s] == pytest.approx(auc[0])
        assert told.gain("auc")[s] == pytest.approx(auc[0] - auc[1])
        assert told.over_none("auc")[s] == pytest.approx(auc[0] - auc[2])
    assert auc[1] != auc[2]
    assert np.array_equal(runs["off"].adapted[0], runs["off"].unadapted[0])
    assert np.array_equal(runs["bias_tuning"].unadapted[0], runs["off"].adapted[0])


def test_fine_tuning_only_trains_as_without_adaptation_and_adapts() -> None:
    runs = measured()[0]
    assert np.array_equal(runs["fine_tune_only"].unadapted[0], runs["off"].adapted[0])
    assert not np.array_equal(runs["fine_tune_only"].adapted[0], runs["off"].adapted[0])


def test_only_the_variant_that_was_chosen_beforehand_is_held_to_the_targets() -> None:
    runs, where, table = measured()
    rows = {r.id: r for r in gains.rows_of("ids", table, runs, where, gains.TARGETS, "film", "x")}
    held = {name: r.target for name, r in rows.items() if r.target is not None}
    assert held == {
        "over_none_auc/ids/film": 0.030, "over_bias_tuning_auc/ids/film": 0.0, "over_none_auc/ids/film/support/0": -0.001,
    }  # fmt: skip
    assert {"auc/ids/off", "gauc/ids/bias_tuning", "gain_gauc/ids/reptile/size/10", "rows_per_s/ids/film"} <= set(rows)
    assert rows["over_none_auc/ids/film"].stderr is not None
    assert not any(r.target for r in gains.rows_of("rich", table, runs, where, {}, "film", "x"))


def test_settings_are_chosen_from_the_first_fifth_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    grid: dict[str, tuple[Any, ...]] = {
        "inner_rate": (0.1, 1.0),
        "inner_steps": (1, 3),
        "weight": (0.5, 1.0),
        "inner_decay": (0.0,),
    }
    monkeypatch.setattr(gains, "GRID", grid)
    found, said = inputs(), list[str]()
    label = found.label.copy()
    label[found.rows // 5 + 10 :] = 1 - label[found.rows // 5 + 10 :]
    one = gains.choose(CONFIG, found, ["off", "bias", "film", "fine_tune_only"], said.append)
    assert one == gains.choose(CONFIG, found._replace(label=label), ["bias", "film", "fine_tune_only"], lambda _: None)
    assert set(one) == {"bias_tuning", "bias", "film", "fine_tune_only", "judged"}
    assert one["judged"]["variant"] in {"bias", "film"}
    assert set(one["film"]) == set(grid)
    assert not any("fine_tune_only" in line and "weight = 1.0" in line for line in said)
    assert any("film" in line and "weight = 1.0" in line for line in said)


def test_chosen_settings_reach_the_variant_and_wrong_ones_are_refused() -> None:
    found = gains.configured(CONFIG, "cavia", {"cavia": {"inner_rate": 0.7, "inner_steps": 3}})
    assert (found.meta.algorithm, found.meta.inner_rate, found.meta.inner_steps, found.meta.mode) == ("cavia", 0.7, 3, "on")
    assert gains.configured(CONFIG, "off", {"off": {"inner_rate": 9.0}}).meta.mode == "off"
    for variant, chosen in (("film", {"film": {"inner_steps": 9}}), ("film", {"film": {"inner_speed": 1}}), ("magic", {})):
        with pytest.raises(configuration.ConfigError, match=variant):
            gains.check(CONFIG, [variant], chosen)


def test_the_command_chooses_writes_reads_and_reports(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gains, "GRID", {"inner_rate": (0.1, 1.0)})
    (tmp_path / "small.toml").write_text(SPEC)
    options = ["--data", "simulate", "--spec", str(tmp_path / "small.toml"), "--limit", "1500", "--algorithms", "bias"]
    settings = ["--settings", str(tmp_path / "chosen.toml")]
    result = CliRunner().invoke(meta.app, [*options, "--choose", *settings])
    assert result.exit_code == 0, result.output
    chosen = meta.read(tmp_path / "chosen.toml")
    assert chosen["small"]["bias"]["inner_rate"] in {0.05, 0.1, 1.0}
    result = CliRunner().invoke(meta.app, [*options, *settings, "--seeds", "1", "--report", str(tmp_path / "r.json")])
    assert result.exit_code == 0, result.output
    found = {r.id: r for r in report.read(tmp_path / "r.json").rows}
    assert {"auc/small/off", "over_none_auc/small/bias", "over_none_gauc/small/bias_tuning/support/0"} <= set(found)
    assert found["over_none_auc/small/bias"].target is None


def test_settings_that_cannot_be_read_say_how_to_write_them(tmp_path: pathlib.Path) -> None:
    with pytest.raises(configuration.ConfigError, match="--choose"):
        meta.read(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("ids = 3")
    with pytest.raises(configuration.ConfigError, match="--choose"):
        meta.read(tmp_path / "bad.toml")


def test_both_sets_of_features_are_worked_examples_and_others_are_refused() -> None:
    assert all(specs.path(meta.example(name)).is_file() for name in meta.FEATURES)
    with pytest.raises(configuration.ConfigError, match="there are ids, rich"):
        meta.example("poor")
