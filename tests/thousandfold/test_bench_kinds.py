import pathlib
import re
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from typer.testing import CliRunner

from state import config as configuration
from state import ids
from thousandfold.bench import baselines, figures, logs, models, protocol, report
from thousandfold.bench.models import kinds, protocols, seesaw, zoo
from thousandfold.data import blocks

F32 = npt.NDArray[np.float32]
SPEC = """
[scenarios]
known = ["home", "small"]
[[objectives]]
name = "click"
action = "click"
[[objectives]]
name = "stars"
action = "grade"
kind = "multiclass"
classes = 3
[[objectives]]
name = "length"
action = "read"
kind = "regression"
transform = "log1p"
scenarios = ["home"]
[[objectives]]
name = "order"
action = "buy"
kind = "ranking"
[model]
embedding_width = 4
hidden = [8, 4]
gate_hidden = 4
[optimizer]
embedding_rate = 0.05
dense = "adagrad"
dense_rate = 0.05
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
"""
CONFIG = configuration.parse(SPEC)
ITEMS = 12


def frame(rows: int = 3_200) -> pl.DataFrame:
    """Lists of four; everything depends on the item: its class is item % 3, its length is told of every other row of home."""
    random, lists = np.random.default_rng(0), rows // 4
    item = np.concatenate([random.choice(ITEMS, 4, replace=False) for _ in range(lists)])
    request = np.arange(rows) // 4
    home = request % 4 != 3
    length = np.where(home & (np.arange(rows) % 2 == 0), 10.0 * (item + 1) * random.uniform(0.8, 1.2, rows), np.nan)
    bought = (random.random(rows) < np.where(item < 6, 0.7, 0.1)) * (1 + (item < 3))
    return pl.DataFrame(
        {
            "time": request * 1_000, "request": request, "user": (request * 7) % 40, "item": item,
            "scenario": np.where(home, "home", "small"),
            "click": (random.random(rows) < np.where(item < 6, 0.8, 0.2)).astype(int),
            "stars": np.where(random.random(rows) < 0.8, item % 3, random.integers(0, 3, rows)),
            "length": pl.Series(length).fill_nan(None), "order": bought.astype(float),
        }
    )  # fmt: skip


def rows_of(label: list[float], lists: list[int] | None = None, user: list[int] | None = None) -> kinds.Rows:
    n = len(label)
    of, whose = np.array(lists or [0] * n), np.array(user or list(range(n)), np.int32)
    return kinds.Rows(np.array(label, np.float32), np.zeros(n, np.uint64), of, whose)


def column(values: list[float]) -> F32:
    return np.array(values, np.float32)[:, None]


def test_classes_are_judged_by_area_accuracy_and_logloss_and_one_that_does_not_occur_counts_nowhere() -> None:
    p = np.array([[0.7, 0.2, 0.1, 0], [0.3, 0.5, 0.2, 0], [0.5, 0.3, 0.2, 0], [0.2, 0.2, 0.6, 0]], np.float32)
    found = kinds.judge("multiclass", rows_of([0, 1, 1, 2]), p)
    assert isinstance(found, figures.ClassFigures)
    assert found.accuracy == 0.75
    assert found.logloss == pytest.approx(-np.mean(np.log([0.7, 0.5, 0.3, 0.6])))
    assert found.macro_auc == 1.0
    worse = kinds.judge("multiclass", rows_of([0, 1, 1, 2]), p[::-1])
    assert isinstance(worse, figures.ClassFigures)
    assert worse.macro_auc == pytest.approx(1 / 3)


def test_values_are_judged_against_the_mean_of_the_same_labels() -> None:
    found = kinds.judge("regression", rows_of([1, 2, 3, 6]), column([1, 3, 3, 4]))
    assert found == pytest.approx((4, 1 - 5 / 14, (5 / 4) ** 0.5, 3 / 4))
    same = kinds.judge("regression", rows_of([1, 2, 3, 6]), column([3] * 4))
    assert same == pytest.approx((4, 0, 3.5**0.5, 1.5))
    assert np.isnan(kinds.judge("regression", rows_of([2, 2]), column([1, 2]))[1])


def test_ranks_are_judged_within_their_list_by_what_a_row_is_worth() -> None:
    rows = rows_of([0, 5, 1, 2, 0, 3, 3], [0, 0, 0, 1, 1, 2, 2])
    found = kinds.judge("ranking", rows, column([3, 2, 1, 0.5, 0.5, 9, 1]))
    assert isinstance(found, figures.ListFigures)
    assert found.list_auc == pytest.approx((3 * 0.4 + 2 * 0.5) / 5)
    places = 1 / np.log2(np.arange(2, 5))
    first = (5 * places[1] + 1 * places[2]) / (5 * places[0] + 1 * places[1])
    assert found.ndcg == pytest.approx((first + (1 + places[1]) / 2) / 2)
    shifted = kinds.judge("ranking", rows, column([13, 12, 11, 0.5, 0.5, 9, 1]))
    assert shifted == found
    assert np.isnan(kinds.judge("ranking", rows_of([1, 1]), column([1, 2]))[1:]).all()


def test_rows_without_a_prediction_are_left_out() -> None:
    for kind in ("binary", "regression", "ranking"):
        whole, holed = rows_of([1, 0, 1, 0, 1]), column([0.9, 0.2, 0.3, 0.4, np.nan])
        assert kinds.judge(kind, whole, holed) == kinds.judge(kind, rows_of([1, 0, 1, 0]), holed[:4])


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_the_area_of_a_resample_is_the_figure_of_the_rows_repeated(kind: str) -> None:
    random, n, users = np.random.default_rng(3), 90, 9
    lists = np.sort(random.integers(0, 30, n))
    user = random.integers(0, users, 30).astype(np.int32)[lists]
    label = {"multiclass": random.integers(0, 3, n), "regression": random.normal(3, 1, n)}.get(kind, random.integers(0, 2, n))
    score = random.random((n, 3 if kind == "multiclass" else 1)).astype(np.float32)
    rows = kinds.Rows(label.astype(np.float32), np.zeros(n, np.uint64), lists, user)
    weight = seesaw.weights(users, 1, 20)
    found = kinds.area(kind, rows, [score], weight)
    assert found.runs == [getattr(kinds.judge(kind, rows, score), kinds.KINDS[kind].headline)]
    for b in range(20):
        times = weight[b][user]
        # A list that is drawn twice is two lists.
        again = np.concatenate([np.flatnonzero(times > k) for k in range(times.max())])
        of = np.concatenate([lists[times > k] + 100 * k for k in range(times.max())])
        drawn = kinds.Rows(rows.label[again], rows.group[again], of, user[again])
        expected = getattr(kinds.judge(kind, drawn, score[again]), kinds.KINDS[kind].headline)
        assert found.resamples[b] == pytest.approx(expected, rel=1e-6)


def invoke(tmp_path: pathlib.Path, *options: str) -> Any:
    frame().write_parquet(tmp_path / "log.parquet")
    (tmp_path / "spec.toml").write_text(SPEC)
    own = ["--data", str(tmp_path / "log.parquet"), "--spec", str(tmp_path / "spec.toml"), "--seeds", "1", "--resamples", "20"]
    return CliRunner().invoke(models.app, [*own, *options])


def test_the_command_judges_every_kind_by_its_own_figures_in_every_scenario_that_has_it(tmp_path: pathlib.Path) -> None:
    result = invoke(
        tmp_path, "--models", "pepnet", "--references", "alone", "--report", str(tmp_path / "r.json"),
        "--out", str(tmp_path / "out"),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found = {r.id: r for r in report.read(tmp_path / "r.json").rows}
    assert found["P-ids/notices"].value == 0
    value = {name.removeprefix("P-ids/"): r.value for name, r in found.items() if r.value is not None}
    for name in ("pepnet", "alone", "fm32", "bias"):
        for of in (name, f"{name}/home", f"{name}/small"):
            assert value[f"macro_auc/{of}/stars"] > 0.7
            assert value[f"accuracy/{of}/stars"] > 0.5
            assert value[f"logloss/{of}/stars"] < np.log(3)
            assert value[f"list_auc/{of}/order"] > 0.6
            assert value[f"ndcg/{of}/order"] > 0.6
        for figure in ("r2", "rmse", "mae"):
            assert value[f"{figure}/{name}/length"] == value[f"{figure}/{name}/home/length"]
            assert f"{figure}/{name}/small/length" not in value
        assert value[f"r2/{name}/length"] > 0.2
    assert found["P-ids/over_alone/pepnet/small/stars"].unit == "macro AUC"
    assert found["P-ids/best/r2/home/length"].passed is not None
    assert found["P-ids/best/list_auc/small/order"].passed is not None
    text = (tmp_path / "out" / "tables.md").read_text()
    assert "| model | R2 | ± se | RMSE | MAE | R2 home | R2 small |" in text
    assert "| model | list AUC | ± se | nDCG@10 | over alone | p |" in text
    assert (tmp_path / "out" / "P-ids_macro_AUC_over_time_stars.png").exists()


def test_single_rows_cannot_be_ranked_and_the_first_objective_chosen_by_must_be_binary(tmp_path: pathlib.Path) -> None:
    refused = invoke(tmp_path, "--protocol", "R").exception
    assert isinstance(refused, configuration.Refused)
    assert 'objective "order" ranks the rows of a list, and R reads single rows' in str(refused)
    (tmp_path / "spec.toml").write_text(re.sub(r'name = "click"\naction = "click"', "", SPEC, count=1))
    first = SPEC.index("[[objectives]]", SPEC.index("[[objectives]]") + 1)
    (tmp_path / "spec.toml").write_text(SPEC[: SPEC.index("[[objectives]]")] + SPEC[first:])
    own = ["--data", str(tmp_path / "log.parquet"), "--spec", str(tmp_path / "spec.toml"), "--choose"]
    assert "the first objective must be binary" in str(CliRunner().invoke(models.app, own).exception)


def test_random_rows_of_classes_and_values_stop_at_the_epoch_that_validates_best(tmp_path: pathlib.Path) -> None:
    frame().write_parquet(tmp_path / "log.parquet")
    config = configuration.parse(SPEC[: SPEC.index('[[objectives]]\nname = "order"')] + SPEC[SPEC.index("[model]") :])
    config = protocols.settings_of(config, "R")
    log = logs.read(config, tmp_path / "log.parquet")
    plan = protocols.plan("R", protocols.masked(config, protocol.prepare(config, log, protocol.Lag())), 0.1, epochs=3)
    result = zoo.Bench(plan, [0]).model(zoo.chosen(config, ["shared_bottom"])[0])
    predicted = result.predictions[0][plan.counted]
    assert predicted.shape[1] == 5
    assert predicted[:, 1:4].sum(1) == pytest.approx(1, abs=1e-5)
    told = np.isfinite(plan.inputs.label[plan.counted, 2])
    assert figures.value_figures(plan.inputs.label[plan.counted, 2][told], predicted[told, 4]).r2 > 0.5


def test_labels_of_a_file_are_actions_with_their_values(tmp_path: pathlib.Path) -> None:
    frame().write_parquet(tmp_path / "log.parquet")
    log = logs.read(CONFIG, tmp_path / "log.parquet")
    row = {
        (r, i): n for n, (r, i) in enumerate(zip(np.repeat(log.lists.request, 4).tolist(), log.lists.item.tolist(), strict=True))
    }
    a = log.actions
    for k in range(0, len(a.ts), 7):
        n = row[int(a.request[k]), int(a.item[k])]
        o = [x.action for x in CONFIG.objectives].index(CONFIG.action_kinds[a.kind[k]])
        assert a.value[k] == (log.label[n, o] if CONFIG.objectives[o].kind in {"multiclass", "regression"} else 1)
    assert (np.diff(a.ts) >= 0).all()


def test_actions_of_blocks_with_values_are_labels_of_every_kind_and_without_them_are_refused() -> None:
    world = blocks.World(
        "w", blocks.Entities(["u"], {}), blocks.Entities(["a", "b", "c"], {}), ("home",), ("click", "grade", "buy")
    )
    none = np.zeros((0, 2), np.int64)
    block = blocks.Block(
        0, np.zeros(1, np.int32), np.zeros(1, np.int16), np.array([5]), np.zeros(1, np.int64), np.array([0, 3]),
        np.array([2, 0, 1], np.int32), np.zeros(3, np.float32), np.zeros(4, np.int64), np.array([2, 0, 0, 1], np.int32),
        np.array([0, 1, 2, 2], np.int16), np.ones(4, np.int64), np.zeros(4, np.int64), none, none,
        np.array([1, 2, 7, 3], np.float32),
    )  # fmt: skip
    config = configuration.parse(SPEC.replace('action = "read"', 'action = "buy"\nmin_value = 5'))
    log = logs.from_blocks(config, world, [block])
    expected = [[1, np.nan, np.nan, 0], [0, 2, 7, 7], [0, np.nan, np.nan, 3]]
    assert np.array_equal(log.label, np.array(expected, np.float32), equal_nan=True)
    assert sorted(log.actions.value.tolist()) == [1, 2, 3, 7]
    with pytest.raises(logs.LogError, match="actions of w have no values"):
        logs.from_blocks(config, world, [block._replace(a_value=None)])
    with pytest.raises(logs.LogError, match='"grade" of w has what is no class, 0 to 2'):
        logs.from_blocks(config, world, [block._replace(a_value=np.full(4, 3, np.float32))])


def values(lists: int = 800) -> protocol.Inputs:
    """A value that is the user's plus the item's, told of two rows in three."""
    random = np.random.default_rng(1)
    user, item = random.integers(0, 10, lists), random.integers(0, 10, 2 * lists)
    label = (5.0 + np.repeat(user, 2) / 5 - item / 5)[:, None].astype(np.float32)
    label[random.random(2 * lists) < 1 / 3] = np.nan
    hashed = ids.mix(np.stack([np.repeat(user, 2), item], 1).astype(np.uint64), np.array([1, 2], np.uint64))
    n, zero = np.arange(lists), np.zeros(lists, np.uint64)
    return protocol.Inputs(
        zero, user.astype(np.uint64), zero, zero, n, 2 * np.arange(lists + 1), n, item.astype(np.uint64), hashed[:, 0], hashed,
        np.zeros((2 * lists, 0), np.float32), label, {}, protocol.Lag(),
    )  # fmt: skip


def test_baselines_learn_values_around_their_mean_and_nothing_from_rows_without_one() -> None:
    d = values()
    late = np.arange(d.rows) >= d.rows // 2
    told = late & np.isfinite(d.label[:, 0])
    for found in (baselines.bias(d, 0, 0.1, linear=True), baselines.fm32(d, 0, 0.05, 4, 0, linear=True)):
        assert np.isfinite(found).all()
        assert figures.value_figures(d.label[told, 0], found[told]).r2 > 0.7
    empty = d._replace(label=np.full_like(d.label, np.nan))
    assert (baselines.bias(empty, 0, 0.1) == 0.5).all()
    assert np.ptp(baselines.fm32(empty, 0, 0.05, 4, 0, linear=True)) < 0.01
