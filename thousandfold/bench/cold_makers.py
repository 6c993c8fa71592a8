"""What the attributes and the makers of a movie let expect of it, before anybody has rated it.

A movie's effect is the mean of its known ratings less the users' biases. A linear rule says it from genres, year, the title's
mark and running time; what the rule leaves is averaged over the other movies of the same directors, writers, cast and studios,
shrunk, and the rule is fitted once more with these. A movie never counts towards its own makers, so that known movies get what
unknown ones would. Movies weigh nearly alike, not by their ratings as in the network's loss: a few that everybody has rated say
little of the next one.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from state import config as configuration
from thousandfold.bench import cold_states, cold_titles
from thousandfold.data import makers, ml1m

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
FEATURE = "expected"
"""The attribute of an item that a number of the features may name."""
MOVIE_PRIOR, MAKER_PRIOR, RIDGE, USER_PRIOR = 20.0, 2.0, 1.0, 5.0
"""Ratings that make half a movie's weight; whole movies that shrink a maker; of the rule; ratings that shrink a bias."""
MARKS = ("sequel", "foreign")


def declared(config: configuration.Config) -> bool:
    """Whether the features name the expectation."""
    return any(number.source == f"item.{FEATURE}" for number in config.features.numbers)


def filled(
    config: configuration.Config, rows: cold_states.Rows, known: I64, ratings: ml1m.Ratings, said: makers.Makers
) -> cold_states.Rows:  # fmt: skip
    """The rows with each movie's expectation, which `known` rows alone teach, in the column of that number."""
    column = [number.source for number in config.features.numbers].index(f"item.{FEATURE}")
    x = rows.x.copy()
    x[:, column] = expected(rows, known, ratings, said)[rows.item]
    return rows._replace(x=x)


def expected(rows: cold_states.Rows, known: I64, ratings: ml1m.Ratings, said: makers.Makers) -> F64:
    """(movies,) in stars above the mean."""
    n = len(ratings.item_id)
    user, item = rows.user[known], rows.item[known]
    residual = rows.rating[known] - float(rows.rating[known].mean())
    of_user, _ = cold_states.biases(user, item, residual, (int(rows.user.max()) + 1, n), USER_PRIOR, USER_PRIOR)
    count = np.bincount(item, minlength=n)
    effect = np.bincount(item, residual - of_user[user], n) / np.maximum(count, 1)
    weight = count / (count + MOVIE_PRIOR)
    plain = _attributes(ratings, said)
    left = effect - _fitted(plain, effect, weight)
    others = [of_makers(said.people[kind], left, weight) for kind in makers.PEOPLE]
    return _fitted(np.column_stack([plain, *others]), effect, weight)


def of_makers(people: Sequence[tuple[str, ...]], left: F64, weight: F64) -> F64:
    """(movies,) the weighted mean of `left` over the other movies of a movie's people, shrunk to zero by `MAKER_PRIOR`."""
    names: dict[str, int] = {}
    movie = np.repeat(np.arange(len(people)), [len(of) for of in people])
    maker = np.array([names.setdefault(name, len(names)) for of in people for name in of], np.int64)
    said = (weight * left)[movie]
    total, mass = np.bincount(maker, said, len(names)), np.bincount(maker, weight[movie], len(names))
    others = np.bincount(movie, total[maker] - said, len(people))
    others_mass = np.bincount(movie, mass[maker] - weight[movie], len(people))
    found: F64 = others / (others_mass + MAKER_PRIOR)
    return found


def _attributes(ratings: ml1m.Ratings, said: makers.Makers) -> F64:
    of = [set(text.split(" ")) for text in ratings.genres.tolist()]
    genres = [[name in own for name in sorted(set().union(*of))] for own in of]
    marks = [[cold_titles.mark(title) == mark for mark in MARKS] for title in ratings.item_id.tolist()]
    decade = (ratings.year - 1990) / 10
    hours = np.clip((np.nan_to_num(said.minutes, nan=_mean(said.minutes)) - 105) / 20, -2, 4)
    return np.column_stack([np.ones(len(of)), genres, marks, decade, decade**2, hours, hours**2]).astype(np.float64)


def _mean(values: F64) -> float:
    told = values[np.isfinite(values)]
    return float(told.mean()) if len(told) else 0.0


def _fitted(columns: F64, effect: F64, weight: F64) -> F64:
    """What weighted least squares with a ridge says of every movie."""
    weighted = columns * weight[:, None]
    found: F64 = columns @ np.linalg.solve(weighted.T @ columns + RIDGE * np.eye(columns.shape[1]), weighted.T @ effect)
    return found
