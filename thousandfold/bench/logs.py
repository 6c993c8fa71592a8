"""Logs to measure quality on, as columns for the feature engine: MovieLens-1M, simulated, or anybody's Parquet files.

A log is a table of shown rows, one per item shown, with the columns `time` (timestamp, or integer milliseconds), `user`, `item`,
`scenario`, `request` (rows with the same value are one shown list, in the order of the file), one column per objective with its
label (`FORMS`; 0 or 1 of a binary one), and one column for every source that the feature spec names, under the source's full name
(`item.price`) or its last part (`price`). A table of actions has `time`, `user`, `item` (null: none), `kind`, perhaps `request`.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from learner import episodes
from state import config as configuration
from state import events, ids, records, spec
from thousandfold.data import blocks

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
Say = Callable[[str], None]
_OUR_DAYS_MS = (900_000_000_000, 5_000_000_000_000)
"""From 1998 to 2128."""
INTRINSIC = {"user_id": "user", "item_id": "item", "scenario": "scenario", "position": "position"}


class LogError(configuration.Refused):
    """The log cannot be measured; the message names the column and what to do."""


class Log(NamedTuple):
    """Lists in order of time with labels (R, O), and actions in order of time; `scenarios` are names by hash."""

    lists: events.Lists
    label: F32
    actions: events.Actions

    @property
    def rows(self) -> int:
        """R, rows shown."""
        return len(self.lists.item)


class _Values(NamedTuple):
    """A column: the value of entry k is `values[place[k]]`; without `place` there is one value per row."""

    values: Sequence[Any]
    place: I64 | None


def hashed(values: Sequence[Any], width: int) -> U64:
    """(n, width) ids of raw values or lists of them, as the streams hash them: PAD fills a multi-valued column."""
    known: dict[Any, list[int]] = {}
    out = []
    for value in values:
        key = tuple(value) if isinstance(value, list) else value
        found = known.get(key)
        if found is None:
            several = key if isinstance(key, tuple) else () if key is None and width > 1 else (key,)
            # Under multi-valued columns, values that say nothing take no place; a single column has the id of the empty text.
            kept = [v for v in several if v is not None] if width > 1 else ["" if v is None else v for v in several]
            found = known[key] = (list(dict.fromkeys(ids.of(v) for v in kept)) + [ids.PAD] * width)[:width]
        out.append(found)
    return np.array(out, np.uint64).reshape(-1, width)


def _matrices(config: configuration.Config, column: Callable[[str], _Values], rows: int, own: dict[str, U64]) -> tuple[U64, F32]:
    """The id matrix (R, F) and the raw numbers (R, N) of the feature spec; `own` holds the rows' intrinsic ids by source."""
    matrix = np.full((rows, spec.id_width(config.features)), ids.PAD, np.uint64)
    for category, at in zip(config.features.categories, spec.id_columns(config.features), strict=True):
        if spec.behaviour(category):
            continue
        if category.source in own:
            matrix[:, at.start] = own[category.source]
            continue
        values, place = column(category.source)
        found = hashed(values, at.width)
        matrix[:, at.start : at.start + at.width] = found if place is None else found[place]
    numbers = np.empty((rows, len(config.features.numbers)), np.float32)
    for k, number in enumerate(config.features.numbers):
        values, place = column(number.source)
        floats = np.array([np.nan if v is None else v for v in values], np.float32)
        numbers[:, k] = floats if place is None else floats[place]
    return matrix, numbers


def from_blocks(config: configuration.Config, world: blocks.World, found: Sequence[blocks.Block]) -> Log:
    """A log of a data set or of the simulator. Kinds of action that the configuration does not declare are left out."""
    n_items = np.concatenate([np.diff(b.start) for b in found]).astype(np.int32)
    user = np.concatenate([b.user for b in found])
    scenario = np.concatenate([b.scenario for b in found])
    item = np.concatenate([b.item for b in found])
    of_row = np.repeat(np.arange(len(n_items)), n_items)
    user_ids, item_ids, scenario_ids = (hashed(v, 1)[:, 0] for v in (world.users.ids, world.items.ids, world.scenarios))
    position = np.arange(len(item)) - (np.cumsum(n_items) - n_items)[of_row]

    def column(source: str) -> _Values:
        holder, _, name = source.partition(".")
        entities, place = (world.users, user[of_row]) if holder == "user" else (world.items, item)
        if holder == "context" or (name and name not in entities.attributes):
            raise LogError(f"features: {world.name} has no {source}; use one of {', '.join(_sources(world))}")
        return (
            _Values(position.tolist(), None)
            if source == "position"
            else _Values(entities.attributes[name], place.astype(np.int64))
        )

    own = {"user_id": user_ids[user][of_row], "item_id": item_ids[item], "scenario": scenario_ids[scenario][of_row]}
    matrix, numbers = _matrices(config, column, len(item), own)
    request = ids.mix(np.concatenate([b.first + np.arange(len(b.user)) for b in found]).astype(np.uint64), 1)
    ts = np.concatenate([b.ts_ms for b in found])
    names = dict(zip(scenario_ids.tolist(), world.scenarios, strict=True))
    lists = events.Lists(request, user_ids[user], scenario_ids[scenario], ts, n_items, item_ids[item], matrix, numbers, names)
    label = np.stack([_block_label(o, world, found) for o in config.objectives], 1)
    return Log(lists, _existing(config, lists, label), _actions_of(config, world, found, lists, item_ids))


def _block_label(objective: configuration.Objective, world: blocks.World, found: Sequence[blocks.Block]) -> F32:
    """(R,) from the blocks' actions."""
    if not set(objective.kinds) <= set(world.kinds):
        raise LogError(f"objectives: {world.name} knows the actions {', '.join(world.kinds)} only")
    valued = all(block.a_value is not None for block in found)
    if objective.kind in {"multiclass", "regression"} and not valued:
        raise LogError(
            f'objectives: "{objective.name}" is {objective.kind}, but actions of {world.name} have no values; use a Parquet file'
        )

    def of(kind: str) -> F32:
        return np.concatenate([blocks.values(b, world.kinds.index(kind), objective.min_value) for b in found])

    if objective.kind in {"multiclass", "regression"}:
        told = of(objective.action)
        problem = episodes.problem_of(told, objective)
        if problem:
            raise LogError(f'objectives: "{objective.action}" of {world.name} has {problem}; a label is {FORMS[objective.kind]}')
        return told
    if objective.kind == "ranking" and not objective.weights:
        return np.nan_to_num(of(objective.action))
    gains = dict.fromkeys(objective.kinds, 1.0) | objective.weights
    acted = [np.isfinite(of(kind)) * gain for kind, gain in gains.items()]
    label: F32 = np.max(acted, 0)
    return label.astype(np.float32)


def _existing(config: configuration.Config, lists: events.Lists, label: F32) -> F32:
    """Labels (R, O), NaN in scenarios that do not have the objective."""
    for o, objective in enumerate(config.objectives):
        label[np.repeat(~_there(objective, lists.scenario), lists.n_items), o] = np.nan
    return label


def _there(objective: configuration.Objective, scenario: U64) -> npt.NDArray[np.bool_]:
    """Which of the scenarios (n,) have the objective."""
    if not objective.scenarios:
        return np.ones(len(scenario), bool)
    return np.isin(scenario, np.array([ids.of(name) for name in objective.scenarios], np.uint64))


def binary_only(config: configuration.Config, what: str, *, everywhere: bool = True) -> None:
    """Refuse objectives that `what` cannot measure; without `everywhere` it can measure those of single scenarios.

    Raises:
        LogError: an objective is not binary, or exists in some scenarios only.
    """
    for o in config.objectives:
        if o.kind != "binary" or (everywhere and o.scenarios):
            which = f"is {o.kind}" if o.kind != "binary" else "exists in some scenarios only"
            kinds = "binary objectives of every scenario" if everywhere else "binary objectives"
            raise LogError(
                f'objectives: "{o.name}" {which}; {what} compares {kinds}. The figures of every kind '
                "are those of the learner: use thousandfold replay, or thousandfold transfer"
            )


def _sources(world: blocks.World) -> list[str]:
    users, items = (f"user.{n}" for n in world.users.attributes), (f"item.{n}" for n in world.items.attributes)
    return [*INTRINSIC, *users, *items]


def _actions_of(
    config: configuration.Config, world: blocks.World, found: Sequence[blocks.Block], lists: events.Lists, item_ids: U64
) -> events.Actions:
    offsets = np.cumsum([0, *(len(b.user) for b in found)])
    of = np.concatenate([b.a_list + at for b, at in zip(found, offsets, strict=False)])
    kinds = np.array([config.action_kinds.index(k) if k in config.action_kinds else -1 for k in world.kinds])
    kind, item = kinds[np.concatenate([b.a_kind for b in found])], np.concatenate([b.a_item for b in found])
    ts = lists.ts[of] + np.concatenate([b.a_delay_ms for b in found])
    order = np.argsort(ts, kind="stable")
    order = order[kind[order] >= 0]
    of, item = of[order], item[order]
    named = np.where(item >= 0, item_ids[item], np.uint64(ids.PAD))
    value = np.concatenate([np.ones(len(b.a_list), np.float32) if b.a_value is None else b.a_value for b in found])[order]
    return events.Actions(lists.request[of], named, lists.user[of], ts[order], kind[order].astype(np.int16), value)


def head(log: Log, rows: int) -> Log:
    """The lists that lie within the first `rows` rows, and the actions up to the time of the next one."""
    end = np.cumsum(log.lists.n_items, dtype=np.int64)
    n = int(np.searchsorted(end, rows, side="right"))
    if n >= len(end):
        return log
    r, last = int(end[n - 1]) if n else 0, log.lists.ts[n]
    return Log(part_of(log.lists, n, r), log.label[:r], chosen(log.actions, np.flatnonzero(log.actions.ts <= last)))


def part_of(lists: events.Lists, n: int, rows: int, first: int = 0, row: int = 0) -> events.Lists:
    """Lists [first, n), whose rows are [row, rows)."""
    return lists._replace(
        request=lists.request[first:n],
        user=lists.user[first:n],
        scenario=lists.scenario[first:n],
        ts=lists.ts[first:n],
        n_items=lists.n_items[first:n],
        item=lists.item[row:rows],
        ids=lists.ids[row:rows],
        numbers=lists.numbers[row:rows],
    )


def chosen(actions: events.Actions, which: I64) -> events.Actions:
    """The actions `which`, in that order."""
    a = actions
    return events.Actions(a.request[which], a.item[which], a.user[which], a.ts[which], a.kind[which], a.value[which])


def read(config: configuration.Config, data: pathlib.Path, actions: pathlib.Path | None = None, say: Say = print) -> Log:
    """The log in a Parquet file, with its actions.

    Without a file of actions, or when it has none of the kind that an objective counts, a positive label is an action one
    millisecond after its list was shown. `say` is told how many values of multi-valued categories are not used.

    Raises:
        LogError: a column is missing or of the wrong type, ids are floats, a value is NaN, an objective has no labels.
    """
    table = _load(data)
    _need(table, data, ("time", "user", "item", "scenario", "request"), "see docs/benchmarks.md for the columns of a log")
    for name in ("user", "item", "scenario", "request"):
        _check_ids(table, name, data)
    table = table.with_columns(_times(table, data).alias("time"))
    first = pl.col("time").min().over("request")
    table = table.sort([first, pl.col("request").rank("dense").over(pl.lit(1))], maintain_order=True)
    per_list = _lists_of(table, data)
    lists = _table_lists(config, table, per_list, data, say)
    label = _existing(config, lists, _labels(config, table, data))
    made = _label_actions(config, lists, label)
    if actions is None:
        return Log(lists, label, made)
    own = _table_actions(config, _load(actions), actions, lists)
    made = chosen(made, np.flatnonzero(~np.isin(made.kind, own.kind)))
    joined = events.Actions(
        np.concatenate([own.request, made.request]),
        np.concatenate([own.item, made.item]),
        np.concatenate([own.user, made.user]),
        np.concatenate([own.ts, made.ts]),
        np.concatenate([own.kind, made.kind]),
        np.concatenate([own.value, made.value]),
    )
    return Log(lists, label, chosen(joined, np.argsort(joined.ts, kind="stable")))


def _load(file: pathlib.Path) -> pl.DataFrame:
    try:
        table = pl.read_parquet(file)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise LogError(f"{file}: cannot be read as Parquet ({str(error).splitlines()[0]})") from error
    if not table.height:
        raise LogError(f"{file}: has no rows")
    return table


def _need(table: pl.DataFrame, file: pathlib.Path, names: Sequence[str], advice: str) -> None:
    for name in names:
        if name not in table.columns:
            raise LogError(f'{file}: column "{name}" is missing; there are {", ".join(table.columns)}; {advice}')


def _check_ids(table: pl.DataFrame, name: str, file: pathlib.Path, *, optional: bool = False, several: bool = False) -> None:
    """Refuse a column that holds no ids, or with `several` lists of them."""
    kind = table.schema[name]
    inner = kind.inner if several and isinstance(kind, pl.List) else kind
    if inner.is_float():
        raise LogError(
            f'{file}: column "{name}" holds floats, and an id must be text or an integer; cast it before you write the file'
        )
    if not (inner.is_integer() or inner in {pl.String, pl.Boolean, pl.Categorical, pl.Null} or isinstance(inner, pl.Enum)):
        raise LogError(f'{file}: column "{name}" is {kind}; an id must be text or an integer')
    if not optional and table[name].null_count():
        raise LogError(f'{file}: column "{name}" has {table[name].null_count()} nulls; drop those rows or name the unknown')


def _times(table: pl.DataFrame, file: pathlib.Path) -> pl.Series:
    time = table["time"]
    if time.null_count():
        raise LogError(f'{file}: column "time" has {time.null_count()} nulls')
    if isinstance(time.dtype, pl.Datetime):
        return time.dt.epoch("ms")
    if time.dtype.is_integer():
        return _milliseconds(time.cast(pl.Int64), file)
    raise LogError(f'{file}: column "time" is {time.dtype}; use a timestamp, or integer milliseconds')


def _milliseconds(time: pl.Series, file: pathlib.Path) -> pl.Series:
    """Refuses what is of our days when read in another unit: windows and half-lives would be wrong by a thousand, silently.

    Times that count from the log's own beginning are as good as any.
    """
    least, most = float(time.to_numpy().min()), float(time.to_numpy().max())
    for unit, in_ms in (("seconds", 1e3), ("microseconds", 1e-3), ("nanoseconds", 1e-6)):
        if _OUR_DAYS_MS[0] <= least * in_ms and most * in_ms <= _OUR_DAYS_MS[1]:
            raise LogError(f'{file}: column "time" looks like {unit} since 1970 ({least:.0f}); use a timestamp, or milliseconds')
    return time


FORMS = {
    "binary": "0 or 1",
    "multiclass": "the number of a class, or null",
    "regression": "a number, or null",
    "ranking": "0 or how much the action on it counts",
}
"""What a column of labels holds, by kind of objective."""


class _PerList(NamedTuple):
    start: I64
    n_items: npt.NDArray[np.int32]
    position: I64


def _lists_of(table: pl.DataFrame, file: pathlib.Path) -> _PerList:
    """Where lists begin; a list has one time, user and scenario, and no item twice."""
    for name in ("time", "user", "scenario"):
        several = table.group_by("request").agg(pl.col(name).n_unique().alias("n")).filter(pl.col("n") > 1)
        if several.height:
            raise LogError(
                f'{file}: request {several["request"][0]!r} has several values of "{name}"; a request is one shown list'
            )
    if table.select("request", "item").is_duplicated().any():
        twice = table.filter(pl.struct("request", "item").is_duplicated())
        raise LogError(f"{file}: request {twice['request'][0]!r} shows item {twice['item'][0]!r} twice")
    start = np.flatnonzero(np.r_[True, (table["request"][1:] != table["request"][:-1]).to_numpy()])
    n_items = np.diff(np.r_[start, table.height])
    return _PerList(start, n_items.astype(np.int32), np.arange(table.height) - np.repeat(start, n_items))


def _labels(config: configuration.Config, table: pl.DataFrame, file: pathlib.Path) -> F32:
    """Labels (R, O) as they stand in the file; what it says where a scenario does not have the objective is not looked at."""
    columns, scenario = [], _unique(table["scenario"])
    for objective in config.objectives:
        _need(table, file, (objective.name,), f'objective "{objective.name}" needs its label there, {FORMS[objective.kind]}')
        series = table[objective.name]
        if not (series.dtype.is_numeric() or series.dtype == pl.Boolean):
            raise LogError(f'{file}: column "{objective.name}" is {series.dtype}; a label is {FORMS[objective.kind]}')
        label, there = series.cast(pl.Float32).to_numpy(), _there(objective, scenario)
        told = label[there]
        problem = episodes.problem_of(told, objective) if objective.kind != "binary" else ""
        if problem:
            raise LogError(f'{file}: column "{objective.name}" holds {problem}; a label is {FORMS[objective.kind]}')
        if objective.kind == "binary" and not np.isin(told, (0, 1)).all():
            bad = next(v for v in series.filter(pl.Series(there)).to_list() if v not in {0, 1})
            raise LogError(f'{file}: column "{objective.name}" holds {bad!r}; a label is 0 or 1 and never null or NaN')
        known = told[~np.isnan(told)]
        if not len(known) or known.min() == known.max():
            said = f"all are {known[0]:g}" if len(known) else "all are null"
            raise LogError(f'{file}: objective "{objective.name}" has no labels to tell apart: {said}')
        columns.append(np.array(label))
    return np.stack(columns, 1)


def _check_several(config: configuration.Config, series: pl.Series, source: str, file: pathlib.Path, say: Say) -> None:
    """Refuse lists of ids where a category of the source takes one, and tell how many ids lie beyond its `max_values`."""
    held = series.list.drop_nulls().list.unique().list.len().cast(pl.Int64)
    for category in (c for c in config.features.categories if c.source == source):
        if category.max_values == 1:
            raise LogError(
                f'{file}: column "{series.name}" is {series.dtype}, and the category "{category.name}" takes one value; '
                "set its max_values in the feature spec, or write one value per row"
            )
        beyond = int((held - category.max_values).clip(0).sum())
        if beyond:
            say(f'{file}: column "{series.name}": {beyond:,} values beyond max_values = {category.max_values} are not used')


def _table_lists(
    config: configuration.Config, table: pl.DataFrame, per_list: _PerList, file: pathlib.Path, say: Say
) -> events.Lists:
    categories = {c.source for c in config.features.categories}
    request, user, item, scenario = (_unique(table[n]) for n in ("request", "user", "item", "scenario"))

    def column(source: str) -> _Values:
        if source == "position" and "position" not in table.columns:
            return _Values(per_list.position.tolist(), None)
        name = source if source in table.columns else source.partition(".")[2] or source
        _need(table, file, (name,), f'the feature spec reads "{source}": add it as "{source}" or "{name}"')
        if source in categories:
            _check_ids(table, name, file, optional=True, several=True)
            if isinstance(table.schema[name], pl.List):
                _check_several(config, table[name], source, file, say)
        elif not (table.schema[name].is_numeric() or table.schema[name] == pl.Boolean):
            raise LogError(f'{file}: column "{name}" is {table.schema[name]}; the feature spec declares "{source}" as a number')
        else:
            told = table[name].drop_nulls().cast(pl.Float64)
            if not told.is_finite().all():
                raise LogError(f'{file}: column "{name}" holds NaN or an infinity; write null where a number is absent')
            if (told.abs() > records.LIMIT).any():
                raise LogError(f'{file}: column "{name}" holds a number beyond {records.LIMIT:g}, which no event may carry')
        return _values(table[name])

    own = {"user_id": user, "item_id": item, "scenario": scenario}
    matrix, numbers = _matrices(config, column, table.height, own)
    at = per_list.start
    names = {ids.of(name): str(name) for name in table["scenario"].unique().to_list()}
    ts = table["time"].to_numpy()[at]
    return events.Lists(request[at], user[at], scenario[at], ts, per_list.n_items, item, matrix, numbers, names)


def _values(series: pl.Series) -> _Values:
    """A column by its distinct values, so that each is hashed once."""
    if isinstance(series.dtype, pl.List):
        return _Values(series.to_list(), None)
    if series.dtype == pl.Categorical or isinstance(series.dtype, pl.Enum):
        series = series.cast(pl.String)
    values = series.unique(maintain_order=True)
    frame = series.to_frame("value").join(
        values.to_frame("value").with_row_index("place"), on="value", how="left", nulls_equal=True, maintain_order="left"
    )
    return _Values(values.to_list(), frame["place"].to_numpy().astype(np.int64))


def _unique(series: pl.Series) -> U64:
    values, place = _values(series)
    return hashed(values, 1)[:, 0][place]


def _label_actions(config: configuration.Config, lists: events.Lists, label: F32) -> events.Actions:
    """A label as an action one millisecond after its list, in order of time: one that is positive, of classes and values any.

    Objectives that count one kind of action make one action of it, of the greatest value.
    """
    of_row = np.repeat(np.arange(len(lists.ts)), lists.n_items)
    parts = []
    for o, objective in enumerate(config.objectives):
        # Where values are labels, a row without action has none.
        valued = objective.kind in {"multiclass", "regression"}
        rows = np.flatnonzero(np.isfinite(label[:, o]) if valued else np.nan_to_num(label[:, o]))
        value = label[rows, o] if valued else np.ones(len(rows), np.float32)
        parts.append((rows, np.full(len(rows), config.action_kinds.index(objective.action)), value))
    rows, kind, value = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((value, kind, rows))
    rows, kind, value = rows[order], kind[order], value[order]
    kept = np.flatnonzero(np.r_[(rows[1:] != rows[:-1]) | (kind[1:] != kind[:-1]), True][: len(rows)])
    kept = kept[np.argsort(lists.ts[of_row[rows[kept]]], kind="stable")]
    rows, kind, value, of = rows[kept], kind[kept], value[kept], of_row[rows[kept]]
    return events.Actions(lists.request[of], lists.item[rows], lists.user[of], lists.ts[of] + 1, kind.astype(np.int16), value)


def _table_actions(config: configuration.Config, table: pl.DataFrame, file: pathlib.Path, lists: events.Lists) -> events.Actions:
    _need(table, file, ("time", "user", "item", "kind"), "see docs/benchmarks.md for the columns of actions")
    _check_ids(table, "user", file)
    _check_ids(table, "item", file, optional=True)
    unknown = sorted(set(table["kind"].cast(pl.String).unique().to_list()) - set(config.action_kinds), key=str)
    if unknown:
        raise LogError(f'{file}: column "kind" has {unknown[0]!r}, which the spec does not declare; add it to [actions] other')
    table = table.with_columns(_times(table, file).alias("time")).sort("time", maintain_order=True)
    code = {name: k for k, name in enumerate(config.action_kinds)}
    item = np.where(table["item"].is_null().to_numpy(), np.uint64(ids.PAD), _unique(table["item"]))
    user, ts = _unique(table["user"]), table["time"].to_numpy()
    if "request" in table.columns:
        _check_ids(table, "request", file)
        request = _unique(table["request"])
    else:
        request = _requests_of(lists, user, item, ts)
    kind = np.array([code[k] for k in table["kind"].cast(pl.String).to_list()], np.int16)
    return events.Actions(request, item, user, ts, kind, np.ones(len(ts), np.float32))


def _requests_of(lists: events.Lists, user: U64, item: U64, ts: I64) -> U64:
    """The newest request of the user before each action that showed the item, else the user's newest request, else 0."""
    of_row = np.repeat(np.arange(len(lists.ts)), lists.n_items)
    by_item = _newest(ids.mix(lists.user[of_row], lists.item), lists.ts[of_row], ids.mix(user, item), ts)
    by_user = _newest(lists.user, lists.ts, user, ts)
    found = np.where(by_item >= 0, of_row[by_item], by_user)
    return np.where(found >= 0, lists.request[found], np.uint64(0))


def _newest(key: U64, ts: I64, wanted: U64, at: I64) -> I64:
    """For each (wanted, at) the last index in `key` of an equal key with `ts` not after `at`, or -1."""
    keys, times = np.concatenate([key, wanted]), np.concatenate([ts, at])
    asks = np.r_[np.zeros(len(key), bool), np.ones(len(wanted), bool)]
    order = np.lexsort((asks, times, keys))
    held = np.where(asks[order], -1, np.arange(len(order)))
    newest = np.maximum.accumulate(held)
    fits = (newest >= 0) & (keys[order[newest]] == keys[order])
    out = np.empty(len(order), np.int64)
    out[order] = np.where(fits, order[newest], -1)
    return out[len(key) :]
