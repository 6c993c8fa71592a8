"""MeLU's cold-start protocol (Lee et al., KDD 2019) on MovieLens-1M: old and new users by old and new movies.

Four of five users, drawn by a seed, and the movies up to 1997 are old. In each of the four quadrants a user with 13 to 100
ratings is a task: the last ten are asked, or ten at random as in MeLU's code; the others are its support. Models learn from the
tasks of old users on old movies, what is asked in them included as in MeLU's code, and from nothing else; those tasks themselves
are judged by a model that learned from their supports alone. Time leaks: the split ignores it, so a model has learned from
ratings that others gave after those it is asked for; figures compare with those of this protocol and say nothing about a system
that runs (docs/cold_start.md).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from models import base
from state import config as configuration
from state import ids
from thousandfold.bench import cold_titles, figures, logs
from thousandfold.data import blocks, ml1m

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
QUADRANTS = ("old/old", "new/old", "old/new", "new/new")
"""User, then movie."""
LEAST, MOST, ASKED = 13, 100, 10
Asking = Literal["newest", "random"]
"""Which ten of a task are asked: the last ones, or ten that the seed draws (`data_generation.py` of MeLU's authors)."""
ROUNDS = 10
"""Of users' and items' biases in turns."""
OLD_USERS = 0.8
LAST_OLD_YEAR, INNER_LAST_OLD_YEAR = 1997, 1994
"""Of the protocol, a fifth of the movies is newer; of the training part, a third is, so that its quadrants have enough tasks."""
LIKED = 3.0
"""AUC tells ratings above it from the others."""
FIGURES = ("mae", "ndcg1", "ndcg3", "auc")


class Rows(NamedTuple):
    """All R ratings in order of time: codes of user and item, id columns (R, F), raw numbers (R, D), and the item's year."""

    user: I64
    item: I64
    ids: U64
    x: F32
    rating: F32
    at_s: I64
    year: I64


class Task(NamedTuple):
    """Rows of one user in order of time: what is known and what is asked."""

    support: I64
    query: I64


Tasks = list[Task]
States = dict[str, Tasks]
Lists = list[I64]
"""Rows of a user each, in order of time, that may be learned from."""


def read(config: configuration.Config, ratings: ml1m.Ratings) -> Rows:
    """The ratings, with the features that a configuration declares (it must declare no statistics).

    Beside the attributes of `ml1m.world` an item has `mark`, which its title tells (`cold_titles`), and `expected`, which is
    zero until `cold_makers.filled` has been told what may be learned from.
    """
    clicks = (configuration.Objective(name="click", action="click"),)
    log = logs.from_blocks(
        msgspec.structs.replace(config, objectives=clicks), _world(ratings), [ml1m.block(ratings)]
    )  # fmt: skip
    order = ml1m.in_time(ratings)
    user, item = ratings.user[order].astype(np.int64), ratings.item[order].astype(np.int64)
    return Rows(
        user, item, log.lists.ids, log.lists.numbers, ratings.rating[order].astype(np.float32), ratings.at_s[order],
        ratings.year[item].astype(np.int64),
    )  # fmt: skip


def _world(ratings: ml1m.Ratings) -> blocks.World:
    world = ml1m.world(ratings)
    marks: list[blocks.Scalar] = [cold_titles.mark(title) for title in ratings.item_id.tolist()]
    own: dict[str, list[blocks.Scalar]] = {"mark": marks, "expected": [0.0] * len(marks)}
    return world._replace(items=world.items._replace(attributes=world.items.attributes | own))


def outer(rows: Rows, seed: int, asking: Asking = "newest") -> States:
    """The protocol's four quadrants, by name. The seed draws the old users, the same however is asked, and then the asked ten."""
    return _split(rows, np.arange(len(rows.user)), seed, LAST_OLD_YEAR, asking)


def inner(rows: Rows, states: States, seed: int, asking: Asking = "newest") -> States:
    """The same protocol inside the supports of old users on old movies, to choose settings; its old movies end in 1994."""
    return _split(rows, known(_supports(states)), seed, INNER_LAST_OLD_YEAR, asking)


def parts(states: States) -> list[tuple[States, Lists]]:
    """The quadrants in two parts, each with what may be learned from for it.

    MeLU's outer loss is of the queries of old users on old movies (`global_update` of its authors' code), so supports and queries
    teach what is asked of a new user or movie. Those queries are themselves a quadrant, which only the supports may teach.
    """
    others = {name: tasks for name, tasks in states.items() if name != "old/old"}
    return [
        ({"old/old": states["old/old"]}, _supports(states)),
        (others, [np.sort(np.concatenate(task)) for task in states["old/old"]]),
    ]


def known(lists: Lists) -> I64:
    """All rows of the lists, in order of time."""
    return np.sort(np.concatenate(lists))


def _supports(states: States) -> Lists:
    return [task.support for task in states["old/old"]]


def _split(rows: Rows, kept: I64, seed: int, last_old_year: int, asking: Asking) -> States:
    users, generator = np.unique(rows.user[kept]), np.random.default_rng(seed)
    drawn = generator.permutation(users)[: round(OLD_USERS * len(users))]
    old_user, old_movie = np.isin(rows.user[kept], drawn), rows.year[kept] <= last_old_year
    found = {}
    for name in QUADRANTS:
        user, movie = (part == "old" for part in name.split("/"))
        lists = _lists(rows, kept[(old_user == user) & (old_movie == movie)])
        ordered = lists if asking == "newest" else [generator.permutation(part) for part in lists]
        found[name] = [Task(np.sort(part[:-ASKED]), np.sort(part[-ASKED:])) for part in ordered]
    return found


def _lists(rows: Rows, kept: I64) -> Lists:
    order = kept[np.argsort(rows.user[kept], kind="stable")]
    bounds = np.flatnonzero(np.diff(rows.user[order])) + 1
    return [part for part in np.split(order, bounds) if LEAST <= len(part) <= MOST]


def biases(
    user: I64, item: I64, residual: npt.NDArray[Any], sizes: tuple[int, int], user_prior: float, item_prior: float
) -> tuple[F64, F64]:  # fmt: skip
    """Biases of `sizes` users and items that explain ratings less their mean (n,), each shrunk as by so many ratings of zero."""
    of_user, of_item = np.zeros(sizes[0]), np.zeros(sizes[1])
    n_user, n_item = np.bincount(user, minlength=sizes[0]) + user_prior, np.bincount(item, minlength=sizes[1]) + item_prior
    for _ in range(ROUNDS):
        of_item = np.bincount(item, residual - of_user[user], sizes[1]) / n_item
        of_user = np.bincount(user, residual - of_item[item], sizes[0]) / n_user
    return of_user, of_item


def batch(rows: Rows, tasks: Sequence[Task], centre: float, absent: Bools | None = None, column: int = 0) -> base.Batch:
    """Tasks as lists with their support; labels are ratings less `centre`. In tasks `absent` (T,) an id column is unknown."""
    queries, supports = np.concatenate([task.query for task in tasks]), np.concatenate([task.support for task in tasks])
    n_query, n_support = np.array([len(task.query) for task in tasks]), np.array([len(task.support) for task in tasks])
    found, known_ids = rows.ids[queries], rows.ids[supports]
    if absent is not None:
        found[np.repeat(absent, n_query), column] = ids.PAD
        known_ids[np.repeat(absent, n_support), column] = ids.PAD
    label = (rows.rating[queries] - np.float32(centre))[:, None]
    return base.Batch(
        found, rows.x[queries], label, np.ones_like(label), np.zeros(len(tasks), np.uint64), n_query, n_support,
        known_ids, rows.x[supports], (rows.rating[supports] - np.float32(centre))[:, None], rows.at_s[supports] * 1000,
    )  # fmt: skip


def judge(rows: Rows, tasks: Tasks, score: npt.NDArray[Any]) -> dict[str, float]:
    """Figures of predicted ratings (T, 10): mean absolute error of what is clipped to 1 to 5, nDCG by user, AUC over all rows."""
    asked = np.stack([task.query for task in tasks])
    rating, group = rows.rating[asked].reshape(-1), np.repeat(np.arange(len(tasks)), ASKED)
    flat = np.asarray(score, np.float64).reshape(-1)
    return {
        "mae": float(np.abs(np.clip(flat, 1, 5) - rating).mean()),
        "ndcg1": figures.ndcg(group, rating, flat, 1),
        "ndcg3": figures.ndcg(group, rating, flat, 3),
        "auc": figures.auc((rating > LIKED).astype(np.float64), flat),
    }


def worth(told: Mapping[str, Mapping[str, float]]) -> float:
    """By what settings are chosen: nDCG@3 less the mean absolute error, the mean over the quadrants."""
    return float(np.mean([f["ndcg3"] - f["mae"] for f in told.values()]))
