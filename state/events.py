"""Decoded messages as columns: what the feature engine reads, in streams, serving, replay and benchmarks alike."""

from collections.abc import Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from state import ids as identities
from state import layout, records

F32 = npt.NDArray[np.float32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]


class Lists(NamedTuple):
    """L shown lists of R rows in all, F id columns, N raw numbers.

    `request`, `user`, `scenario` (L,) u8; `ts` (L,) i8 in ms; `n_items` (L,) i4; `item` (R,) u8; `ids` (R, F) u8, PAD where a
    multi-valued category has no further value, and in the columns of the user's last actions, which the engine fills;
    `numbers` (R, N) f4 as sent, NaN where missing; `names` scenario names by hash; `surplus` values beyond a category's
    `max_values`, which are not used.
    """

    request: U64
    user: U64
    scenario: U64
    ts: I64
    n_items: npt.NDArray[np.int32]
    item: U64
    ids: U64
    numbers: npt.NDArray[np.float32]
    names: dict[int, str]
    surplus: int = 0


class Actions(NamedTuple):
    """A actions: `request`, `item` (PAD: none), `user` (A,) u8; `ts` (A,) i8 in ms; `kind` (A,) i2, an index; `value` (A,) f4."""

    request: U64
    item: U64
    user: U64
    ts: I64
    kind: npt.NDArray[np.int16]
    value: npt.NDArray[np.float32]


def lists_of(impressions: Sequence[Any], compiled: layout.Compiled, ids: identities.Ids) -> Lists:
    """Impressions (of `records.Decoder`) as columns. A missing category has the id of the empty text, a missing number is NaN."""
    items = [item for impression in impressions for item in impression.items]
    held = [item.features for item in items]
    n_items = np.array([len(i.items) for i in impressions], np.int32)
    known: dict[str, U64] = {
        "request_id": _ids(list(map(attrgetter("request_id"), impressions)), ids),
        "user_id": _ids(list(map(attrgetter("user_id"), impressions)), ids),
        "scenario": _ids([i.scenario for i in impressions], ids),
        "item_id": _ids(list(map(attrgetter("item_id"), items)), ids),
    }
    raw: dict[tuple[str, str], list[Any]] = {}

    def column(a: layout.Attribute) -> list[Any]:
        """Raw values of an attribute: one a list, or one a row for what the item holds. Read once however many columns use it."""
        key = (a.holder, a.field)
        if key not in raw:
            if a.holder in {"user", "context"}:
                raw[key] = list(map(attrgetter(f"{a.holder}.{a.field}"), impressions))
            else:
                raw[key] = list(map(attrgetter(a.field), items if a.holder == "intrinsic" else held))
        return raw[key]

    matrix = np.full((len(items), compiled.id_width), identities.PAD, np.uint64)
    surplus = 0
    for a in compiled.categories:
        per_list = a.holder in {"user", "context"} or a.field in {"user_id", "scenario"}
        if a.holder == "intrinsic" and a.field != "position":
            values = known[a.field].reshape(-1, 1)
        else:
            values, extra = _category(column(a), a.width, ids)
            surplus += extra
        matrix[:, a.start : a.start + values.shape[1]] = np.repeat(values, n_items, axis=0) if per_list else values
    numbers = np.empty((len(items), len(compiled.numbers)), np.float32)
    for a in compiled.numbers:
        found = np.array(column(a), np.float32)
        numbers[:, a.start] = np.repeat(found, n_items) if a.holder in {"user", "context"} else found
    names = {ids[i.scenario]: str(i.scenario) for i in impressions}
    ts = np.array([i.ts_ms for i in impressions], np.int64)
    return Lists(
        known["request_id"], known["user_id"], known["scenario"], ts, n_items, known["item_id"], matrix, numbers, names, surplus
    )


def propensities(impressions: Sequence[Any]) -> tuple[F32 | None, int]:
    """How likely the items of impressions (of `records.Decoder`) were to stand where they stood, and how many said what is none.

    The first is (R,), in (0, 1] and NaN where nobody said it or what was said is no probability above 0 (in float32); None where
    that is so of all.
    """
    said = [item.propensity for impression in impressions for item in impression.items]
    if said.count(None) == len(said):
        return None, 0
    with np.errstate(over="ignore"):
        found = np.array(said, np.float32)
    bad = (found <= 0) | (found > 1)
    found[bad] = np.nan
    return None if np.isnan(found).all() else found, int(bad.sum())


def actions_of(actions: Sequence[records.Action], compiled: layout.Compiled, ids: identities.Ids) -> Actions:
    """Actions (of `records.Decoder`) as columns."""
    code = {name: i for i, name in enumerate(compiled.action_kinds)}
    return Actions(
        _ids([a.request_id for a in actions], ids),
        np.array([identities.PAD if a.item_id is None else ids[a.item_id] for a in actions], np.uint64),
        _ids([a.user_id for a in actions], ids),
        np.array([a.ts_ms for a in actions], np.int64),
        np.array([code[a.action] for a in actions], np.int16),
        np.array([a.value for a in actions], np.float32),
    )


def no_actions() -> Actions:
    """Nothing done."""
    u8 = np.zeros(0, np.uint64)
    return Actions(u8, u8, u8, np.zeros(0, np.int64), np.zeros(0, np.int16), np.zeros(0, np.float32))


def no_lists(compiled: layout.Compiled) -> Lists:
    """Nothing shown."""
    u8, i8, i4 = np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.int32)
    matrix = np.zeros((0, compiled.id_width), np.uint64)
    return Lists(u8, u8, u8, i8, i4, u8, matrix, np.zeros((0, len(compiled.numbers)), np.float32), {})


def _ids(values: list[Any], ids: identities.Ids) -> U64:
    return np.array(list(map(ids.__getitem__, values)), np.uint64)


def _category(values: list[Any], width: int, ids: identities.Ids) -> tuple[U64, int]:
    """(n, width) ids and how many values found no column. None is the empty text, or no value at all in a multi-valued column."""
    if width == 1:
        try:
            return np.array([ids["" if v is None else v] for v in values], np.uint64).reshape(-1, 1), 0
        except TypeError:
            pass
    rows: dict[Any, int] = {}
    place = np.array([rows.setdefault(tuple(v) if type(v) is list else v, len(rows)) for v in values], np.int64)
    hashed = [ids.several(row) for row in rows]
    extra = np.array([max(0, len(row) - width) for row in hashed], np.int64)
    nothing = [ids[""]] if width == 1 else []
    blank = [identities.PAD] * width
    table = np.array([((row or nothing) + blank)[:width] for row in hashed], np.uint64).reshape(-1, width)
    return table[place], int(extra[place].sum())
