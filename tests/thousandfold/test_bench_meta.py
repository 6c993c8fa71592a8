import functools
import itertools
import pathlib

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from state import config as configuration
from thousandfold import specs
from thousandfold.bench import areas, figures, logs, meta, protocol, quality, report
from thousandfold.bench.meta import choice, command, gains, order, parts, study, tables
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
def measured() -> study.Study:
    seeds = dict.fromkeys(gains.VARIANTS, 2)
    runs = gains.measure(CONFIG, inputs(), ["film", "reptile", "fine_tune_only"], {}, seeds, QUIET)
    where = parts.parts(CONFIG, inputs())
    return study.Study("ids", runs, where, study.tell(inputs(), runs, where), "film")


def test_rows_are_told_apart_by_the_support_that_their_list_had() -> None:
    found = inputs()
    n = parts.support_rows(CONFIG, found)
    for i in range(0, len(found.ts), 17):
        earlier = [j for j in range(int(found.known[i])) if found.task[j] == found.task[i] and found.ts[j] < found.ts[i]]
        rows = sum(int(found.start[j + 1] - found.start[j]) for j in earlier)
        assert set(n[found.start[i] : found.start[i + 1]].tolist()) == {min(rows, 6)}


def test_every_counted_row_is_in_one_tenth_of_the_tasks_and_larger_tasks_are_in_later_ones() -> None:
    found, where = inputs(), measured().where
    assert int(where.whole.sum()) == found.rows - round(0.1 * found.rows)
    assert np.array_equal(np.sum(list(where.decile.values()), 0), where.whole.astype(int))
    assert np.array_equal(np.sum(list(where.support.values()), 0), where.whole.astype(int))
    tasks = np.repeat(found.task, np.diff(found.start))
    sizes = [[int((tasks == t).sum()) for t in np.unique(tasks[rows])] for rows in where.decile.values()]
    assert all(max(a) <= min(b) for a, b in itertools.pairwise(sizes))
    assert len(where.decile) == 10


def test_gains_are_against_the_own_plain_tower_and_against_a_model_that_never_adapted() -> None:
    runs, where, table = measured().runs, measured().where, measured().table
    label, whole = inputs().label[:, 0], where.whole
    told = table["film", ""]
    scores = (runs["film"].adapted, runs["film"].unadapted, runs["off"].adapted, runs["bias_tuning"].adapted)
    auc = np.array([[figures.auc(label[whole], of[s][whole]) for of in scores] for s in range(2)]).mean(0)
    assert told.value("auc").value == pytest.approx(auc[0])
    assert told.gain("auc").value == pytest.approx(auc[0] - auc[1])
    assert told.over_none("auc").value == pytest.approx(auc[0] - auc[2])
    assert told.over(table["bias_tuning", ""], "auc").value == pytest.approx(auc[0] - auc[3])
    assert auc[1] != auc[2]
    assert np.array_equal(runs["off"].adapted[0], runs["off"].unadapted[0])
    assert np.array_equal(runs["bias_tuning"].unadapted[0], runs["off"].adapted[0])


def test_figures_of_a_part_are_those_of_its_rows_alone() -> None:
    found, runs = inputs(), measured().runs
    for part, rows in measured().where.every().items():
        expected = figures.figures(found.group[rows], found.label[rows, 0], runs["reptile"].adapted[1][rows])
        told = measured().table["reptile", part].adapted
        assert told["auc"][1].value == pytest.approx(expected.auc, nan_ok=True)
        assert told["gauc"][1].value == pytest.approx(expected.gauc, nan_ok=True)


def test_fine_tuning_only_trains_as_without_adaptation_and_adapts() -> None:
    runs = measured().runs
    assert np.array_equal(runs["fine_tune_only"].unadapted[0], runs["off"].adapted[0])
    assert not np.array_equal(runs["fine_tune_only"].adapted[0], runs["off"].adapted[0])


def test_only_the_configured_algorithm_is_held_to_the_bars_and_each_has_a_row_with_its_target() -> None:
    bars = {r.id: r for r in study.judge(measured(), "x")}
    assert {name: r.target for name, r in bars.items()} == {
        "bar/ids/film/auc_over_off": 0.030, "bar/ids/film/auc_over_bias_tuning": 0.0,
        "bar/ids/film/auc_over_off/support/0": -0.001, "aim/ids/film/auc_over_bias_tuning": 0.003,
        "aim/ids/film/gauc_over_bias_tuning": 0.003,
    }  # fmt: skip
    assert all(r.passed is not None and r.stderr for r in bars.values())
    assert not list(study.judge(measured()._replace(features="mine"), "x"))
    rows = {r.id: r for r in study.rows_of(measured(), "x")}
    assert {"auc/ids/off", "gauc/ids/bias_tuning", "gain_gauc/ids/reptile/size/10", "rows_per_cpu_s/ids/film"} <= set(rows)
    assert all(r.target is None for r in rows.values())


def test_tables_have_every_variant_and_a_column_for_every_part() -> None:
    overall, grids = tables.overall(measured()), list(tables.by_part(measured()))
    assert [row[0] for row in overall.rows] == list(measured().runs)
    assert [len(grid.heads) for grid in grids] == [7, 7, 7, 7, 11, 11, 11, 11, 4, 4, 4, 4]
    assert {row[0] for row in grids[0].rows} == {"bias_tuning", "film", "reptile", "fine_tune_only"}
    assert {row[0] for row in grids[1].rows} == {"film", "reptile", "fine_tune_only"}
    assert tables.signed(areas.Difference(0.01234, 0.0005)) == "+0.0123 ± 0.0005"
    assert tables.signed(areas.Difference(float("nan"), 1.0)) == "–"


def test_settings_are_chosen_from_no_more_than_the_first_fifth() -> None:
    made = simulator.Simulator(SMALL, 3)
    log = logs.from_blocks(CONFIG, made.world, list(itertools.islice(made.events(), 1)))
    part = choice.first(log)
    assert 0 <= log.rows / 5 - part.rows < 200
    assert np.array_equal(part.label, log.label[: part.rows])
    assert choice.first(log, 10**9).rows == part.rows
    assert choice.first(log, part.rows // 2).rows <= part.rows // 2


def test_choosing_begins_where_first_order_maml_ended_and_leaves_out_what_a_variant_lacks() -> None:
    said, part = list[str](), inputs(400)
    known = {"fomaml": choice.START | {"inner_rate": 0.5}}
    variants = ["off", "bias_tuning", "film", "fine_tune_only"]
    found = choice.choose(CONFIG, part, variants, known, ["inner_rate", "weight"], say=said.append)
    assert set(found) == {"bias_tuning", "film", "fine_tune_only", "fomaml"}
    assert found["fine_tune_only"]["weight"] == choice.START["weight"]
    first = next(line for line in said if "rows, film" in line)
    assert "inner_rate 1, prior_rows 16" in first
    with pytest.raises(configuration.ConfigError, match="speed"):
        choice.choose(CONFIG, part, ["film"], {}, ["speed"])


def test_the_walk_goes_to_better_neighbours_and_asks_for_nothing_twice() -> None:
    asked = list[tuple[float, int]]()

    def worth(settings: gains.Settings) -> float:
        asked.append((settings["inner_rate"], settings["inner_steps"]))
        return float(-abs(settings["inner_rate"] - 0.5) - abs(settings["inner_steps"] - 3))

    best = choice.climb(choice.START, ["inner_rate", "inner_steps"], worth)
    assert (best["inner_rate"], best["inner_steps"]) == (0.5, 3)
    assert len(asked) == len(set(asked))
    assert {key: best[key] for key in ("weight", "prior_rows")} == {"weight": 0.5, "prior_rows": 16.0}


def test_chosen_settings_reach_the_variant_and_wrong_ones_are_refused() -> None:
    found = gains.configured(CONFIG, "cavia", {"cavia": {"inner_rate": 0.7, "inner_steps": 3}})
    assert (found.meta.algorithm, found.meta.inner_rate, found.meta.inner_steps, found.meta.mode) == ("cavia", 0.7, 3, "on")
    assert gains.configured(CONFIG, "off", {"off": {"inner_rate": 9.0}}).meta.mode == "off"
    more = gains.configured(CONFIG, "film", {"film": {"support_rows": 2 * CONFIG.support.size}})
    assert more.support.size == more.meta.support_rows == 2 * CONFIG.support.size
    assert found.support == CONFIG.support
    for variant, chosen in (("film", {"film": {"inner_steps": 9}}), ("film", {"film": {"inner_speed": 1}}), ("magic", {})):
        with pytest.raises(configuration.ConfigError, match=variant):
            gains.check(CONFIG, [variant], chosen)


def test_the_command_chooses_writes_reads_and_reports(tmp_path: pathlib.Path) -> None:
    (tmp_path / "small.toml").write_text(SPEC)
    options = ["--data", "simulate", "--spec", str(tmp_path / "small.toml"), "--limit", "1500", "--algorithms", "bias"]
    settings = ["--settings", str(tmp_path / "chosen.toml")]
    result = CliRunner().invoke(meta.app, [*options, "--choose", "--keys", "inner_rate", *settings])
    assert result.exit_code == 0, result.output
    chosen = command.read(tmp_path / "chosen.toml")
    assert chosen["small"]["bias"]["inner_rate"] in choice.GRID["inner_rate"]
    out, written = tmp_path / "out", ["--seeds", "1", "--report", str(tmp_path / "r.json"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(meta.app, [*options, *settings, *written])
    assert result.exit_code == 0, result.output
    text = (out / "tables.md").read_text()
    again = CliRunner().invoke(meta.app, [*options, *settings, *written, "--resume"])
    assert again.exit_code == 0
    assert (out / "tables.md").read_text().split("### ")[2:] == text.split("### ")[2:]
    assert len(list((out / "passes").iterdir())) == 2
    assert {f.name for f in out.glob("*.png")} == {f"small_by_{kind}.png" for kind in tables.KINDS}
    found = {r.id: r for r in report.read(tmp_path / "r.json").rows}
    assert {"auc/small/off", "over_none_auc/small/bias", "over_none_gauc/small/bias_tuning/support/0"} <= set(found)
    assert found["over_none_auc/small/bias"].target is None
    refused = CliRunner().invoke(meta.app, [*options, *settings, "--judged", "magic"])
    assert isinstance(refused.exception, configuration.ConfigError)
    assert "magic" in str(refused.exception)


def test_an_objective_of_one_scenario_is_measured_where_it_exists(tmp_path: pathlib.Path) -> None:
    declared = '[[objectives]]\nname = "click"\naction = "click"\nscenarios = ["home"]\n'
    declared += '[[objectives]]\nname = "save"\naction = "save"\n[scenarios]\nknown = ["home", "away"]\n'
    (tmp_path / "small.toml").write_text(declared + SPEC)
    random, rows = np.random.default_rng(1), 1_600
    table = pl.DataFrame(
        {
            "time": np.arange(rows) * 1_000, "request": np.arange(rows), "user": random.integers(0, 30, rows),
            "item": random.integers(0, 20, rows), "scenario": ["home", "away"] * (rows // 2),
            "click": [int(random.random() < 0.4) if k % 2 == 0 else None for k in range(rows)],
            "save": (random.random(rows) < 0.4).astype(int),
        }
    )  # fmt: skip
    table.write_parquet(tmp_path / "log.parquet")
    options = ["--data", str(tmp_path / "log.parquet"), "--spec", str(tmp_path / "small.toml"), "--algorithms", "bias"]
    result = CliRunner().invoke(meta.app, [*options, "--seeds", "1", "--report", str(tmp_path / "r.json")])
    assert result.exit_code == 0, result.output
    found = {r.id: r.value for r in report.read(tmp_path / "r.json").rows}
    assert found["over_none_auc/small/bias/scenario/home"] is not None
    assert found["over_none_auc/small/bias_tuning"] == found["over_none_auc/small/bias_tuning/scenario/home"] != 0
    assert not any(name.startswith("over_none_auc/small/bias/scenario/away") for name in found)
    chosen = CliRunner().invoke(meta.app, [*options, "--choose", "--keys", "support_rows"])
    assert chosen.exit_code == 0, chosen.output
    assert "nan" not in chosen.output
    (tmp_path / "small.toml").write_text(declared.replace('scenarios = ["home"]', 'kind = "ranking"') + SPEC)
    refused = CliRunner().invoke(meta.app, options)
    assert '"click" is ranking; bench meta compares binary objectives' in str(refused.exception)


def test_settings_that_cannot_be_read_say_how_to_write_them(tmp_path: pathlib.Path) -> None:
    with pytest.raises(configuration.ConfigError, match="--choose"):
        command.read(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("ids = 3")
    with pytest.raises(configuration.ConfigError, match="--choose"):
        command.read(tmp_path / "bad.toml")


def test_both_sets_of_features_are_worked_examples_and_others_are_refused() -> None:
    assert all(specs.path(command.example(name)).is_file() for name in command.FEATURES)
    with pytest.raises(configuration.ConfigError, match="there are rich, ids"):
        command.example("poor")


def test_a_drawn_order_keeps_every_task_its_rows_and_no_figure_of_the_plain_model() -> None:
    found, plain = inputs(), measured().runs["off"].adapted[0]
    other, said = order.drawn(found, plain, 1)
    task = np.repeat(found.task, np.diff(found.start))
    for one in np.unique(task):
        pairs = [sorted(zip(i.label[task == one, 0].tolist(), p[task == one].tolist(), strict=True)) for i, p in
                 ((found, plain), (other, said))]  # fmt: skip
        assert pairs[0] == pairs[1]
    assert (other.label != found.label).any()
    assert other.ids is found.ids


def test_rows_that_changed_places_keep_their_task_ids_and_labels() -> None:
    found = inputs()
    other = order.moved(found, 1)
    task = np.repeat(found.task, np.diff(found.start))
    rows = [sorted(zip(task, i.item, map(tuple, i.ids), i.label[:, 0], strict=True)) for i in (found, other)]
    assert rows[0] == rows[1]
    assert (other.item != found.item).mean() > 0.5
    assert other.ts is found.ts
    assert order.moved(found, 1).item.tolist() == other.item.tolist()


def test_where_labels_are_drawn_by_task_following_the_mean_loses_within_small_tasks() -> None:
    found, random = inputs(), np.random.default_rng(0)
    label = (random.random(found.label.shape) < 0.5).astype(np.float32)
    plain = [random.random(found.rows).astype(np.float32) for _ in range(2)]
    losses = order.measure(found._replace(label=label), plain, 0.4, parts.parts(CONFIG, found))
    assert list(losses) == ["", *(f"/size/{d}" for d in range(1, 11))]
    assert np.mean([np.mean(losses[f"/size/{d}"][1]) for d in (1, 2, 3)]) < -0.01
    rows = order.rows_of("ids", losses, "x")
    assert (rows[0].id, rows[1].id) == ("drawn_order_gauc/ids/bias_tuning", "drawn_order_gauc/ids/bias_tuning/size/1")
    assert [len(line) for line in order.table("ids", losses).rows] == [12, 12, 12]
