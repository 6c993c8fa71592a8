import hashlib
import pathlib
import sqlite3
import zipfile

import numpy as np
import pytest

from thousandfold.data import makers, packages

MOVIES = [
    ("The Matrix", 1999, 136.0, "Lana Wachowski, Lilly Wachowski", "Lana Wachowski", "Keanu Reeves, Keanu Reeves", "Silver"),
    ("Les Misérables", 1998, None, "Bille August", None, "", None),
    ("Les Misérables", 2012, 158.0, "Tom Hooper", None, "", None),
    ("Beauty & the Beast", 1991, 84.0, "Gary Trousdale", "", "", ""),
    ("City of Lost Children", 1996, 0.0, "Marc Caro", "", "", ""),
]


def base() -> bytes:
    made = sqlite3.connect(":memory:")
    made.execute("CREATE TABLE omdb (ID, Title, Year, Runtime, Director, Writer, Cast)")
    made.execute("CREATE TABLE tomatoes (ID, Production)")
    for k, (title, year, minutes, director, writer, cast, studio) in enumerate(MOVIES):
        made.execute("INSERT INTO omdb VALUES (?, ?, ?, ?, ?, ?, ?)", (k, title, year, minutes, director, writer, cast))
        made.execute("INSERT INTO tomatoes VALUES (?, ?)", (k, studio))
    return made.serialize()


@pytest.mark.parametrize(
    ("title", "year", "director"),
    [
        ("Matrix, The (1999)", 1999, ("Lana Wachowski", "Lilly Wachowski")),
        ("Misérables, Les (1998)", 1998, ("Bille August",)),
        ("Misérables, Les (1995)", 1995, ()),
        ("Beauty and the Beast (1991)", 1991, ("Gary Trousdale",)),
        ("City of Lost Children, The (Cité des enfants perdus, La) (1995)", 1995, ("Marc Caro",)),
        ("Unheard Of (1999)", 1999, ()),
    ],
)
def test_movies_are_found_by_title_and_a_year_that_may_be_one_apart(title: str, year: int, director: tuple[str, ...]) -> None:
    assert makers.match(base(), [title], [year]).people["director"] == [director]


def test_unknown_names_and_minutes_are_none_and_nobody_stands_twice() -> None:
    found = makers.match(
        base(), ["Matrix, The (1999)", "Misérables, Les (1998)", "City of Lost Children, The (1995)"], [1999, 1998, 1995]
    )
    assert found.people["cast"] == [("Keanu Reeves",), (), ()]
    assert found.people["studio"] == [("Silver",), (), ()]
    np.testing.assert_array_equal(found.minutes, [136.0, np.nan, np.nan])


def test_the_wheel_is_read_from_the_folder_and_a_changed_one_is_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(tmp_path / makers.WHEEL.file, "w") as archive:
        archive.writestr(makers.MEMBER, base())
    with pytest.raises(packages.DataError, match="expected"):
        makers.load(["Matrix, The (1999)"], [1999], tmp_path)
    monkeypatch.setattr(makers, "SHA256", {makers.MEMBER: hashlib.sha256(base()).hexdigest()})
    assert makers.load(["Matrix, The (1999)"], [1999], tmp_path).minutes.tolist() == [136.0]
    (tmp_path / makers.WHEEL.file).write_bytes(b"no archive")
    with pytest.raises(packages.DataError, match="damaged"):
        makers.load(["Matrix, The (1999)"], [1999], tmp_path)
