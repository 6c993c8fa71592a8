import datetime as dt
import functools
import importlib.util
import itertools
import pathlib
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from learner import episodes
from state import config as configuration
from state import ids
from thousandfold.bench import baselines, figures, logs, protocol, quality, report
from thousandfold.data import simulator

ROOT = pathlib.Path(__file__).parents[2]
SPEC = """
[model]
embedding_width = 4
hidden = [8, 4]
gate_hidden = 4
[embedding]
capacity = 20000
[support]
size = 4
[quality]
block_rows = 100
[actions]
other = ["view"]
[features]
categories = [
  { name = "user", source = "user_id" },
  { name = "item", source = "item_id" },
  { name = "scenario", source = "scenario" },
  { name = "tags", source = "item.tags", max_values = 2 },
]
numbers = [{ name = "price", source = "item.price" }]
statistics = [
  { name = "item_rate", key = ["item"], kind = "rate", prior = 10 },
  { name = "user_clicks", key = ["user"], kind = "actions" },
]
recent = [{ name = "views", match = "item", action = "view", value = "count" }]
"""
CONFIG = configuration.parse(SPEC)
SMALL = simulator.Settings(users=60, items=60, delay_median_s=0, delay_p90_s=0, base=0.0, lists_per_s=5)


@functools.cache
def log() -> logs.Log:
    made = simulator.Simulator(SMALL, 3)
    return logs.head(logs.from_blocks(CONFIG, made.world, list(itertools.islice(made.events(), 1))), 3_000)


def inputs(lag: protocol.Lag = protocol.Lag(), found: logs.Log | None = None) -> protocol.Inputs:  # noqa: B008  (immutable)
    return protocol.prepare(CONFIG, found or log(), lag)


def pairs(label: list[int], score: list[float]) -> float:
    """AUC by its definition."""
    plus = [s for s, y in zip(score, label, strict=True) if y]
    minus = [s for s, y in zip(score, label, strict=True) if not y]
    return float(np.mean([(p > m) + (p == m) / 2 for p in plus for m in minus]))


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(0, 4)), min_size=2, max_size=40))
def test_gauc_is_the_mean_auc_of_groups_with_both_labels_weighted_by_rows(rows: list[tuple[int, int, int]]) -> None:
    expected, weight = 0.0, 0
    for group in range(3):
        own = [(y, float(s)) for g, y, s in rows if g == group]
        if len({y for y, _ in own}) == 2:
            expected += len(own) * pairs([y for y, _ in own], [s for _, s in own])
            weight += len(own)
    g, y, s = (np.array(c) for c in zip(*rows, strict=True))
    found = figures.gauc(g, y, s.astype(float))
    assert np.isnan(found) if not weight else found == pytest.approx(expected / weight)


def test_figures_leave_out_rows_without_a_score() -> None:
    found = figures.figures(np.zeros(4), np.array([1, 0, 1, 0]), np.array([0.5, 0.25, np.nan, 0.25]))
    assert found.rows == 3
    assert found.auc == 1
    assert found.calibration == pytest.approx(1.0)
    assert found.logloss == pytest.approx(-(np.log(0.5) + 2 * np.log(0.75)) / 3)


def test_labels_are_known_strictly_later_and_after_the_lag() -> None:
    ts, start = np.array([0, 0, 5_000, 9_000]), np.array([0, 2, 4, 6, 8])
    assert protocol.known_lists(ts, start, protocol.Lag()).tolist() == [0, 0, 2, 3]
    assert protocol.known_lists(ts, start, protocol.Lag(seconds=4)).tolist() == [0, 0, 2, 2]
    assert protocol.known_lists(ts, start, protocol.Lag(rows=2)).tolist() == [0, 0, 1, 2]
    assert protocol.known_lists(ts, start, protocol.Lag(rows=100)).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("lag", [protocol.Lag(), protocol.Lag(rows=300), protocol.Lag(seconds=20)])
def test_features_and_scores_never_depend_on_labels_that_are_not_known(lag: protocol.Lag) -> None:
    whole = log()
    row = np.r_[0, np.cumsum(whole.lists.n_items)]
    cut = len(whole.lists.ts) // 2
    flipped = whole.label.copy()
    flipped[row[cut] :] = 1 - flipped[row[cut] :]
    late = np.isin(whole.actions.request, whole.lists.request[cut:]) & (whole.actions.kind == 0)
    changed = whole._replace(label=flipped, actions=logs.chosen(whole.actions, np.flatnonzero(~late)))
    before, after = inputs(lag), inputs(lag, changed)
    first = int(np.searchsorted(before.known, cut, side="right"))
    reads = int(before.start[first])
    assert reads > row[cut]
    assert np.array_equal(before.x[:reads], after.x[:reads])
    assert not np.array_equal(before.x[reads:], after.x[reads:])
    a, b = protocol.run(CONFIG, before), protocol.run(CONFIG, after)
    assert np.array_equal(a.adapted[:reads], b.adapted[:reads])
    assert not np.array_equal(a.adapted[reads:], b.adapted[reads:])
    models: tuple[Callable[[protocol.Inputs], npt.NDArray[np.float32]], ...] = (
        lambda d: baselines.bias(d, 0, 0.1),
        lambda d: baselines.fm32(d, 0, 0.05, 4, 0),
        lambda d: baselines.river(d, 0, 0.01),
    )
    for model in models:
        one, other = model(before), model(after)
        assert np.array_equal(one[:reads], other[:reads])
        assert not np.array_equal(one[reads:], other[reads:])


def test_a_block_is_scored_by_the_model_as_it_was_before_the_block() -> None:
    d = inputs()
    whole = protocol.run(CONFIG, d)
    untrained = protocol.run(msgspec.structs.replace(CONFIG, quality=configuration.Quality(block_rows=10**6)), d)
    first = int(d.start[episodes.cut(np.diff(d.start), 100)[0][1]])
    assert np.array_equal(whole.unadapted[:first], untrained.unadapted[:first])
    assert not np.allclose(whole.unadapted[-500:], untrained.unadapted[-500:])
    assert not np.allclose(whole.live[:first], whole.adapted[:first])


def test_supports_are_the_newest_known_rows_of_the_task_strictly_before_the_list() -> None:
    d = inputs(protocol.Lag(rows=200))
    known, size = protocol.Supports(CONFIG, d), CONFIG.support.size
    asked = [(a, min(a + 13, len(d.ts))) for a in range(0, len(d.ts), 13)]
    for first, last in asked:
        n_support, rows = known.of(first, last)
        ends = np.cumsum(n_support)
        for i in range(first, last):
            found = rows[ends[i - first] - n_support[i - first] : ends[i - first]]
            earlier = [
                (int(d.ts[j]), int(d.request[j]), int(d.item[r]), r)
                for j in range(int(d.known[i]))
                if d.task[j] == d.task[i] and d.ts[j] < d.ts[i]
                for r in range(int(d.start[j]), int(d.start[j + 1]))
            ]
            expected = [r for *_, r in sorted(earlier)[-size:]]
            assert found["item"].tolist() == d.item[expected].tolist()
            assert np.array_equal(found["x"], d.x[expected])
            assert np.array_equal(found["label"], d.label[expected])


def test_the_same_seed_gives_the_same_scores_and_another_seed_others() -> None:
    d = inputs().head(600)
    first, again = protocol.run(CONFIG, d), protocol.run(CONFIG, d)
    other = protocol.run(quality.override(CONFIG, "learner.seed", 1), d)
    assert np.array_equal(first.adapted, again.adapted)
    assert not np.array_equal(first.adapted, other.adapted)


def test_every_model_learns_something_and_the_report_has_every_figure() -> None:
    d = inputs()
    measured = quality.measure(CONFIG, d, [0, 1])
    rows = {r.id: r for r in quality.rows_of(CONFIG, d, measured, {"auc": 0.1, "gauc": 0.99}, "c")}
    for model in ("pepnet", "unadapted", "bias_tuning", "river", "fm32", "fm32_live", "pepnet_live"):
        found = rows[f"auc/{model}"].value
        assert found is not None
        assert found > 0.55
    wanted = {f"{f}/{m}{s}" for f in ("auc", "gauc", "logloss", "calibration") for m in ("pepnet", "bias") for s in ("", "/home")}
    assert wanted <= set(rows)
    assert rows["auc/pepnet"].target == 0.1
    assert rows["gauc/pepnet"].passed is False
    assert rows["auc/pepnet"].stderr is not None
    for figure, suffix in itertools.product(("auc", "gauc"), ("", "/home")):
        best = max(rows[f"{figure}/{m}{suffix}"].value or 0 for m in quality.PEERS)
        row, live = rows[f"{figure}/pepnet{suffix}"], rows[f"{figure}/pepnet_live{suffix}"]
        assert row.passed is ((row.value or 0) > best and (row.target is None or (row.value or 0) >= row.target))
        assert live.passed is ((live.value or 0) > (rows[f"{figure}/fm32_live{suffix}"].value or 0))
    assert rows["logloss/pepnet"].passed is None
    assert rows["auc/river"].stderr is None
    assert next(quality.tables(CONFIG, d, measured, "0")).row_count == 8


def test_settings_are_chosen_from_the_first_fifth_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "GRIDS", {"optimizer.dense_rate": (0.001, 0.01), "model.wide": ("product", "fm")})
    monkeypatch.setattr(quality, "BASELINE_GRIDS", {"quality.bias_rate": (0.01, 0.3), "quality.fm_live_rate": (0.01, 0.05)})
    d = inputs()
    scrambled = d.label.copy()
    part = d.head(round(0.2 * d.rows)).rows
    scrambled[part:] = 1 - scrambled[part:]
    said: list[str] = []
    chosen = quality.choose(CONFIG, d, said.append)
    assert chosen == quality.choose(CONFIG, d._replace(label=scrambled), lambda _: None)
    assert set(chosen) == {"optimizer.dense_rate", "model.wide", "quality.bias_rate", "quality.fm_live_rate"}
    assert f'model.wide = "{chosen["model.wide"]}"' in quality.written(chosen)
    assert len(said) == 7


@pytest.mark.parametrize(
    ("text", "lag"),
    [("0", (0, 0)), ("1000", (1000, 0)), ("50rows", (50, 0)), ("30s", (0, 30)), ("10m", (0, 600)), ("2h", (0, 7200))],
)
def test_a_lag_is_rows_or_a_time(text: str, lag: tuple[int, float]) -> None:
    assert quality.lag_of(text) == lag


@pytest.mark.parametrize("text", ["", "soon", "-1", "-5s", "1.5", "nans"])
def test_another_lag_is_refused(text: str) -> None:
    with pytest.raises(logs.LogError, match="--lag"):
        quality.lag_of(text)


def frame(**columns: Any) -> pl.DataFrame:
    """Three lists of two, out of order in the file."""
    own: dict[str, Any] = {
        "time": [2_000, 2_000, 1_000, 1_000, 3_000, 3_000],
        "request": ["b", "b", "a", "a", "c", "c"],
        "user": [1, 1, 1, 1, 2, 2],
        "item": ["x", "y", "x", "z", "y", "x"],
        "scenario": ["home"] * 6,
        "click": [1, 0, 0, 1, 0, 1],
        "tags": [["t"], [], ["t", "u"], None, ["u"], ["t"]],
        "item.price": [1.5, None, 2.0, 3.0, 1.0, 1.0],
    }
    return pl.DataFrame({k: v for k, v in (own | columns).items() if v is not None})


def read(tmp_path: pathlib.Path, table: pl.DataFrame, actions: pl.DataFrame | None = None) -> logs.Log:
    table.write_parquet(tmp_path / "log.parquet")
    if actions is not None:
        actions.write_parquet(tmp_path / "actions.parquet")
    return logs.read(CONFIG, tmp_path / "log.parquet", None if actions is None else tmp_path / "actions.parquet")


def test_a_parquet_log_becomes_lists_in_order_of_time(tmp_path: pathlib.Path) -> None:
    found = read(tmp_path, frame())
    assert found.lists.ts.tolist() == [1_000, 2_000, 3_000]
    assert found.lists.n_items.tolist() == [2, 2, 2]
    assert found.lists.user.tolist() == [ids.of(1), ids.of(1), ids.of(2)]
    assert found.lists.item.tolist() == [ids.of(i) for i in "xzxyyx"]
    assert found.lists.ids[0].tolist() == [ids.of(1), ids.of("x"), ids.of("home"), ids.of("t"), ids.of("u")]
    assert found.lists.ids[1, 3:].tolist() == [ids.PAD, ids.PAD]
    assert np.array_equal(found.lists.numbers[:, 0], np.array([2, 3, 1.5, np.nan, 1, 1], np.float32), equal_nan=True)
    assert found.label[:, 0].tolist() == [0, 1, 1, 0, 0, 1]
    assert found.actions.ts.tolist() == [1_001, 2_001, 3_001]
    assert found.actions.item.tolist() == [ids.of("z"), ids.of("x"), ids.of("x")]


def test_timestamps_of_any_unit_are_read_as_milliseconds(tmp_path: pathlib.Path) -> None:
    at = dt.datetime(2024, 5, 1, 12, 0, 0, 250_000)  # noqa: DTZ001  (Parquet has naive timestamps too)
    found = read(tmp_path, frame(time=[at] * 6))
    assert found.lists.ts.tolist() == [1714564800250] * 3


def test_actions_without_a_request_belong_to_the_newest_list_that_showed_the_item(tmp_path: pathlib.Path) -> None:
    actions = pl.DataFrame(
        {
            "time": [500, 1_500, 2_500, 2_600, 2_700],
            "user": [1, 1, 1, 1, 1],
            "item": ["x", "x", "z", "q", None],
            "kind": ["view"] * 5,
        }
    )
    found = read(tmp_path, frame(), actions)
    view = np.flatnonzero(found.actions.kind == 1)
    named = {0: "nothing", **{ids.of(r): r for r in "abc"}}
    assert [named[r] for r in found.actions.request[view].tolist()] == ["nothing", "a", "a", "b", "b"]
    assert found.actions.item[view[-1]] == ids.PAD
    assert (found.actions.kind == 0).sum() == 3


def test_clicks_of_the_file_of_actions_replace_those_made_from_labels(tmp_path: pathlib.Path) -> None:
    actions = pl.DataFrame({"time": [1_400], "user": [1], "item": ["z"], "kind": ["click"], "request": ["a"]})
    found = read(tmp_path, frame(), actions)
    assert found.actions.ts.tolist() == [1_400]
    assert found.actions.request.tolist() == [ids.of("a")]


def test_a_name_given_twice_is_measured_once() -> None:
    assert quality.listed("pepnet, star,,pepnet,") == ["pepnet", "star"]
    assert quality.listed(" ") == []


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (frame(scenario=None), r'column "scenario" is missing; there are time, request'),
        (frame(user=[1.0] * 6), r'column "user" holds floats, and an id must be text or an integer; cast it'),
        (frame(tags=[1.5] * 6), r'column "tags" holds floats'),
        (frame(user=[[1]] * 6), r'column "user" is List\(Int64\); an id must be text or an integer'),
        (frame(scenario=[["home"]] * 6), r'column "scenario" is List\(String\); an id must be text or an integer'),
        (frame(**{"item.price": [1.0, 1e31, 1.0, 1.0, 1.0, 1.0]}), r'"item.price" holds a number beyond 1e\+30'),
        (frame(click=None), r'objective "click" needs its label there'),
        (frame(click=[0] * 6), r'objective "click" has no labels to tell apart: all are 0'),
        (frame(click=[1.0, 0.0, 0.0, 1.0, 0.0, float("nan")]), r'column "click" holds nan; a label is 0 or 1'),
        (frame(click=[1, 0, 0, 1, 0, None]), r'column "click" holds None; a label is 0 or 1'),
        (frame(click=[1, 0, 0, 1, 0, 3]), r'column "click" holds 3'),
        (frame(user=[1, 1, 1, None, 2, 2]), r'column "user" has 1 nulls'),
        (frame(time=["now"] * 6), r'column "time" is String; use a timestamp, or integer milliseconds'),
        (frame(time=[1_700_000_000] * 6), r'column "time" looks like seconds since 1970 \(1700000000\); use a timestamp'),
        (frame(time=[1_700_000_000_000_000] * 6), r'column "time" looks like microseconds since 1970'),
        (frame(time=[2_000, 2_001, 1_000, 1_000, 3_000, 3_000]), r"request 'b' has several values of \"time\""),
        (frame(item=["x", "x", "x", "z", "y", "x"]), r"request 'b' shows item 'x' twice"),
        (frame(**{"item.price": None}), r'the feature spec reads "item.price": add it as'),
        (frame(**{"item.price": [1.0, float("nan"), 1.0, 1.0, 1.0, 1.0]}), r'"item.price" holds NaN or an infinity; write null'),
        (frame(**{"item.price": ["1"] * 6}), r'"item.price" is String; the feature spec declares "item.price" as a number'),
        (frame().clear(), r"has no rows"),
    ],
)  # fmt: skip
def test_a_log_that_cannot_be_measured_is_refused_by_column(tmp_path: pathlib.Path, table: pl.DataFrame, message: str) -> None:
    with pytest.raises(logs.LogError, match=message):
        read(tmp_path, table)


def test_lists_of_ids_are_refused_where_one_is_read_and_counted_where_there_are_too_many(tmp_path: pathlib.Path) -> None:
    table = frame(tags=[["t", "u", "v", None], ["t", "t", "u"], list("tuvw"), None, [], ["t"]])
    table.write_parquet(tmp_path / "log.parquet")
    said: list[str] = []
    logs.read(CONFIG, tmp_path / "log.parquet", say=said.append)
    assert [line.partition(": ")[2] for line in said] == ['column "tags": 3 values beyond max_values = 2 are not used']
    config = configuration.parse(SPEC.replace(", max_values = 2", ""))
    with pytest.raises(
        logs.LogError, match=r'"tags" is List\(String\), and the category "tags" takes one value; set its max_values'
    ):
        logs.read(config, tmp_path / "log.parquet")


def test_an_undeclared_kind_of_action_and_an_unreadable_file_are_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(logs.LogError, match=r"'buy', which the spec does not declare; add it to"):
        read(tmp_path, frame(), pl.DataFrame({"time": [1], "user": [1], "item": ["x"], "kind": ["buy"]}))
    (tmp_path / "no.parquet").write_text("no")
    with pytest.raises(logs.LogError, match="cannot be read as Parquet"):
        logs.read(CONFIG, tmp_path / "no.parquet")


def test_the_worked_example_reads_its_own_log(tmp_path: pathlib.Path) -> None:
    found = importlib.util.spec_from_file_location("search_log", ROOT / "examples" / "search_log.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    table, actions = module.tables(2_000)
    table.write_parquet(tmp_path / "log.parquet")
    actions.write_parquet(tmp_path / "actions.parquet")
    config = configuration.load(ROOT / "examples" / "search_log.toml")
    read = logs.read(config, tmp_path / "log.parquet", tmp_path / "actions.parquet")
    d = protocol.prepare(config, logs.head(read, 2_000), protocol.Lag())
    assert d.label.shape[1] == 2
    assert 15 < np.diff(d.start).mean() <= 40
    assert np.isfinite(d.x).all()
    searches: npt.NDArray[Any] = read.actions.item == ids.PAD
    assert searches.any()


def test_a_log_of_blocks_and_the_same_log_as_parquet_give_the_same_features(tmp_path: pathlib.Path) -> None:
    made = simulator.Simulator(SMALL, 5)
    events = list(itertools.islice(made.events(), 1))
    direct = logs.from_blocks(CONFIG, made.world, events)
    b, users, items = events[0], made.world.users, made.world.items
    of = np.repeat(np.arange(len(b.user)), np.diff(b.start))
    table = pl.DataFrame(
        {
            "time": b.ts_ms[of], "request": of, "user": [users.ids[u] for u in b.user[of]],
            "item": [items.ids[i] for i in b.item], "scenario": [made.world.scenarios[s] for s in b.scenario[of]],
            "click": direct.label[:, 0].astype(np.int8), "tags": [items.attributes["tags"][i] for i in b.item],
            "price": [items.attributes["price"][i] for i in b.item],
        }
    )  # fmt: skip
    kept = np.isin(b.a_kind, [0, 1])
    actions = pl.DataFrame(
        {
            "time": b.ts_ms[b.a_list[kept]] + b.a_delay_ms[kept], "user": [users.ids[u] for u in b.user[b.a_list[kept]]],
            "item": [items.ids[i] for i in b.a_item[kept]], "kind": [simulator.KINDS[k] for k in b.a_kind[kept]],
            "request": b.a_list[kept],
        }
    )  # fmt: skip
    one, other = inputs(found=direct), inputs(found=read(tmp_path, table, actions))
    assert np.array_equal(one.ids, other.ids)
    assert np.allclose(one.x, other.x)
    assert np.array_equal(one.label, other.label)


def test_the_command_measures_a_parquet_log_and_writes_the_report(tmp_path: pathlib.Path) -> None:
    rows = 1_200
    random = np.random.default_rng(0)
    item = random.integers(0, 20, rows)
    table = pl.DataFrame(
        {
            "time": np.arange(rows) * 1_000, "request": np.arange(rows), "user": random.integers(0, 9, rows), "item": item,
            "scenario": ["home", "away"] * (rows // 2),
            "click": (random.random(rows) < np.where(item < 10, 0.8, 0.2)).astype(int),
            "tags": [["t"]] * rows, "price": random.random(rows),
        }
    )  # fmt: skip
    table.write_parquet(tmp_path / "log.parquet")
    (tmp_path / "spec.toml").write_text(SPEC)
    options = ["--data", str(tmp_path / "log.parquet"), "--spec", str(tmp_path / "spec.toml"), "--seeds", "1", "--lag", "5s"]
    result = CliRunner().invoke(quality.app, [*options, "--report", str(tmp_path / "r.json")])
    assert result.exit_code == 0, result.output
    found = {r.id: r for r in report.read(tmp_path / "r.json").rows}
    value = found["auc/pepnet"].value
    assert value is not None
    assert value > 0.6
    assert {"auc/bias/home", "gauc/river/away", "calibration/fm32", "logloss/unadapted"} <= set(found)
    assert not any("_live" in name for name in found)


def test_a_log_without_a_spec_is_refused() -> None:
    result = CliRunner().invoke(quality.app, ["--data", "x.parquet"])
    assert isinstance(result.exception, logs.LogError)
    assert "needs --spec" in str(result.exception)
