"""The feature spec compiled to arrays: which cells a row reads, which columns they have, how each number is made of them."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from state import cells, ids, spec, stores, users
from state import config as configuration
from state import records as raw

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
U64 = npt.NDArray[np.uint64]

USER, ITEM, SCENARIO, COLUMN = 0, 1, 2, 3
RATE, COUNT, ACTIONS, RESIDUAL, AGE = range(5)
ANY, THIS_ITEM, CATEGORY = range(3)
OF_ITEM, OF_KIND, OF_AGE, OF_SCENARIO, OF_COLUMN = range(5)
_BEHAVIOUR = {"item": OF_ITEM, "kind": OF_KIND, "age": OF_AGE, "scenario": OF_SCENARIO}
_OPERATIONS = {"rate": RATE, "count": COUNT, "actions": ACTIONS, "residual": RESIDUAL, "age": AGE}
_INTRINSIC = {"user_id": USER, "item_id": ITEM, "scenario": SCENARIO}
ITEM_HEAD = 1


class Plan(NamedTuple):
    """What kernels read. K kinds of key (kind 0 is the whole stream), S statistics, Q recents, B behaviour sequences, P places,
    F id columns.

    Kinds: up to three `part`s (USER, ITEM, SCENARIO or COLUMN with `part_start` and `part_width` in the id matrix), `seed` of the
    cell keys, `first_cell` and `n_cells` of a row's cell columns, `width`, `columns` and windows of `cells.Layout`,
    `action_column` (K, kinds of action; -1: not counted), `n_expected` and `expected` (K, most): statistics summed into X.
    `behaviour` (B, 4): what of an action, first id column, how many, and which of a ring's ids. `known`: the ids of the empty
    text, of the ages' buckets and of the kinds of action. Fields are few because a kernel's every call copies them.
    """

    parts: I64
    part: I64
    part_start: I64
    part_width: I64
    seed: U64
    first_cell: I64
    n_cells: I64
    width: I64
    columns: I64
    n_windows: I64
    window_code: I64
    window_size: F64
    owned: I64
    action_column: I64
    n_expected: I64
    expected: I64
    needs_request: I64
    needs_item: I64
    needs_attributes: I64
    operation: I64
    kind: I64
    window: I64
    column: I64
    expected_column: I64
    prior: F64
    toward: I64
    stream_column: I64
    match: I64
    match_start: I64
    match_width: I64
    match_ring: I64
    match_action: I64
    match_is_age: I64
    match_max_ms: F64
    behaviour: I64
    place_of: I64
    place_is_rank: I64
    log: I64
    list_columns: I64
    item_columns: I64
    ring_columns: I64
    known: U64


class Attribute(NamedTuple):
    """Where a column's raw value is: a field of `holder` (user, context, item), or of the message itself (intrinsic)."""

    holder: str
    field: str
    start: int
    width: int


class Compiled(NamedTuple):
    """A configuration's features, ready for `features.lists_of` and `features.Engine`. F id columns, D numbers, N raw numbers.

    `categories` are those that a message carries; those of the user's last actions are the engine's.
    """

    action_kinds: tuple[str, ...]
    id_width: int
    number_width: int
    categories: tuple[Attribute, ...]
    numbers: tuple[Attribute, ...]
    plan: Plan
    layouts: tuple[cells.Layout, ...]
    owned: tuple[bool, ...]
    schema: stores.Schema
    user: np.dtype[np.void]


class _Kind(NamedTuple):
    """One kind of key while it is being compiled."""

    parts: tuple[tuple[int, int, int], ...]
    windows: list[cells.Window]
    actions: list[int]
    expected: list[int]


def compiled(config: configuration.Config) -> Compiled:
    """Compile `config.features`; the configuration has been checked (`config.load`)."""
    features, kinds_of_action = config.features, config.action_kinds
    columns = {c.name: c for c in spec.id_columns(features)}
    sources = {c.name: c.source for c in features.categories}
    kinds = _kinds(features, kinds_of_action, columns, sources)
    used = sorted({(start, width) for k in kinds.values() for code, start, width in k.parts if code == COLUMN})
    holder = {columns[name].start: source.partition(".")[0] for name, source in sources.items()}
    of_lists = [c for start, width in used if holder[start] != "item" for c in range(start, start + width)]
    of_items = [c for start, width in used if holder[start] == "item" for c in range(start, start + width)]
    matched = [columns[r.match] for r in features.recent if r.match not in {"any", "item"} and sources[r.match] != "item_id"]
    sequences = spec.sequences(features)
    matched += [columns[what] for c in sequences if (what := spec.behaviour(c)) not in _BEHAVIOUR]
    of_ring = sorted({c for m in matched for c in range(m.start, m.start + m.width)})
    of_items = sorted({*of_items, *of_ring})
    layouts = tuple(cells.Layout(tuple(k.windows), 1 + len(k.actions) + len(k.expected)) for k in kinds.values())
    owned = tuple(any(code == USER for code, _, _ in k.parts) for k in kinds.values())
    user = users.dtype(
        len(of_lists),
        len(of_ring) + any(spec.behaviour(c) == "scenario" for c in sequences),
        max([users.ACTIONS, *(c.max_values for c in sequences)]),
    )
    schema = stores.Schema(layouts, owned, user.itemsize, 8 * (ITEM_HEAD + len(of_items)))
    arrays = {
        **_kind_arrays(kinds, layouts, owned, len(kinds_of_action), holder),
        **_statistic_arrays(features, kinds, kinds_of_action, columns, sources),
        **_recent_arrays(features, kinds_of_action, columns, sources, of_ring),
        "behaviour": _behaviour(sequences, columns, of_ring),
        **_place_arrays(features),
        "list_columns": np.array(of_lists, np.int64),
        "item_columns": np.array(of_items, np.int64),
        "ring_columns": np.array(of_ring, np.int64),
        "known": np.array([ids.of(v) for v in ("", *range(spec.AGE_BUCKETS), *kinds_of_action)], np.uint64),
    }
    return Compiled(
        kinds_of_action,
        spec.id_width(features),
        len(spec.number_names(features)),
        tuple(
            _attribute(features, c.source, columns[c.name].start, c.max_values)
            for c in features.categories
            if not spec.behaviour(c)
        ),
        tuple(_attribute(features, n.source, i, 1) for i, n in enumerate(features.numbers)),
        Plan(**arrays),
        layouts,
        owned,
        schema,
        user,
    )


def _attribute(features: spec.Features, source: str, start: int, width: int) -> Attribute:
    holder, _, name = source.partition(".")
    if not name:
        return Attribute("intrinsic", source, start, width)
    return Attribute(holder, f"v{raw.attribute_names(features, holder).index(name)}", start, width)


def _parts(key: tuple[str, ...], columns: dict[str, spec.IdColumn], sources: dict[str, str]) -> tuple[tuple[int, int, int], ...]:
    """A key as sorted (code, first id column, width), so that (user, genre) and (genre, user) are one kind."""
    parts = set()
    for name in key:
        code = _INTRINSIC.get(sources.get(name, {"user": "user_id", "item": "item_id"}.get(name, name)), COLUMN)
        parts.add((code, columns[name].start, columns[name].width) if code == COLUMN else (code, 0, 1))
    return tuple(sorted(parts))


def _window(s: spec.Statistic) -> cells.Window:
    return {
        "all": cells.Window("all"),
        "decay": cells.Window("decay", s.half_life_s * 1000.0),
        "last": cells.Window("last", float(s.n)),
    }[s.window]


def _action(s: spec.Statistic, kinds_of_action: tuple[str, ...]) -> int:
    return kinds_of_action.index(s.action) if s.action else 0


def _kinds(
    features: spec.Features, kinds_of_action: tuple[str, ...], columns: dict[str, spec.IdColumn], sources: dict[str, str]
) -> dict[tuple[tuple[int, int, int], ...], _Kind]:
    """Every kind of key with its windows, actions and expected rates, in the order of first use; () is always the first."""
    names = [s.name for s in features.statistics]
    kinds: dict[tuple[tuple[int, int, int], ...], _Kind] = {(): _Kind((), [cells.Window("all")], [], [])}
    for s in features.statistics:
        parts = _parts(s.key, columns, sources)
        kind = kinds.setdefault(parts, _Kind(parts, [cells.Window("all")], [], []))
        action = _action(s, kinds_of_action)
        if _window(s) not in kind.windows:
            kind.windows.append(_window(s))
        if s.kind in {"rate", "actions", "residual"} and action not in kind.actions:
            kind.actions.append(action)
        if s.kind == "rate" and not s.toward and action not in kinds[()].actions:
            kinds[()].actions.append(action)
        if s.kind == "residual" and names.index(s.over) not in kind.expected:
            kind.expected.append(names.index(s.over))
    return kinds


def _kind_arrays(
    kinds: dict[Any, _Kind], layouts: tuple[cells.Layout, ...], owned: tuple[bool, ...], n_actions: int, holder: dict[int, str]
) -> dict[str, npt.NDArray[Any]]:
    n = len(kinds)
    part, start, width = (np.zeros((n, 3), np.int64) for _ in range(3))
    most = max(len(layout.windows) for layout in layouts)
    code, size = np.zeros((n, most), np.int64), np.zeros((n, most))
    action_column = np.full((n, n_actions), -1, np.int64)
    expected = np.zeros((n, max([1, *(len(k.expected) for k in kinds.values())])), np.int64)
    n_cells = np.ones(n, np.int64)
    needs = {name: np.zeros(n, np.int64) for name in ("needs_request", "needs_item", "needs_attributes")}
    for i, (kind, layout) in enumerate(zip(kinds.values(), layouts, strict=True)):
        for j, (what, first, wide) in enumerate(kind.parts):
            part[i, j], start[i, j], width[i, j] = what, first, wide
            n_cells[i] *= wide
            by_item = what == COLUMN and holder[first] == "item"
            needs["needs_item"][i] |= what == ITEM or by_item
            needs["needs_attributes"][i] |= by_item
            needs["needs_request"][i] |= what == SCENARIO or (what == COLUMN and not by_item)
        code[i, : len(layout.windows)], size[i, : len(layout.windows)] = layout.codes(), layout.sizes()
        action_column[i, kind.actions] = 1 + np.arange(len(kind.actions))
        expected[i, : len(kind.expected)] = kind.expected
    return {
        "parts": np.array([len(k.parts) for k in kinds.values()], np.int64),
        "part": part,
        "part_start": start,
        "part_width": width,
        "seed": np.array([_seed(k, layout) for k, layout in zip(kinds.values(), layouts, strict=True)], np.uint64),
        "first_cell": np.cumsum(n_cells) - n_cells,
        "n_cells": n_cells,
        "width": np.array([layout.width for layout in layouts], np.int64),
        "columns": np.array([layout.columns for layout in layouts], np.int64),
        "n_windows": np.array([len(layout.windows) for layout in layouts], np.int64),
        "window_code": code,
        "window_size": size,
        "owned": np.array(owned, np.int64),
        "action_column": action_column,
        "n_expected": np.array([len(k.expected) for k in kinds.values()], np.int64),
        "expected": expected,
        **needs,
    }


def _seed(kind: _Kind, layout: cells.Layout) -> int:
    """Cells of another layout get other keys, so that a changed spec starts anew instead of misreading what is in the store."""
    return ids.of(repr((kind.parts, tuple(tuple(w) for w in layout.windows), kind.actions, kind.expected)))


def _statistic_arrays(
    features: spec.Features,
    kinds: dict[Any, _Kind],
    kinds_of_action: tuple[str, ...],
    columns: dict[str, spec.IdColumn],
    sources: dict[str, str],
) -> dict[str, npt.NDArray[Any]]:
    names, order, stream = [s.name for s in features.statistics], list(kinds), kinds[()]

    def rows() -> Iterator[tuple[int, ...]]:
        for s in features.statistics:
            parts, action = _parts(s.key, columns, sources), _action(s, kinds_of_action)
            kind = kinds[parts]
            yield (
                _OPERATIONS[s.kind],
                order.index(parts),
                kind.windows.index(_window(s)),
                1 + kind.actions.index(action) if action in kind.actions else 0,
                1 + len(kind.actions) + kind.expected.index(names.index(s.over)) if s.kind == "residual" else 0,
                names.index(s.toward) if s.toward else -1,
                1 + stream.actions.index(action) if action in stream.actions else 0,
            )

    table = np.array(list(rows()), np.int64).reshape(-1, 7)
    fields = ("operation", "kind", "window", "column", "expected_column", "toward", "stream_column")
    prior = {"prior": np.array([s.prior for s in features.statistics], np.float64)}
    return {name: np.ascontiguousarray(table[:, i]) for i, name in enumerate(fields)} | prior


def _recent_arrays(
    features: spec.Features,
    kinds_of_action: tuple[str, ...],
    columns: dict[str, spec.IdColumn],
    sources: dict[str, str],
    of_ring: list[int],
) -> dict[str, npt.NDArray[Any]]:
    def rows() -> Iterator[tuple[int, ...]]:
        for r in features.recent:
            action = -1 if r.action == "any" else kinds_of_action.index(r.action)
            if r.match == "any":
                yield ANY, 0, 0, 0, action, r.value == "age"
            elif r.match == "item" or sources[r.match] == "item_id":
                yield THIS_ITEM, 0, 0, 0, action, r.value == "age"
            else:
                column = columns[r.match]
                yield CATEGORY, column.start, column.width, of_ring.index(column.start), action, r.value == "age"

    table = np.array(list(rows()), np.int64).reshape(-1, 6)
    fields = ("match", "match_start", "match_width", "match_ring", "match_action", "match_is_age")
    longest = {"match_max_ms": np.array([r.max_age_s * 1000 for r in features.recent], np.float64)}
    return {name: np.ascontiguousarray(table[:, i]) for i, name in enumerate(fields)} | longest


def _behaviour(sequences: tuple[spec.Category, ...], columns: dict[str, spec.IdColumn], of_ring: list[int]) -> I64:
    def rows() -> Iterator[tuple[int, ...]]:
        for c in sequences:
            code = _BEHAVIOUR.get(spec.behaviour(c), OF_COLUMN)
            kept = of_ring.index(columns[spec.behaviour(c)].start + c.nth - 1) if code == OF_COLUMN else len(of_ring)
            yield code, columns[c.name].start, c.max_values, kept

    return np.array(list(rows()), np.int64).reshape(-1, 4)


def _place_arrays(features: spec.Features) -> dict[str, npt.NDArray[Any]]:
    names = spec.number_names(features)
    return {
        "place_of": np.array([names.index(p.of) for p in features.places], np.int64),
        "place_is_rank": np.array([p.value == "rank" for p in features.places], np.int64),
        "log": np.array([n.transform == "log1p" for n in features.numbers], np.int64),
    }
