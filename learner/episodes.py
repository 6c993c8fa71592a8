"""Episodes: packed messages become one set of columns per fetch, cut into minibatches of whole lists."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models import base
from state import columns, config, plan
from state.columns import Columns

I64 = npt.NDArray[np.int64]
LIST_COLUMNS = {"request": "<u8", "user": "<u8", "scenario": "<u8", "task": "<u8", "ts": "<i8", "version": "<i4"}
COUNTS = {"n_items": "<i4", "n_support": "<i4"}
ROW_COLUMNS = ("ids", "x", "label", "weight")
PROPENSITY = "propensity"
"""Column of rows in messages of which somebody said how likely items were to be shown where they were; NaN: not known."""
SUPPORT_COLUMNS = ("s_ids", "s_x", "s_label", "s_ts")


class Message(NamedTuple):
    """One record of the `episodes` topic, or of `control`."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes


class Layout(NamedTuple):
    """What a message must look like: fingerprint of the feature spec, and the widths of its matrices."""

    spec: str
    ids: int
    numbers: int
    objectives: int
    declared: tuple[config.Objective, ...] = ()
    """What the labels mean; empty: all are binary and exist in every scenario."""


class Refused(ValueError):
    """A message cannot be trained on and belongs in dead-letters; `reason` is one of `state.plan`'s words."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


class Lists(NamedTuple):
    """The lists of one fetch in order. `source` (L,) is the message of each list, `place` (L,) its position there."""

    columns: Columns
    source: I64
    place: I64
    scenarios: dict[int, str]
    items: dict[int, str] = {}
    """Ids of items as they were sent, by hash, where the configuration names them."""

    @property
    def size(self) -> int:
        """L, how many lists."""
        return len(self.place)

    @property
    def rows(self) -> int:
        """Items of all lists."""
        return len(self.columns["ids"])


class Minibatch(NamedTuple):
    """Whole lists for one step: lists `first` to `last` (exclusive) and rows `start` to `stop` of the fetch."""

    batch: base.Batch
    first: int
    last: int
    start: int
    stop: int
    now_ms: int
    """Event time of the newest list."""


class Names(NamedTuple):
    """What hashes stand for in one message."""

    scenarios: dict[int, str]
    items: dict[int, str]


def decode(value: bytes, layout: Layout) -> tuple[Columns, Names]:
    """The columns of one message and its names, checked so that nothing later can fail on them.

    Raises:
        Refused: foreign or truncated bytes, another feature spec, a column of the wrong type or length, or values that no
            model can use (an infinite number, a label that its objective does not have, a weight that is negative or not finite).
    """
    try:
        head, packed = columns.unpack(value)
    except columns.UnreadableColumns as error:
        raise Refused(plan.MALFORMED, str(error)) from error
    if head.get("spec") != layout.spec:
        found = head.get("spec")
        raise Refused(plan.SCHEMA, f"made by feature spec {found}, this learner's is {layout.spec}; replay the raw topics")
    _check_shapes(packed, layout)
    _check_values(packed)
    _check_times(packed)
    _check_labels(packed, layout)
    return packed, Names(*(_names(head, what) for what in Names._fields))


def _names(head: dict[str, Any], what: str) -> dict[int, str]:
    try:
        return {int(key): str(name) for key, name in head.get(what, {}).items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise Refused(plan.MALFORMED, f"head `{what}` is not a map of hashes to names: {error}") from error


def _check_shapes(packed: Columns, layout: Layout) -> None:
    lists = len(packed.get("request", ()))
    for name, dtype in (LIST_COLUMNS | COUNTS).items():
        _expect(packed, name, dtype, (lists,))
    if packed["n_items"].min(initial=0) < 0 or packed["n_support"].min(initial=0) < 0:
        raise Refused(plan.MALFORMED, "a list has a negative number of items or support rows")
    rows, support = int(packed["n_items"].sum(dtype=np.int64)), int(packed["n_support"].sum(dtype=np.int64))
    for name, dtype, shape in (
        ("ids", "<u8", (rows, layout.ids)),
        ("x", "<f4", (rows, layout.numbers)),
        ("label", "<f4", (rows, layout.objectives)),
        ("weight", "<f4", (rows, layout.objectives)),
        ("s_ids", "<u8", (support, layout.ids)),
        ("s_x", "<f4", (support, layout.numbers)),
        ("s_label", "<f4", (support, layout.objectives)),
        ("s_ts", "<i8", (support,)),
    ):
        _expect(packed, name, dtype, shape)
    if PROPENSITY in packed:
        _expect(packed, PROPENSITY, "<f4", (rows,))


def _expect(packed: Columns, name: str, dtype: str, shape: tuple[int, ...]) -> None:
    array = packed.get(name)
    if array is None:
        raise Refused(plan.MALFORMED, f"column `{name}` is missing")
    if array.dtype.str != dtype or array.shape != shape:
        raise Refused(plan.MALFORMED, f"column `{name}` is {array.dtype.str}{list(array.shape)}, expected {dtype}{list(shape)}")


def _check_values(packed: Columns) -> None:
    for name in ("x", "s_x"):
        if np.isinf(packed[name]).any():
            raise Refused(plan.MALFORMED, f"column `{name}` holds an infinite number")
    if not (np.isfinite(packed["weight"]) & (packed["weight"] >= 0)).all():
        raise Refused(plan.MALFORMED, "column `weight` holds a value that is negative or not finite")
    said = packed.get(PROPENSITY, np.zeros(0, np.float32))
    if ((said <= 0) | (said > 1)).any():
        raise Refused(plan.MALFORMED, "column `propensity` holds a value that is not above 0 and at most 1")


def _check_times(packed: Columns) -> None:
    """Support that is not strictly earlier than its list would tell the answer."""
    future = int((packed["s_ts"] >= np.repeat(packed["ts"], packed["n_support"])).sum())
    if future:
        raise Refused(plan.MALFORMED, f"{future} support rows are not earlier than their list")


def _check_labels(packed: Columns, layout: Layout) -> None:
    for name in ("label", "s_label"):
        if not any(o.kind != "binary" or o.scenarios for o in layout.declared):
            if not ((packed[name] >= 0) & (packed[name] <= 1)).all():
                raise Refused(plan.MALFORMED, f"column `{name}` holds a value outside [0, 1]")
            continue
        for column, objective in zip(packed[name].T, layout.declared, strict=True):
            problem = problem_of(column, objective)
            if problem:
                raise Refused(plan.MALFORMED, f'column `{name}` of objective "{objective.name}" holds {problem}')
    if (np.isnan(packed["label"]) & (packed["weight"] > 0)).any():
        raise Refused(plan.MALFORMED, "column `weight` is above 0 where there is no label")


def problem_of(label: npt.NDArray[np.float32], objective: config.Objective) -> str:
    """What labels (n,) are not those of their objective, in words, or an empty string."""
    known = label[~np.isnan(label)]
    kind, classes = objective.kind, objective.classes
    if len(known) < len(label) and kind in {"binary", "ranking"} and not objective.scenarios:
        return "NaN, and it exists in every scenario"
    if not np.isfinite(known).all():
        return "an infinite number"
    if kind == "multiclass" and not ((known >= 0) & (known < classes) & (known == np.floor(known))).all():
        return f"what is no class, 0 to {classes - 1}"
    if kind == "binary" and not ((known >= 0) & (known <= 1)).all():
        return "a value outside [0, 1]"
    if (kind == "ranking" or objective.transform == "log1p") and (known < 0).any():
        return "a negative value"
    return ""


def merge(decoded: Sequence[tuple[Columns, Names]], layout: Layout) -> Lists:
    """One set of columns of all messages of a fetch, in their order; `source` counts from 0."""
    if not decoded:
        return Lists(_empty(layout), np.zeros(0, np.int64), np.zeros(0, np.int64), {})
    names = (*LIST_COLUMNS, *COUNTS, *ROW_COLUMNS, *SUPPORT_COLUMNS)
    merged = {name: np.concatenate([packed[name] for packed, _ in decoded]) for name in names}
    if any(PROPENSITY in packed for packed, _ in decoded):
        merged[PROPENSITY] = np.concatenate([_propensity(packed) for packed, _ in decoded])
    lengths = [len(packed["request"]) for packed, _ in decoded]
    names_of = Names({}, {})
    for _, found in decoded:
        for known, more in zip(names_of, found, strict=True):
            known.update(more)
    index = np.concatenate([np.arange(n, dtype=np.int64) for n in lengths])
    return Lists(merged, np.repeat(np.arange(len(lengths)), lengths), index, *names_of)


def _propensity(packed: Columns) -> npt.NDArray[np.float32]:
    return packed.get(PROPENSITY, np.full(len(packed["ids"]), np.nan, np.float32))


def _empty(layout: Layout) -> Columns:
    widths = {"ids": layout.ids, "x": layout.numbers, "label": layout.objectives, "weight": layout.objectives}
    widths |= {"s_ids": layout.ids, "s_x": layout.numbers, "s_label": layout.objectives}
    dtypes = {name: np.dtype("<u8" if name.endswith("ids") else "<f4") for name in widths}
    flat: Columns = {name: np.zeros(0, dtype) for name, dtype in (LIST_COLUMNS | COUNTS | {"s_ts": "<i8"}).items()}
    return flat | {name: np.zeros((0, width), dtypes[name]) for name, width in widths.items()}


def keep(lists: Lists, wanted: npt.NDArray[np.bool_]) -> Lists:
    """The lists for which `wanted` (L,) is true, with their rows and support rows."""
    if wanted.all():
        return lists
    old = lists.columns
    rows, support = np.repeat(wanted, old["n_items"]), np.repeat(wanted, old["n_support"])
    masks: dict[str, npt.NDArray[Any]] = dict.fromkeys(LIST_COLUMNS | COUNTS, wanted)
    masks |= dict.fromkeys((*ROW_COLUMNS, PROPENSITY), rows) | dict.fromkeys(SUPPORT_COLUMNS, support)
    kept = {name: array[masks[name]] for name, array in old.items()}
    return Lists(kept, lists.source[wanted], lists.place[wanted], lists.scenarios, lists.items)


def cut(n_items: npt.NDArray[Any], budget: int) -> list[tuple[int, int]]:
    """Bounds [first, last) of minibatches: as many whole lists as fit into `budget` rows, a longer list alone.

    >>> cut(np.array([20, 20, 20, 90, 5]), 50)
    [(0, 2), (2, 3), (3, 4), (4, 5)]
    """
    ends = np.cumsum(n_items, dtype=np.int64)
    bounds, first, before = [], 0, 0
    while first < len(ends):
        last = max(first + 1, int(ends.searchsorted(before + budget, "right")))
        bounds.append((first, last))
        first, before = last, int(ends[last - 1])
    return bounds


def importance(propensity: npt.NDArray[np.float32], clip: float) -> npt.NDArray[np.float32]:
    """(n,) what the losses of rows are multiplied by: min(1 / propensity, clip), and 1 where the propensity is not known (NaN).

    With 1 / propensity a loss is, in expectation over what the exploration draws, the loss of every row that could have been
    shown (Schnabel et al. 2016, "Recommendations as Treatments", section 4); the clip bounds its variance and biases it towards
    what is shown often (truncated importance sampling, Ionides 2008). Not normalised by the sum of the weights.

    >>> importance(np.array([0.5, 0.01, 1.0, np.nan], np.float32), 20.0).tolist()
    [2.0, 20.0, 1.0, 1.0]
    """
    return np.where(np.isnan(propensity), np.float32(1), np.minimum(np.float32(1) / propensity, np.float32(clip)))


def propensities(lists: Lists, clip: float) -> dict[str, int]:
    """How many rows have a known propensity, by what is done with it: `weighted` and of these `clipped`, or `unused`."""
    said = lists.columns.get(PROPENSITY)
    if said is None:
        return {}
    known = said[~np.isnan(said)]
    if not clip:
        return {"unused": len(known)}
    return {"weighted": len(known), "clipped": int((known < np.float32(1) / np.float32(clip)).sum())}


def minibatches(lists: Lists, budget: int, clip: float = 0.0) -> Iterator[Minibatch]:
    """The minibatches of a fetch, as views of its columns; with a `clip` above 0 rows weigh by `importance`."""
    c = lists.columns
    factors = {"importance": importance(c[PROPENSITY], clip)} if clip and PROPENSITY in c else {}
    row_ends = np.concatenate([[0], np.cumsum(c["n_items"], dtype=np.int64)])
    support_ends = np.concatenate([[0], np.cumsum(c["n_support"], dtype=np.int64)])
    for first, last in cut(c["n_items"], budget):
        start, stop = int(row_ends[first]), int(row_ends[last])
        low, high = int(support_ends[first]), int(support_ends[last])
        part = {name: c[name][first:last] for name in ("scenario", *COUNTS)}
        part |= {name: c[name][start:stop] for name in ROW_COLUMNS}
        part |= {name: c[name][low:high] for name in SUPPORT_COLUMNS}
        part |= {name: array[start:stop] for name, array in factors.items()}
        yield Minibatch(base.batch(part), first, last, start, stop, int(c["ts"][first:last].max()))
