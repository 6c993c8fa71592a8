"""Shown lists and actions in columns: the one form in which data sets and the simulator hand over their events."""

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

I16 = npt.NDArray[np.int16]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Scalar = str | int | float | bool
Attribute = list[Any]

Z90 = 1.2815515655446004
"""The 90th percentile of the standard normal."""


class Entities(NamedTuple):
    """Users or items by code: their ids and, by name, one value (or list of values) for each."""

    ids: list[str]
    attributes: dict[str, Attribute]

    def describe(self, code: int) -> dict[str, Scalar | list[Scalar]]:
        """The attributes of one entity, as they stand in a message."""
        return {name: values[code] for name, values in self.attributes.items()}


class World(NamedTuple):
    """What the codes of a block mean. The simulator appends users and items; codes never change."""

    name: str
    users: Entities
    items: Entities
    scenarios: tuple[str, ...]
    kinds: tuple[str, ...]


class Block(NamedTuple):
    """L shown lists in order of `ts_ms` with R rows and A actions.

    Lists: `user`, `scenario`, `ts_ms`, `held_ms` (how long after `ts_ms` the message is sent) are (L,); rows of list i are
    `start[i]` to `start[i + 1]` of `item` and `truth` (the true probability of a click, NaN where unknown); a row's place in
    its list is its position. Actions: `a_list` (index in this block), `a_item` (-1: none), `a_kind` (index in `World.kinds`),
    `a_delay_ms` after the list was shown, `a_held_ms`. `again` and `a_again` are lists and actions sent twice: (n, 2) of
    index and milliseconds after the first time. `first` is the index of the first list in the whole log.
    """

    first: int
    user: I32
    scenario: I16
    ts_ms: I64
    held_ms: I64
    start: I64
    item: I32
    truth: F32
    a_list: I64
    a_item: I32
    a_kind: I16
    a_delay_ms: I64
    a_held_ms: I64
    again: I64
    a_again: I64
    a_value: F32 | None = None
    """(A,) what each action says, such as a rating; None: 1 each."""


class Delay(NamedTuple):
    """How long after the impression an action comes: log-normal, given by its median and 90th percentile in seconds; 0: now."""

    median_s: float = 0.0
    p90_s: float = 0.0

    def draw(self, random: np.random.Generator, n: int) -> I64:
        """(n,) milliseconds, at least 1.

        Raises:
            ValueError: a negative median, or a 90th percentile below the median.
        """
        if self.median_s < 0 or (self.median_s > 0 and self.p90_s < self.median_s):
            raise ValueError(f"delay: need 0 <= median_s <= p90_s, got {self.median_s} and {self.p90_s}")
        if self.median_s == 0:
            return np.ones(n, np.int64)
        sigma = math.log(self.p90_s / self.median_s) / Z90
        return np.maximum(1, np.rint(1000 * self.median_s * np.exp(sigma * random.standard_normal(n)))).astype(np.int64)


def take(block: Block, lists: int) -> Block:
    """The first `lists` lists with their rows, actions and repetitions."""
    n = min(lists, len(block.user))
    kept = block.a_list < n
    renumbered = np.cumsum(kept) - 1
    a_again = block.a_again[kept[block.a_again[:, 0]]].copy()
    a_again[:, 0] = renumbered[a_again[:, 0]]
    rows = block.start[n]
    return Block(
        first=block.first,
        user=block.user[:n],
        scenario=block.scenario[:n],
        ts_ms=block.ts_ms[:n],
        held_ms=block.held_ms[:n],
        start=block.start[: n + 1],
        item=block.item[:rows],
        truth=block.truth[:rows],
        a_list=block.a_list[kept],
        a_item=block.a_item[kept],
        a_kind=block.a_kind[kept],
        a_delay_ms=block.a_delay_ms[kept],
        a_held_ms=block.a_held_ms[kept],
        again=block.again[block.again[:, 0] < n],
        a_again=a_again,
        a_value=None if block.a_value is None else block.a_value[kept],
    )


def values(block: Block, kind: int, least: float = 0.0) -> F32:
    """(R,) the greatest value of a row's actions of `kind`, NaN without one; those below `least` do not count."""
    lists = np.repeat(np.arange(len(block.user)), np.diff(block.start))
    width = int(max(block.item.max(initial=0), block.a_item.max(initial=0))) + 1
    value = np.ones(len(block.a_list), np.float32) if block.a_value is None else block.a_value
    wanted = (block.a_kind == kind) & (block.a_item >= 0) & (value >= least)
    row, acted = lists * width + block.item, block.a_list[wanted] * width + block.a_item[wanted]
    order = np.argsort(row, kind="stable")
    at = order[np.searchsorted(row, acted, sorter=order).clip(max=len(row) - 1)] if len(row) else order[:0]
    there = row[at] == acted if len(row) else np.zeros(0, bool)
    out = np.full(len(row), -np.inf, np.float32)
    np.maximum.at(out, at[there], value[wanted][there])
    return np.where(np.isfinite(out), out, np.float32(np.nan))


def labels(block: Block, kind: int) -> F32:
    """(R,) 1 for the rows with an action of `kind`, else 0."""
    lists = np.repeat(np.arange(len(block.user)), np.diff(block.start))
    width = int(max(block.item.max(initial=0), block.a_item.max(initial=0))) + 1
    wanted = (block.a_kind == kind) & (block.a_item >= 0)
    acted = block.a_list[wanted] * width + block.a_item[wanted]
    return np.isin(lists * width + block.item, acted).astype(np.float32)
