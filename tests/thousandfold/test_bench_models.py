import functools
import itertools
import pathlib
import re
import sys
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from typer.testing import CliRunner

from learner import step
from models import registry
from state import config as configuration
from state import ids
from thousandfold.bench import figures, logs, models, pages, protocol, quality, report
from thousandfold.bench.models import bars, choice, command, gates, kinds, protocols, seesaw, tables, zoo
from thousandfold.bench.models import study as studies
from thousandfold.data import simulator

SPEC = """
[scenarios]
known = ["home", "small"]
[[objectives]]
name = "click"
action = "click"
[[objectives]]
name = "save"
action = "save"
[model]
embedding_width = 4
hidden = [8, 4]
gate_hidden = 4
scenario_features = ["scenario", "item_rate"]
[embedding]
capacity = 20000
[support]
size = 4
[quality]
block_rows = 100
[features]
categories = [
  { name = "user", source = "user_id" },
  { name = "item", source = "item_id" },
  { name = "scenario", source = "scenario" },
]
numbers = [{ name = "price", source = "item.price" }]
statistics = [{ name = "item_rate", key = ["item"], kind = "rate", prior = 10 }]
"""
CONFIG = configuration.parse(SPEC)
SETTINGS = simulator.Settings(
    scenarios=(simulator.Scenario("home", 0.8), simulator.Scenario("small", 0.2)),
    users=60,
    items=60,
    delay_median_s=0,
    delay_p90_s=0,
    base=0.0,
    lists_per_s=5,
)


@functools.cache
def log() -> logs.Log:
    made = simulator.Simulator(SETTINGS, 3)
    return logs.head(logs.from_blocks(CONFIG, made.world, list(itertools.islice(made.events(), 1))), 2_500)


@functools.cache
def inputs(name: str = "P", lag: int = 0) -> protocol.Inputs:
    return protocol.prepare(protocols.settings_of(CONFIG, name), log(), protocol.Lag(rows=lag))


def planned(name: str, epochs: int = 2, lag: int = 0) -> protocols.Plan:
    return protocols.plan(name, inputs(name, lag), 0.1, epochs)


def predict(name: str, plan: protocols.Plan) -> npt.NDArray[np.float32]:
    config = protocols.settings_of(CONFIG, name)
    return protocols.run(config, plan, step.Trainer(config))


def flipped(plan: protocols.Plan, rows: npt.NDArray[np.bool_]) -> protocols.Plan:
    label = plan.inputs.label.copy()
    label[rows] = 1 - label[rows]
    return plan._replace(inputs=plan.inputs._replace(label=label))


def test_in_order_of_time_every_row_after_the_burn_in_counts() -> None:
    plan = planned("P")
    assert plan.counted.mean() == pytest.approx(0.9, abs=0.001)
    assert plan.until == len(plan.inputs.ts)
    config = protocols.settings_of(CONFIG, "P")
    assert np.array_equal(predict("P", plan), protocol.run(config, plan.inputs).adapted)


def test_a_cut_in_time_keeps_lists_of_one_moment_on_one_side() -> None:
    d = inputs("C")
    at = np.searchsorted(d.start, 0.8 * d.rows)
    tied = d.ts.copy()
    tied[at - 3 : at + 3] = tied[at]
    plan = protocols.plan("C", d._replace(ts=tied), 0.1)
    assert tied[plan.until - 1] < tied[plan.until]
    assert not plan.counted[: d.start[plan.valid]].any()
    assert plan.counted[d.start[plan.valid] :].all()
    cuts = (int(d.ts[40]), int(d.ts[60]))
    named = protocols.plan("C", d, 0.1, cuts_ms=cuts)
    assert d.ts[named.until - 1] <= cuts[0] < d.ts[named.until]
    assert d.ts[named.valid - 1] <= cuts[1] < d.ts[named.valid]


def test_a_random_split_has_eight_one_one_tenths_of_single_rows() -> None:
    plan, d = planned("R"), inputs("R")
    assert np.diff(plan.inputs.start).tolist() == [1] * d.rows
    assert plan.until == round(0.8 * d.rows)
    assert plan.counted.sum() == pytest.approx(0.1 * d.rows, abs=1)
    before, after = (sorted(zip(i.item.tolist(), i.label[:, 0].tolist(), strict=True)) for i in (d, plan.inputs))
    assert before == after
    assert plan.inputs.ts.tolist() != sorted(plan.inputs.ts.tolist())


@pytest.mark.parametrize("lag", [0, 200])
@pytest.mark.parametrize("name", ["C", "R"])
def test_labels_of_validation_and_test_teach_nothing_and_those_of_training_do(name: str, lag: int) -> None:
    plan = planned(name, epochs=1, lag=lag)
    rows = np.arange(plan.inputs.rows) >= plan.inputs.start[plan.until]
    first = predict(name, plan)[plan.counted]
    assert np.array_equal(first, predict(name, flipped(plan, rows))[plan.counted])
    assert not np.array_equal(first, predict(name, flipped(plan, ~rows))[plan.counted])


def after_epochs(rate: float, epochs: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], float]:
    """What counts, what the network as it stands in the end says of it, and how well that one validates."""
    plan = planned("R", epochs=epochs)
    chosen = quality.override(quality.override(CONFIG, "optimizer.start_rows", 0), "optimizer.scale_rate", 0.0)
    config = protocols.settings_of(quality.override(chosen, "optimizer.dense_rate", rate), "R")
    trainer = step.Trainer(config)
    kept = protocols.run(config, plan, trainer)
    held = slice(plan.until, plan.valid)
    score = protocols._score(trainer, plan.inputs, held)
    label = plan.inputs.label[held]
    logloss = float(-np.mean(np.where(label > 0, np.log(score), np.log1p(-score))))
    return kept[plan.counted], protocols._score(trainer, plan.inputs, slice(plan.valid, plan.inputs.rows)), logloss


def test_a_random_split_keeps_the_epoch_that_validates_best() -> None:
    once, _, first = after_epochs(0.0005, 1)
    twice, last, second = after_epochs(0.0005, 2)
    assert second < first
    assert np.array_equal(twice, last)
    assert not np.array_equal(twice, once)
    once, _, first = after_epochs(0.3, 1)
    twice, last, second = after_epochs(0.3, 2)
    assert second > first
    assert np.array_equal(twice, once)
    assert not np.array_equal(twice, last)


def test_an_objective_that_is_alone_is_weighed_against_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def scenarios(_: zoo.Bench, config: configuration.Config, name: str, of: protocols.Plan) -> zoo.Result:
        seen.append((name, [o.loss_weight for o in config.objectives]))
        return zoo.Result([np.zeros((of.inputs.rows, 1), np.float32)], 0, 0, 0, {})

    monkeypatch.setattr(zoo.Bench, "_scenarios", scenarios)
    first = CONFIG.objectives[0]
    both = (first, msgspec.structs.replace(first, name="save", action="save", loss_weight=0.1))
    plan = planned("P")
    plan = plan._replace(inputs=plan.inputs._replace(label=np.repeat(plan.inputs.label[:, :1], 2, 1)))
    zoo.Bench(plan, [0]).solo(zoo.Entrant("solo", msgspec.structs.replace(CONFIG, objectives=both)))
    assert seen == [(f"solo, seed 0, {first.name}", [1.0]), ("solo, seed 0, save", [1.0])]


def test_cut_and_random_protocols_read_no_counters() -> None:
    for name in ("C", "R"):
        config = protocols.settings_of(CONFIG, name)
        assert not config.features.statistics
        assert config.features.numbers == CONFIG.features.numbers
        assert config.model.scenario_features == ("scenario",)
    assert protocols.settings_of(CONFIG, "R").meta.mode == "off"
    assert protocols.settings_of(CONFIG, "P") is CONFIG


def test_too_short_a_log_is_refused() -> None:
    with pytest.raises(logs.LogError, match="protocol C: training, validation or test has no rows; use more of the log"):
        protocols.plan("C", inputs("C").head(30), 0.1)


def test_the_plan_of_a_scenario_has_its_lists_and_their_labels_as_late_as_in_the_whole() -> None:
    whole = planned("C", lag=200)
    code = ids.of("small")
    own, rows = protocols.of_scenario(whole, code)
    lists = np.flatnonzero(whole.inputs.scenario == code)
    assert own.inputs.rows == rows.sum()
    assert np.array_equal(own.inputs.label, whole.inputs.label[rows])
    for i, place in enumerate(lists):
        assert own.inputs.known[i] == (lists < whole.inputs.known[place]).sum()
    assert (lists[: own.until] < whole.until).all()
    assert (lists[own.until :] >= whole.until).all()
    assert np.array_equal(own.counted, whole.counted[rows])


def test_a_scenario_alone_learns_from_its_own_rows_only() -> None:
    plan = planned("P")
    of_row = np.repeat(plan.inputs.scenario, np.diff(plan.inputs.start))
    other = of_row != ids.of("small")
    entrant = zoo.Entrant(zoo.ALONE, zoo.single(CONFIG))
    one, two = (zoo.Bench(p, [0]).alone(entrant).predictions[0] for p in (plan, flipped(plan, other)))
    assert np.array_equal(one[~other], two[~other])
    assert not np.array_equal(one[other], two[other])
    assert np.isfinite(one).all()


def auc(label: npt.NDArray[Any], score: npt.NDArray[Any]) -> float:
    plus, minus = score[label > 0], score[label == 0]
    return float(np.mean((plus[:, None] > minus) + (plus[:, None] == minus) / 2))


def test_a_network_of_one_scenario_and_one_objective_hears_of_no_other_label() -> None:
    def solo(plan: protocols.Plan) -> npt.NDArray[np.float32]:
        bench = zoo.Bench(plan, [0])
        return bench.solo(zoo.Entrant(zoo.SOLO, zoo.single(CONFIG))).predictions[0]

    plan = planned("P")
    other = plan.inputs.label.copy()
    other[:, 1] = 1 - other[:, 1]
    before, after = solo(plan), solo(plan._replace(inputs=plan.inputs._replace(label=other)))
    assert before.shape == plan.inputs.label.shape
    assert np.array_equal(before[:, 0], after[:, 0])
    assert not np.allclose(before[plan.counted, 1], after[plan.counted, 1])


def test_an_area_of_a_resample_is_that_of_the_rows_repeated() -> None:
    random = np.random.default_rng(0)
    label = (random.random(80) < 0.4).astype(np.float32)
    score = np.round(random.random(80), 1).astype(np.float32)
    user = random.integers(0, 9, 80).astype(np.int32)
    weight = seesaw.weights(9, 1, 30)
    found = seesaw.resampled(label, score, user, weight)
    for b in range(30):
        again = np.repeat(np.arange(80), weight[b][user])
        assert found[b] == pytest.approx(auc(label[again], score[again]))
    assert weight.sum(1).tolist() == [9] * 30


def test_a_model_against_itself_differs_by_nothing() -> None:
    label, score = np.array([0, 1, 0, 1], np.float32), np.array([0.1, 0.4, 0.5, 0.3], np.float32)
    own = seesaw.area(label, [score], np.arange(4, dtype=np.int32), seesaw.weights(4, 0, 50))
    assert seesaw.difference(own, own) == seesaw.Difference(0.0, 0.0, 1.0)


def noisy(random: np.random.Generator, n: int, edge: float) -> tuple[npt.NDArray[np.float32], ...]:
    label = (random.random(n) < 0.5).astype(np.float32)
    return label, *((strength * label + random.standard_normal(n)).astype(np.float32) for strength in (1 + edge, 1.0))


def test_the_error_of_a_difference_is_how_much_it_varies_between_logs_and_p_is_even_without_one() -> None:
    random, differences = np.random.default_rng(1), []
    user, weight = np.arange(150, dtype=np.int32), seesaw.weights(150, 0, 100)
    for _ in range(400):
        label, one, other = noisy(random, 150, 0.0)
        areas = [seesaw.area(label, [s], user, weight) for s in (one, other)]
        differences.append(seesaw.difference(*areas))
    spread = np.std([d.value for d in differences])
    assert np.mean([d.stderr for d in differences]) == pytest.approx(spread, rel=0.1)
    p = np.array([d.p for d in differences])
    assert np.mean(p < 0.05) == pytest.approx(0.05, abs=0.03)
    assert np.mean(p < 0.5) == pytest.approx(0.5, abs=0.08)


def test_a_real_difference_is_found_and_a_row_repeated_for_its_user_proves_nothing_new() -> None:
    label, one, other = noisy(np.random.default_rng(2), 600, 1.0)
    user, weight = np.arange(600, dtype=np.int32), seesaw.weights(600, 0)
    once = seesaw.difference(*(seesaw.area(label, [s], user, weight) for s in (one, other)))
    four = seesaw.difference(
        *(seesaw.area(np.repeat(label, 4), [np.repeat(s, 4)], np.repeat(user, 4), weight) for s in (one, other))
    )
    assert once.p < 0.01
    assert once.low > 0
    assert four.stderr == pytest.approx(once.stderr)


def test_seeds_that_disagree_widen_the_error() -> None:
    label, one, other = noisy(np.random.default_rng(2), 300, 0.2)
    user, weight = np.arange(300, dtype=np.int32), seesaw.weights(300, 0, 50)
    still = seesaw.area(label, [other], user, weight)
    alone = seesaw.difference(seesaw.area(label, [one, one], user, weight), still)
    mixed = seesaw.difference(seesaw.area(label, [one, other], user, weight), still)
    assert mixed.value == pytest.approx(alone.value / 2)
    spread = float(np.var(np.array([still.runs[0] + alone.value, still.runs[0]]), ddof=1)) / 2
    assert mixed.stderr**2 >= spread


@functools.cache
def judged() -> studies.Study:
    bench = zoo.Bench(planned("P"), [0, 1])
    return command.study(CONFIG, bench.plan, zoo.chosen(CONFIG, ["pepnet", "shared_bottom"]), bench, 50)


def test_a_study_has_every_figure_of_every_entrant_in_every_scenario_and_objective() -> None:
    rows = {r.id: r for r in studies.rows_of(judged(), "FILE", whole=True, command="c")}
    for name in ("pepnet", "shared_bottom", "alone", "solo", "fm32", "bias"):
        for figure in ("auc", "gauc", "logloss", "calibration"):
            for where in ("", "/home", "/small"):
                assert rows[f"P/{figure}/{name}{where}/click"].value is not None
                assert f"P/{figure}/{name}{where}/save" in rows
        assert (rows[f"P/parameters/{name}"].value or 0) > 100
        assert (rows[f"P/rows_per_s/{name}"].value or 0) > 0
        assert (rows[f"P/memory/{name}"].value or 0) > 0
    assert rows["P/auc/pepnet/click"].stderr is not None
    assert rows["P/over_alone/pepnet/small/click"].peer is not None
    assert rows["P/over_solo/alone/home/save"].value is not None
    assert rows["P/best/auc/home/click"].passed is not None
    assert rows["P/pepnet_over_shared_bottom/small"].target == 0
    assert rows["P/best/auc"].target is None
    assert rows["P/best/auc"].peer in {"pepnet", "shared_bottom"}


def test_a_difference_in_the_report_is_that_of_the_figures() -> None:
    study = judged()
    for key, d in study.differences.items():
        assert d.value == pytest.approx(study.mean("auc", key) - study.mean("auc", key._replace(name="alone")))
        assert d.stderr > 0
        assert 0 <= d.p <= 1


def test_movielens_as_a_whole_has_targets_and_a_part_of_it_none() -> None:
    study = judged()
    whole = {r.id: r for r in studies.rows_of(study, "ml1m", whole=True, command="c")}
    part = {r.id: r for r in studies.rows_of(study, "ml1m", whole=False, command="c")}
    assert whole["P/best/auc"].target == 0.795
    assert whole["P/best/logloss"].target == 0.537
    assert part["P/best/auc"].target is None
    bare = study._replace(label="P-ids", plan=study.plan._replace(inputs=study.plan.inputs._replace(lag=protocol.Lag())))
    rows = {r.id: r for r in studies.rows_of(bare, "ml1m", whole=True, command="c")}
    assert rows["P-ids/best/auc"].target is None
    late = bare._replace(plan=bare.plan._replace(inputs=bare.plan.inputs._replace(lag=protocol.Lag(rows=1000))))
    rows = {r.id: r for r in studies.rows_of(late, "ml1m", whole=True, command="c")}
    assert rows["P-ids/best/auc"].target == 0.757


def test_known_truth_asks_for_no_harm_everywhere_and_a_gain_in_small_scenarios() -> None:
    rows = {r.id: r for r in studies.rows_of(judged(), "simulate", whole=True, command="c")}
    d = judged().differences[studies.Key("pepnet", "small", 0)]
    gain = rows["P/shared_effect/small/click"]
    assert gain.value == (d.p if d.value > 0 else 1.0)
    assert gain.target == 0.01
    assert "P/shared_effect/home/click" not in rows
    assert rows["P/no_harm/home/click"].value == pytest.approx(judged().differences[studies.Key("pepnet", "home", 0)].high)
    assert rows["P/double_seesaw/home/save"].value == pytest.approx(judged().solo[studies.Key("pepnet", "home", 1)].high)
    assert not any("best/auc/" in name for name in rows)


def test_floors_and_references_are_never_the_best() -> None:
    study = judged()
    perfect: list[kinds.Figures] = [figures.Figures(rows=2_000, auc=1.0, gauc=1.0, logloss=0.1, calibration=1.0)] * 2
    for name in ("alone", "solo", "fm32", "bias"):
        found = study.figures | {studies.Key(name, "", 0): perfect}
        assert study._replace(figures=found).best in {"pepnet", "shared_bottom"}


def test_a_scenario_with_one_class_has_no_areas_and_is_named() -> None:
    plan = planned("P")
    of_row = np.repeat(plan.inputs.scenario, np.diff(plan.inputs.start))
    label = plan.inputs.label.copy()
    label[of_row == ids.of("small"), 1] = 0
    bench = zoo.Bench(plan._replace(inputs=plan.inputs._replace(label=label)), [0])
    study = command.study(CONFIG, bench.plan, zoo.chosen(CONFIG, ["pepnet"]), bench, 50)
    assert any('scenario small has 0 rows with a positive "save"' in n and "do not exist there" in n for n in study.notices)
    rows = {r.id: r for r in studies.rows_of(study, "FILE", whole=True, command="c")}
    assert rows["P/auc/pepnet/small/save"].value is None
    assert rows["P/logloss/pepnet/small/save"].value is not None
    assert rows["P/auc/pepnet/small/click"].value is not None
    assert "P/over_alone/pepnet/small/save" not in rows
    assert (rows["P/notices"].value or 0) >= 1


def test_an_objective_that_a_scenario_does_not_have_is_neither_learned_nor_judged_there() -> None:
    config = configuration.parse(SPEC.replace('action = "save"', 'action = "save"\nscenarios = ["home"]'))
    raw = inputs()
    own = protocols.masked(config, raw)
    small = np.repeat(raw.scenario, np.diff(raw.start)) == ids.of("small")
    assert np.isnan(own.label[small, 1]).all()
    assert np.isfinite(own.label[~small]).all()
    other = raw.label.copy()
    other[small, 1] = 1 - other[small, 1]
    found = []
    for d in (own, protocols.masked(config, raw._replace(label=other))):
        plan = protocols.plan("P", d, 0.1)
        found.append(command.study(config, plan, zoo.chosen(config, ["pepnet"]), zoo.Bench(plan, [0]), 20))
    for name in ("pepnet", "alone", "fm32", "bias"):
        one, two = (s.results[name].predictions[0] for s in found)
        assert np.array_equal(one, two, equal_nan=True)
        assert np.isnan(found[0].mean("auc", studies.Key(name, "small", 1)))
        assert found[0].mean("auc", studies.Key(name, "home", 1)) > 0.4
    assert found[0].figures[studies.Key("pepnet", "small", 1)][0].rows == 0
    assert not any("small" in notice and "save" in notice for notice in found[0].notices)


def test_the_command_measures_an_objective_where_it_exists_and_asks_for_no_label_elsewhere(tmp_path: pathlib.Path) -> None:
    spec = SPEC.replace('action = "save"', 'action = "save"\nscenarios = ["home"]')
    elsewhere, save = pl.when(pl.col("scenario") == "small"), pl.col("save")
    null, seven = (frame().head(800).with_columns(elsewhere.then(v).otherwise(save).alias("save")) for v in (None, 7))
    result = invoke(tmp_path, "--references", "", "--report", str(tmp_path / "r.json"), table=null, spec=spec)
    assert result.exit_code == 0, result.output
    found = {r.id: r.value for r in report.read(tmp_path / "r.json").rows}
    assert found["P/auc/pepnet/home/save"] is not None
    assert found["P/auc/pepnet/small/click"] is not None
    assert found["P/auc/pepnet/small/save"] is None
    config = configuration.parse(spec)
    of_null = logs.read(config, tmp_path / "log.parquet")
    seven.write_parquet(tmp_path / "log.parquet")
    of_seven = logs.read(config, tmp_path / "log.parquet")
    assert np.array_equal(of_null.label, of_seven.label, equal_nan=True)
    assert np.array_equal(of_null.actions.kind, of_seven.actions.kind)
    refused = invoke(tmp_path, table=null, spec=SPEC)
    assert 'column "save" holds None; a label is 0 or 1' in str(refused.exception)


def test_a_model_that_diverges_is_named_and_the_others_are_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    real = protocols.run

    def failing(config: configuration.Config, *rest: Any) -> npt.NDArray[np.float32]:
        if config.model.name == "pepnet":
            raise FloatingPointError("loss is not finite")
        return real(config, *rest)

    monkeypatch.setattr(protocols, "run", failing)
    bench = zoo.Bench(planned("P"), [0])
    study = command.study(CONFIG, bench.plan, zoo.chosen(CONFIG, ["pepnet", "shared_bottom"]), bench, 20)
    assert "pepnet" not in study.results
    assert study.notices[0] == "pepnet, seed 0: loss is not finite"
    assert study.best == "shared_bottom"


def test_a_model_that_the_configuration_does_not_suit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def picky(_: configuration.Config) -> Any:
        raise configuration.ConfigError("features: needs what is not declared")

    monkeypatch.setitem(registry.MODELS, "picky", picky)
    found = zoo.Bench(planned("P"), [0]).model(zoo.chosen(CONFIG, ["picky"])[0])
    assert found.problem == "picky, seed 0: features: needs what is not declared"


def test_predictions_that_are_not_finite_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned("P")
    broken = protocol.Scores(*(np.full_like(plan.inputs.label, np.nan) for _ in range(3)))
    monkeypatch.setattr(protocol, "run", lambda *_, **__: broken)
    with pytest.raises(FloatingPointError, match="predictions are not finite"):
        predict("P", plan)


def test_ablations_change_one_thing_each() -> None:
    found = {e.name: e.config.model for e in zoo.ablations(configuration.parse("[features]\n"))}
    base = found["pepnet"]
    wanted = {
        "no_epnet",
        "no_ppnet",
        "no_gates",
        "gradient_through_gates",
        "gamma_1",
        "depth_1",
        "depth_5",
        "width_4",
        "width_32",
    }
    assert wanted <= set(found)
    assert "width_16" not in found
    assert "gamma_2" not in found
    assert [len(found[f"depth_{d}"].hidden) for d in (1, 3, 5)] == [1, 3, 5]
    for name, model in found.items():
        changed = [f for f in model.__struct_fields__ if getattr(model, f) != getattr(base, f)]
        assert len(changed) == (0 if name == "pepnet" else 2 if name == "no_gates" else 1)


def test_gates_are_averaged_over_the_rows_of_each_scenario() -> None:
    plan = planned("P")
    trainer = step.Trainer(CONFIG)
    protocols.run(CONFIG, plan, trainer)
    found = gates.values(gates.of_trainer(trainer), plan.inputs)
    assert found
    for values in found.values():
        assert values.shape[0] == 2
        assert np.isfinite(values).all()
    plain = step.Trainer(zoo.single(CONFIG))
    assert gates.values(gates.of_trainer(plain), plan.inputs) == {}


def frame() -> pl.DataFrame:
    rows, random = 1_600, np.random.default_rng(0)
    item = random.integers(0, 20, rows)
    return pl.DataFrame(
        {
            "time": np.arange(rows) // 2 * 1_000, "request": np.arange(rows), "user": random.integers(0, 40, rows), "item": item,
            "scenario": ["home", "home", "home", "small"] * (rows // 4),
            "click": (random.random(rows) < np.where(item < 10, 0.8, 0.2)).astype(int),
            "save": (random.random(rows) < 0.3).astype(int),
            "price": pl.Series(random.random(rows)).set(pl.Series(np.arange(rows) % 7 == 0), None),
        }
    )  # fmt: skip


def invoke(tmp_path: pathlib.Path, *options: str, table: pl.DataFrame | None = None, spec: str = SPEC) -> Any:
    (frame() if table is None else table).write_parquet(tmp_path / "log.parquet")
    (tmp_path / "spec.toml").write_text(spec)
    own = ["--data", str(tmp_path / "log.parquet"), "--spec", str(tmp_path / "spec.toml"), "--seeds", "1", "--resamples", "20"]
    return CliRunner().invoke(models.app, [*own, "--models", "pepnet", *options])


def test_the_command_measures_a_parquet_log_under_every_protocol_and_twice_the_same(tmp_path: pathlib.Path) -> None:
    reports = []
    for run in ("a", "b"):
        out = tmp_path / run
        options = ["--protocol", "P,C,R", "--epochs", "2", "--out", str(out), "--report", str(tmp_path / f"{run}.json")]
        result = invoke(tmp_path, *options)
        assert result.exit_code == 0, result.output
        rows = report.read(tmp_path / f"{run}.json").rows
        reports.append({r.id: (r.value, r.stderr, r.peer, r.passed) for r in rows if "rows_per_s" not in r.id})
    assert reports[0] == reports[1]
    assert {"P/auc/pepnet/small/click", "C/logloss/alone/home/save", "R/gauc/fm32/click"} <= set(reports[0])
    pictures = sorted(p.name for p in (tmp_path / "a").glob("*.png"))
    assert {"P_AUC_over_time_click.png", "P_AUC_over_time_save.png", "P_seesaw.png", "P_gates_of_pepnet.png"} <= set(pictures)
    for name in pictures:
        body = (tmp_path / "a" / name).read_bytes()
        assert body.startswith(b"\x89PNG")
        assert body == (tmp_path / "b" / name).read_bytes()
    text = (tmp_path / "a" / "tables.md").read_text()
    assert "R, click: ids and raw attributes only; random 8:1:1, trained on the future" in text
    page = (tmp_path / "a" / "index.html").read_text()
    assert page.count("data:image/png;base64,") == len(pictures)
    assert not re.search(r'(src|href)="(?!data:)|https?://|@import|url\(', page)


def test_finished_passes_are_taken_again_only_when_settings_and_data_are_the_same(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = ["--out", str(tmp_path / "out"), "--report", str(tmp_path / "r.json")]
    assert invoke(tmp_path, *out).exit_code == 0
    before = {r.id: r.value for r in report.read(tmp_path / "r.json").rows}

    def refuse(*_: Any) -> None:
        raise FloatingPointError("trained again")

    monkeypatch.setattr(protocols, "run", refuse)
    again = invoke(tmp_path, *out, "--resume")
    assert again.exit_code == 0, again.output
    assert "trained again" not in again.output
    after = {r.id: r.value for r in report.read(tmp_path / "r.json").rows}
    assert after["P/auc/pepnet/click"] == before["P/auc/pepnet/click"]
    assert after["P/rows_per_s/pepnet"] == before["P/rows_per_s/pepnet"]
    other = invoke(tmp_path, *out, "--resume", spec=SPEC + "\n[optimizer]\ndense_rate = 0.002\n")
    assert "trained again" in other.output
    changed = invoke(tmp_path, *out, "--resume", table=frame().with_columns((1 - pl.col("click")).alias("click")))
    assert "trained again" in changed.output


def test_ablations_are_compared_with_pepnet_as_configured(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = zoo.ablations
    monkeypatch.setattr(zoo, "ablations", lambda config: [e for e in real(config) if e.name in {"pepnet", "no_gates", "depth_3"}])
    result = invoke(tmp_path, "--ablations", "--report", str(tmp_path / "r.json"))
    assert result.exit_code == 0, result.output
    rows = {r.id: r for r in report.read(tmp_path / "r.json").rows}
    assert {"P/over_pepnet/no_gates/small/click", "P/over_pepnet/depth_3/home/save", "P/auc/fm32/click"} <= set(rows)
    assert not any("alone" in name for name in rows)


def test_models_whose_scenarios_own_at_once_stand_beside_them_and_are_never_the_best(tmp_path: pathlib.Path) -> None:
    result = invoke(tmp_path, "--models", "star", "--at-once", "--references", "", "--report", str(tmp_path / "r.json"))
    assert result.exit_code == 0, result.output
    rows = {r.id: r for r in report.read(tmp_path / "r.json").rows}
    earned, owned = (rows[f"P/logloss/{name}/click"].value for name in ("star", "star_at_once"))
    assert earned != owned
    assert rows["P/best/auc"].peer == "star"
    (entrant,) = zoo.at_once(zoo.chosen(CONFIG, ["star"]))
    assert entrant.config.scenarios.prior_rows < 1 < CONFIG.scenarios.prior_rows


def test_settings_are_chosen_for_the_models_named(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "BASELINE_GRIDS", {"quality.bias_rate": (0.01, 0.3), "quality.fm_live_rate": (0.01, 0.05)})
    monkeypatch.setitem(choice.GRIDS, "optimizer.dense_rate", (0.001, 0.01))
    result = invoke(tmp_path, "--choose", "--models", "pepnet,shared_bottom", "--keys", "optimizer.dense_rate")
    assert result.exit_code == 0, result.output
    assert "P: chosen on the first 20 %" in result.output
    assert re.search(r"shared_bottom: optimizer.dense_rate = 0.01: AUC", result.output)
    assert "quality.bias_rate = " in result.output
    assert "fm_live_rate" not in result.output, "protocol P reads the rate of the factorisation machine by blocks"


@pytest.mark.parametrize("name", ["P", "C", "R"])
def test_what_lies_behind_the_first_fifth_chooses_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "BASELINE_GRIDS", {"quality.bias_rate": (0.1,), "quality.fm_rate": (0.03,)})
    d = inputs(name)
    first = d.head(round(0.2 * d.rows))
    scrambled = d.label.copy()
    scrambled[first.rows :] = 1 - scrambled[first.rows :]
    said: list[list[str]] = []
    for label in (d.label, scrambled):
        said.append([])
        plan = choice.plan(name, d._replace(label=label), 1)
        assert plan.inputs.rows == first.rows
        config = protocols.settings_of(CONFIG, name)
        choice.choose(config, plan, ["pepnet"], {"optimizer.dense_rate": (0.01,)}, said[-1].append)
    assert said[0] == said[1]
    assert len(said[0]) == (3 if name == "R" else 4)


def test_a_cut_is_chosen_for_on_the_newest_rows_of_every_user() -> None:
    plan = choice.plan("C", inputs("C"), 1)
    d, n = plan.inputs, np.diff(plan.inputs.start)
    assert plan.counted.tolist() == (np.arange(d.rows) >= d.start[plan.until]).tolist()
    for user in np.unique(d.user):
        own = np.flatnonzero(d.user == user)
        kept, held = own[own < plan.until], own[own >= plan.until]
        assert d.ts[kept].max(initial=0) <= d.ts[held].min(initial=np.iinfo(np.int64).max)
        assert n[held].sum() <= 0.2 * n[own].sum() + n[own].max()
    assert (np.diff(d.ts[: plan.until]) >= 0).all()
    assert (d.ts[d.known[: plan.until] - 1] < d.ts[: plan.until])[d.known[: plan.until] > 0].all(), "strictly earlier ones"
    assert (d.known[plan.until :] == plan.until).all(), "all is learned before the first is judged"


def test_a_model_of_ones_own_takes_part_by_its_path(tmp_path: pathlib.Path) -> None:
    own = "tests.models.test_probe:Good"
    done = invoke(
        tmp_path,
        "--models",
        f"shared_bottom,{own}",
        "--references",
        "",
        "--report",
        str(tmp_path / "r.json"),
        table=frame().head(800),
    )
    assert done.exit_code == 0, done.output
    found = {r.id: r.value for r in report.read(tmp_path / "r.json").rows}
    assert found[f"P/auc/{own}/home/click"] is not None
    assert found["P/notices"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--models", "pepnet", "--protocol", ","], r"--protocol: name at least one of P, C, R"),
        (["--models", "pepnet,nothing"], r'--models: "nothing" is unknown; the table has'),
        (["--models", "tests.models.test_probe:Nobody"], r'model.name: "tests.models.test_probe" has no "Nobody"'),
        (["--models", "tests.models.test_probe:NoTrunk"], r'model.name: "tests.models.test_probe:NoTrunk" '),
        (["--protocol", "Q"], r"--protocol 'Q': there are P, C, R"),
        (["--resume"], r"--resume needs --out DIR"),
        (["--references", "nobody"], r"--references 'nobody': there are alone, solo"),
        (["--bars", "obd=x.json"], r"--bars 'obd=x.json': give DATA=FILE"),
        (["--bars", "ml1m=nowhere.json"], r"--bars 'ml1m=nowhere.json': .*; give a file that --report wrote"),
        (["--keys", "model.speed"], r"--keys 'model.speed': --choose knows model.wide"),
        (["--lag", "soon"], r"--lag 'soon'"),
        (["--data", "nowhere.parquet"], r"--data nowhere.parquet: no such file"),
    ],
)
def test_an_option_that_cannot_be_followed_is_refused(tmp_path: pathlib.Path, options: list[str], message: str) -> None:
    result = invoke(tmp_path, *options)
    assert isinstance(result.exception, configuration.Refused)
    assert re.search(message, str(result.exception))


def test_a_log_of_ones_own_needs_a_spec() -> None:
    result = CliRunner().invoke(models.app, ["--data", "x.parquet"])
    assert "needs --spec SPEC.toml" in str(result.exception)


@pytest.mark.parametrize(
    ("table", "spec", "message"),
    [
        (frame(), SPEC.replace("item.price", "item.weight"), r'the feature spec reads "item.weight": add it as'),
        (frame().with_columns(pl.col("item").cast(pl.Float64)), SPEC, r'column "item" holds floats, and an id must be text'),
        (frame().with_columns(pl.lit(float("nan")).alias("price")), SPEC, r'"price" holds NaN or an infinity; write null'),
        (frame().with_columns(pl.lit(0).alias("save")), SPEC, r'objective "save" has no labels to tell apart: all are 0'),
        (frame().drop("save"), SPEC, r'objective "save" needs its label there'),
        (frame(), SPEC.replace('"scenario", "item_rate"', '"nothing"'), r'model.scenario_features: "nothing" is not a declared'),
    ],
)  # fmt: skip
def test_a_log_or_spec_that_cannot_be_measured_is_refused(
    tmp_path: pathlib.Path, table: pl.DataFrame, spec: str, message: str
) -> None:
    result = invoke(tmp_path, table=table, spec=spec)
    assert isinstance(result.exception, configuration.Refused)
    assert re.search(message, str(result.exception))


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_measured(tmp_path: pathlib.Path) -> None:
    result = invoke(tmp_path, "--out", str(tmp_path / "log.parquet"))
    assert isinstance(result.exception, configuration.Refused)
    assert "name a folder that can be written" in str(result.exception)


def test_where_no_model_could_be_measured_the_command_fails_and_says_why(tmp_path: pathlib.Path) -> None:
    result = invoke(tmp_path, "--models", "dupn", "--references", "", "--report", str(tmp_path / "r.json"))
    assert result.exit_code == 1
    assert "dupn reads categories of the user's last actions" in result.output
    assert "no model could be measured under P" in result.output
    assert any(r.id == "P/auc/fm32/click" for r in report.read(tmp_path / "r.json").rows)
    twice = invoke(tmp_path, "--models", "dupn,lr,dupn", "--references", "")
    assert twice.exit_code == 0
    assert twice.output.count("dupn reads categories") == 1


def test_plots_without_matplotlib_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(configuration.Refused, match=r"pip install 'thousandfold\[bench\]'"):
        pages.pyplot()


def test_every_data_set_has_configurations_that_load() -> None:
    for data, name in itertools.product(command.OWN, protocols.PROTOCOLS):
        config = command.configured(data, None, name)
        assert config.features.categories
        assert len(config.scenarios.known) >= 3


@pytest.mark.parametrize("data", command.WORLDS)
def test_the_simulated_log_has_the_scenarios_and_objectives_of_its_configuration(data: str) -> None:
    config = command.configured(data, None, "P")
    found = command.open_log(config, data, None, 2_000, lambda _: None)
    assert set(found.lists.names.values()) == set(config.scenarios.known)
    assert 1_900 <= found.rows <= 2_000
    assert (found.label.mean(0) > 0.01).all()


def test_another_world_can_be_drawn_but_a_log_is_one() -> None:
    config = command.configured("simulate", None, "P")
    reported, same, other = (command.open_log(config, "simulate", None, 2_000, print, seed) for seed in (None, 0, 1))
    assert (reported.label == same.label).all()
    assert reported.label.shape != other.label.shape or (reported.label != other.label).any()
    with pytest.raises(logs.LogError, match=r"--world-seed 1: --data obd is one log; it is for simulate, simulate7"):
        command.open_log(config, "obd", None, None, print, 1)


def bar(name: str, value: float | None = 1.0, *, passed: bool | None = True) -> report.Row:
    line = report.row(name, 0.0 if value is None else value, "AUC", command="c")
    return msgspec.structs.replace(line, value=value, passed=passed)


def test_every_bar_is_in_the_collected_report_and_what_no_run_judged_is_not_run() -> None:
    rows = {r.id: r for r in bars.collected({"ml1m": [bar("P/best/auc"), bar("C/best/auc", passed=None)]})}
    assert len(rows) == len(list(bars.bars()))
    assert rows["ml1m/P/best/auc"].passed is True
    assert rows["ml1m/C/best/auc"].passed is None
    assert rows["ml1m/C/best/auc"].peer == "not run whole: 1.0000"
    assert rows["simulate/P-ids/shared_effect/small/save"].peer == "not run"
    assert rows["simulate/P-ids/shared_effect/small/save"].target == 0.01
    assert rows["simulate7/P-ids/double_seesaw/contrary/hate"].command == "thousandfold bench models --data simulate7"
    told = tables.verdicts(list(rows.values()))
    assert [row[-1] for row in told.rows].count("not run") == len(rows) - 1


def test_a_bar_that_a_later_report_does_not_judge_keeps_its_verdict(tmp_path: pathlib.Path) -> None:
    missed, untried = bar("R/best/auc", 0.5, passed=False), bar("R/best/auc", None, passed=None)
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for file, line in zip(files, (missed, untried), strict=True):
        report.write(file, [line])
    result = CliRunner().invoke(
        models.app, ["--bars", ",".join(f"ml1m={f}" for f in files), "--report", str(tmp_path / "all.json")]
    )
    assert result.exit_code == 0, result.output
    rows = {r.id: r for r in report.read(tmp_path / "all.json").rows}
    assert rows["ml1m/R/best/auc"].passed is False
    assert "0 pass, 1 miss" in result.output
    assert "ml1m/R/best/auc" in (tmp_path / "all.md").read_text()


def test_a_run_tells_the_bars_of_its_data_that_it_does_not_judge() -> None:
    rows = studies.rows_of(judged(), "simulate", whole=True, command="c")
    lacking = {r.id: r for r in bars.missing("simulate", rows)}
    assert lacking["P-ids/no_harm/large/click"].peer == "not run"
    assert bars.missing("FILE.parquet", rows) == []
    assert not set(lacking) & {r.id for r in rows}


def test_tables_name_every_entrant_and_mark_differences_that_are_no_noise() -> None:
    study = judged()
    overall = list(tables.overall(study))
    assert [row[0] for row in overall[0].rows] == ["pepnet", "shared_bottom", "alone", "solo", "fm32", "bias"]
    assert len(overall) == 2
    assert len(list(tables.scenarios(study))) == 4
    table, single = tables.seesaws(study)
    for grid, differences, reference in ((table, study.differences, "alone"), (single, study.solo, "solo")):
        assert {row[0] for row in grid.rows} == set(study.results) - {reference}
        d = differences[studies.Key("bias", "home", 0)]
        row = next(row for row in grid.rows if row[0] == "bias")
        assert row[1] == f"{d.value:+.4f}" + ("*" if d.p < 0.01 else "")
        starred = [float(cell.strip("*")) for cell in row[1:-2] if cell.endswith("*")]
        assert row[-2:] == [str(sum(v > 0 for v in starred)), str(sum(v < 0 for v in starred))]


def test_every_model_of_the_table_can_take_part() -> None:
    assert [e.name for e in zoo.chosen(CONFIG, [])] == list(registry.MODELS)
    for entrant in zoo.chosen(CONFIG, []):
        assert entrant.config == msgspec.structs.replace(CONFIG, model=entrant.config.model)
