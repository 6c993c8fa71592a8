import functools
import pathlib

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from state import config as configuration
from state import ids
from thousandfold import specs
from thousandfold.bench import (
    cold_items,
    cold_makers,
    cold_start,
    cold_states,
    cold_study,
    cold_titles,
    figures,
    logs,
    protocol,
    quality,
    report,
)
from thousandfold.data import makers, ml1m

CONFIG = configuration.load(specs.path("ml1m_cold"))
USERS, MOVIES = 40, 120


@functools.cache
def ratings() -> ml1m.Ratings:
    """Users who rate 20 to 110 of 120 movies, three quarters of them up to 1997, by genre and some noise."""
    generator = np.random.default_rng(5)
    counts = generator.integers(20, 110, USERS)
    user = np.repeat(np.arange(USERS), counts)
    item = np.concatenate([generator.permutation(MOVIES)[:n] for n in counts])
    genre = np.array(["Drama", "War"])[np.arange(MOVIES) % 2]
    year = np.where(np.arange(MOVIES) % 4 == 3, 1999, 1980 + np.arange(MOVIES) % 17)
    liked = 3 + (np.arange(MOVIES)[item] % 2) + (user % 2) - (generator.random(len(item)) < 0.3)
    return ml1m.Ratings(
        user=user.astype(np.int32), item=item.astype(np.int32), rating=liked.astype(np.int8),
        at_s=generator.integers(10**9, 10**9 + 10**6, len(item)), user_id=np.array([f"u{k}" for k in range(USERS)]),
        gender=np.array(["F", "M"])[np.arange(USERS) % 2], age=np.full(USERS, 25, np.int32),
        occupation=np.zeros(USERS, np.int32), zip_code=np.full(USERS, "12345"),
        item_id=np.array([f"m{k}" for k in range(MOVIES)]), genres=genre, year=year.astype(np.int32),
    )  # fmt: skip


@functools.cache
def said() -> makers.Makers:
    """Of every eight movies four have the good director, so that genre and year do not tell who."""
    director: list[tuple[str, ...]] = [("good",) if movie // 4 % 2 else ("bad",) for movie in range(MOVIES)]
    nobody: list[tuple[str, ...]] = [()] * MOVIES
    return makers.Makers(
        {"director": director, "writer": nobody, "cast": nobody, "studio": nobody}, np.full(MOVIES, np.nan)
    )  # fmt: skip


@functools.cache
def rows() -> cold_states.Rows:
    return cold_states.read(CONFIG, ratings())


def draw(seed: int) -> list[cold_study.Part]:
    return [cold_study.Part(rows(), judged, lists) for judged, lists in cold_states.parts(cold_states.outer(rows(), seed))]


@given(st.integers(0, 50))
@settings(max_examples=15, deadline=None)
def test_quadrants_keep_users_and_movies_apart_and_ask_the_last_ten(seed: int) -> None:
    found, states = rows(), cold_states.outer(rows(), seed)
    users = {name: {int(found.user[t.query[0]]) for t in tasks} for name, tasks in states.items()}
    assert not (users["old/old"] | users["old/new"]) & (users["new/old"] | users["new/new"])
    for name, tasks in states.items():
        assert tasks
        for task in tasks:
            every = np.concatenate(task)
            assert len(set(found.user[every])) == 1
            assert ((found.year[every] > 1997) == name.endswith("/new")).all()
            assert len(task.query) == 10
            assert 13 <= len(every) <= 100
            assert found.at_s[task.support].max() <= found.at_s[task.query].min()


def whole(task: cold_states.Task) -> list[int]:
    return np.concatenate(task).tolist()  # type: ignore[no-any-return]


@given(st.integers(0, 50))
@settings(max_examples=15, deadline=None)
def test_ten_at_random_are_asked_of_the_same_tasks_as_the_newest_and_drawn_by_the_seed(seed: int) -> None:
    newest, drawn = cold_states.outer(rows(), seed), cold_states.outer(rows(), seed, "random")
    again, other = cold_states.outer(rows(), seed, "random"), cold_states.outer(rows(), seed + 1, "random")
    moved, differ = 0, 0
    for name in cold_states.QUADRANTS:
        for last, task, same in zip(newest[name], drawn[name], again[name], strict=True):
            assert whole(last) == sorted(whole(task))
            assert len(set(whole(task))) == len(whole(task))
            assert len(task.query) == len(last.query) == 10
            assert [part.tolist() for part in task] == [sorted(part.tolist()) for part in same]
            moved += len(set(task.query.tolist()) - set(last.query.tolist()))
        of_user = {int(rows().user[task.query[0]]): task for task in other[name]}
        same_users = [(task, of_user[user]) for task in drawn[name] if (user := int(rows().user[task.query[0]])) in of_user]
        differ += sum(a.query.tolist() != b.query.tolist() for a, b in same_users)
    assert moved > 0
    assert differ > 0


@pytest.mark.parametrize("asking", ["newest", "random"])
def test_the_tasks_that_settings_are_chosen_on_are_asked_alike(asking: cold_states.Asking) -> None:
    states = cold_states.outer(rows(), 1, asking)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cold_states, "INNER_LAST_OLD_YEAR", 1990)
        inside = cold_states.inner(rows(), states, 0, asking)
    kept = set(np.concatenate([task.support for task in states["old/old"]]).tolist())
    every = [task for tasks in inside.values() for task in tasks]
    assert {row for task in every for row in whole(task)} <= kept
    assert all(len(task.query) == 10 for task in every)
    assert all(whole(task) == sorted(whole(task)) for task in every) == (asking == "newest")


@given(st.integers(0, 50))
@settings(max_examples=15, deadline=None)
def test_nothing_is_learned_that_is_asked_there_or_of_a_new_user_or_movie(seed: int) -> None:
    found, states = rows(), cold_states.outer(rows(), seed)
    new = {int(r) for name in states if name != "old/old" for task in states[name] for r in np.concatenate(task)}
    judged = dict[str, cold_states.Tasks]()
    random = cold_states.parts(cold_states.outer(found, seed, "random"))[1][1]
    assert [lists.tolist() for lists in random] == [np.concatenate(task).tolist() for task in states["old/old"]]
    for part, lists in cold_states.parts(states):
        known = set(cold_states.known(lists).tolist())
        asked = {int(r) for tasks in part.values() for task in tasks for r in task.query}
        assert not known & (asked | new)
        judged |= part
        for one, task in zip(lists, states["old/old"], strict=True):
            every = np.concatenate(task)
            assert one.tolist() == (task.support if "old/old" in part else every).tolist()
    assert judged == states
    inside, (_, supports) = cold_states.inner(found, states, seed), cold_states.parts(states)[0]
    kept = set(cold_states.known(supports).tolist())
    assert {int(r) for tasks in inside.values() for task in tasks for r in np.concatenate(task)} <= kept


def test_what_old_users_were_asked_teaches_the_other_quadrants_only() -> None:
    states = cold_states.outer(rows(), 0)
    asked = np.concatenate([task.query for task in states["old/old"]])
    other = rows()._replace(rating=rows().rating.copy())
    other.rating[asked] = 6 - other.rating[asked]
    for (judged, lists), name in zip(cold_states.parts(states), ("old/old", "new/old"), strict=True):
        same, turned = (cold_study.Part(r, {name: judged[name]}, lists) for r in (rows(), other))
        before, after = cold_study.centre(same), cold_study.centre(turned)
        assert (before == after) == (name == "old/old")


def test_a_batch_hides_the_movie_of_the_tasks_that_are_named() -> None:
    tasks = cold_states.outer(rows(), 0)["old/old"][:3]
    batch = cold_states.batch(rows(), tasks, 3.5, np.array([False, True, False]))
    hidden = np.repeat([False, True, False], batch.n_items)
    assert ((batch.ids[:, 0] == ids.PAD) == hidden).all()
    assert ((batch.s_ids[:, 0] == ids.PAD) == np.repeat([False, True, False], batch.n_support)).all()
    assert batch.label[:, 0].tolist() == [rows().rating[r] - 3.5 for task in tasks for r in task.query]
    assert batch.s_label[:, 0].tolist() == [rows().rating[r] - 3.5 for task in tasks for r in task.support]
    assert (rows().ids[:, 0] != ids.PAD).all()


def directed() -> cold_states.Rows:
    """The rows, with a star more for the movies of the good director."""
    return rows()._replace(rating=rows().rating + (rows().item // 4 % 2).astype(np.float32))


def test_a_new_movie_is_expected_to_be_as_the_others_of_its_makers() -> None:
    found = directed()
    known = np.flatnonzero(found.year <= 1997)
    expected = cold_makers.expected(found, known, ratings(), said())
    new = np.flatnonzero(ratings().year > 1997)
    good = new // 4 % 2 == 1
    assert expected[new[good]].min() > expected[new[~good]].max() + 0.3
    unsaid = said()._replace(people=dict.fromkeys(makers.PEOPLE, [()] * MOVIES))
    blind = cold_makers.expected(found, known, ratings(), unsaid)
    assert abs(blind[new[good]].mean() - blind[new[~good]].mean()) < 0.3


def test_expectations_know_nothing_but_the_known_rows() -> None:
    found = directed()
    known = np.flatnonzero(found.year <= 1997)
    other = found._replace(rating=np.where(found.year <= 1997, found.rating, 6 - found.rating))
    np.testing.assert_array_equal(
        cold_makers.expected(found, known, ratings(), said()), cold_makers.expected(other, known, ratings(), said())
    )


@given(st.integers(0, 4), st.floats(-3, 3))
def test_a_movie_never_counts_towards_its_own_makers(movie: int, left: float) -> None:
    people = [("a",), ("a", "b"), ("b",), (), ("c",)]
    effect, weight = np.array([0.5, -1.0, 0.25, 2.0, 1.0]), np.array([1.0, 0.5, 0.25, 1.0, 0.75])
    before = cold_makers.of_makers(people, effect, weight)
    changed = effect.copy()
    changed[movie] = left
    assert cold_makers.of_makers(people, changed, weight)[movie] == pytest.approx(before[movie])
    assert before[2] == pytest.approx(0.5 * -1.0 / (0.5 + cold_makers.MAKER_PRIOR))
    assert before[3] == before[4] == 0


def test_the_expectation_fills_the_column_that_the_features_name() -> None:
    known = draw(0)[0].lists[0]
    filled = cold_makers.filled(CONFIG, rows(), known, ratings(), said())
    assert (rows().x[:, 1] == 0).all()
    expected = cold_makers.expected(rows(), known, ratings(), said())
    np.testing.assert_allclose(filled.x[:, 1], expected[rows().item], rtol=1e-6)
    assert (filled.x[:, 0] == rows().x[:, 0]).all()
    unnamed = msgspec.structs.replace(CONFIG, features=msgspec.structs.replace(CONFIG.features, numbers=()))
    assert cold_makers.declared(CONFIG)
    assert not cold_makers.declared(unnamed)


def test_figures_of_a_perfect_a_constant_and_an_excessive_prediction() -> None:
    tasks = cold_states.outer(rows(), 0)["old/old"]
    truth = np.stack([rows().rating[task.query] for task in tasks])
    assert cold_states.judge(rows(), tasks, truth) == {"mae": 0.0, "ndcg1": 1.0, "ndcg3": 1.0, "auc": 1.0}
    same = cold_states.judge(rows(), tasks, np.full_like(truth, 3.0))
    assert same["auc"] == 0.5
    gain = np.exp2(truth) - 1
    assert same["ndcg1"] == pytest.approx((gain.mean(1) / gain.max(1)).mean())
    assert cold_states.judge(rows(), tasks, truth + 100)["mae"] == pytest.approx(5 - truth.mean())


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=30), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_ndcg_is_the_mean_over_random_orders_of_tied_rows(drawn: list[tuple[int, int, int]], k: int) -> None:
    group, label, score = (np.array(part) for part in zip(*drawn, strict=True))
    expected = []
    for g in np.unique(group):
        gain, own = 2.0 ** label[group == g] - 1, score[group == g]
        discount = np.where(np.arange(len(own)) < k, 1 / np.log2(np.arange(len(own)) + 2), 0)
        ideal = (np.sort(gain)[::-1] * discount).sum()
        if ideal > 0:
            place = [(own > s).sum() + np.arange((own == s).sum()) for s in own]
            expected.append(sum(g_ * discount[p].mean() for g_, p in zip(gain, place, strict=True)) / ideal)
    found = figures.ndcg(group, label, score, k) if label.any() else None
    assert found is None or found == pytest.approx(np.mean(expected))


def test_biases_without_shrinkage_fit_and_with_all_of_it_are_the_mean() -> None:
    for part, name in zip(draw(1), ("old/old", "new/old"), strict=True):
        flat, tasks = cold_study.biases(part, 1e12, 1e12)[name], part.states[name]
        mean = np.full((len(tasks), 10), cold_study.centre(part))
        assert flat["mae"] == pytest.approx(cold_states.judge(rows(), tasks, mean)["mae"], abs=1e-6)
        assert cold_study.biases(part, 1.0, 1.0)[name]["mae"] < cold_study.user_mean(part)[name]["mae"]


def test_adaptation_learns_what_users_differ_in_and_the_judged_variant_carries_the_targets() -> None:
    chosen = {"ridge": cold_study.Settings({"meta.inner_rate": 0.1}, epochs=6, worth=1.0)}
    names = ("user_mean", "ridge", "fine_tune")
    runs = [cold_study.measure(CONFIG, draw(seed), names, chosen, seed, lambda _: None) for seed in (0, 1)]
    assert list(runs[0]) == ["user_mean", "no_adaptation", "fine_tune", "ridge"]
    for quadrant in cold_states.QUADRANTS:
        assert runs[0]["ridge"][quadrant]["mae"] < runs[0]["no_adaptation"][quadrant]["mae"]
    judged = cold_start.judged(chosen, names)
    assert judged == "ridge"
    told = {row.id: row for row in cold_start.rows_of(runs, judged)}
    bars = [name for name, row in told.items() if row.target is not None]
    assert sorted(bars) == sorted(
        [f"cold/{f}/{u}/new/ridge" for f in ("mae", "ndcg1") for u in ("old", "new")]
        + [f"cold/interval/{f}/{u}/old/ridge" for f in ("mae", "ndcg1") for u in ("old", "new")]
    )
    assert told["cold/mae/new/new/ridge"].stderr is not None
    assert told["cold/interval/mae/old/old/ridge"].value < told["cold/mae/old/old/ridge"].value  # type: ignore[operator]
    asked = {row.id: row for row in cold_start.rows_of(runs, judged, "random")}
    assert set(asked) == {name.replace("cold/", "cold/random/", 1) for name in told}
    assert all(asked[name.replace("cold/", "cold/random/", 1)].target == row.target for name, row in told.items())
    best = [max(figures["new/new"]["ndcg1"] for figures in run.values()) for run in runs]
    assert told["cold/best/ndcg1/new/new"].value == pytest.approx(np.mean(best))
    assert told["cold/best/mae/new/old"].value <= told["cold/mae/new/old/ridge"].value  # type: ignore[operator]


def test_the_command_chooses_writes_measures_and_reports(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ml1m, "load", lambda **_: ratings())
    monkeypatch.setattr(makers, "load", lambda *_, **__: said())
    monkeypatch.setattr(cold_states, "INNER_LAST_OLD_YEAR", 1990)
    file, out = tmp_path / "settings.toml", tmp_path / "report.json"
    run = CliRunner().invoke(cold_start.app, ["--choose", "--variants", "user_mean,biases", "--settings", str(file)])
    assert run.exit_code == 0, run.output
    assert cold_start.read(file)["biases"].worth != 0
    again = ["--variants", "user_mean,biases", "--settings", str(file), "--seeds", "2", "--report", str(out)]
    assert CliRunner().invoke(cold_start.app, again).exit_code == 0
    assert {row.id for row in report.read(out).rows} >= {"cold/mae/old/new/biases", "cold/auc/new/new/user_mean"}
    drawn = tmp_path / "random.json"
    assert CliRunner().invoke(cold_start.app, [*again[:-1], str(drawn), "--asked", "random"]).exit_code == 0
    values = [{row.id: row.value for row in report.read(file).rows} for file in (out, drawn)]
    assert values[1]["cold/random/mae/old/new/biases"] != values[0]["cold/mae/old/new/biases"]
    assert all(name.startswith("cold/random/") for name in values[1])
    wrong = CliRunner().invoke(cold_start.app, ["--asked", "oldest"], env={"COLUMNS": "200"})
    assert wrong.exit_code == 2
    assert "'oldest' is not one of 'newest', 'random'" in wrong.output
    refused = CliRunner().invoke(cold_start.app, ["--variants", "nothing"])
    assert isinstance(refused.exception, configuration.ConfigError)


@pytest.mark.parametrize(
    ("title", "found"),
    [
        ("Toy Story (1995)", "plain"),
        ("Toy Story 2 (1999)", "sequel"),
        ("Father of the Bride Part II (1995)", "sequel"),
        ("Return of Jafar, The (1993)", "sequel"),
        ("12 Angry Men (1957)", "plain"),
        ("I (1966)", "plain"),
        ("Cité des enfants perdus, La (1995)", "foreign"),
        ("Shanghai Triad (Yao a yao yao dao waipo qiao) (1995)", "foreign"),
        ("Truman Show, The (1998)", "plain"),
    ],
)
def test_a_title_tells_a_sequel_and_a_foreign_movie(title: str, found: str) -> None:
    assert cold_titles.mark(title) == found


def test_settings_are_chosen_by_the_mean_over_the_draws() -> None:
    draws = [draw(0)[:1], draw(1)[:1]]
    worth = [cold_states.worth(cold_study.biases(part, 5.0, 5.0)) for (part,) in draws]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cold_study, "PRIORS", (5.0,))
        chosen = cold_study.choose(CONFIG, draws, ["biases"], lambda _: None)
    assert worth[0] != worth[1]
    assert chosen["biases"].worth == pytest.approx(np.mean(worth))


@pytest.mark.parametrize("file", cold_start.SETTINGS.values())
def test_the_settings_that_are_shipped_fit_the_variants(file: str) -> None:
    chosen = cold_start.read(specs.path(file))
    assert set(chosen) == {"biases", *cold_study.GRIDS}
    for variant in cold_study.GRIDS:
        assert cold_study.variant_of(CONFIG, variant, chosen[variant]).meta.support_rows == 100
    with pytest.raises(configuration.ConfigError, match="nothing"):
        cold_study.configured(CONFIG, {"meta.nothing": 1})


@functools.cache
def stream() -> protocol.Inputs:
    config = configuration.load(specs.path("ml1m_ids"))
    return protocol.prepare(config, logs.from_blocks(config, ml1m.world(ratings()), [ml1m.block(ratings())]), protocol.Lag())


def test_impressions_count_an_items_rows_and_classes_hold_new_items_only() -> None:
    inputs, begin = stream(), 60
    n, seen = cold_items.impressions(inputs), dict[int, int]()
    first: dict[int, int] = {}
    for row, item in enumerate(inputs.item.tolist()):
        seen[item] = seen.get(item, 0) + 1
        first.setdefault(item, row)
        assert n[row] == seen[item]
    where = cold_items.classes(inputs, begin)
    for name, (a, z) in zip(("1", "2-5", "6-20"), cold_items.IMPRESSIONS, strict=True):
        expected = [a <= n[r] <= z and first[int(inputs.item[r])] >= begin for r in range(inputs.rows)]
        assert where[name].tolist() == expected
        assert any(expected)


def test_new_items_are_measured_by_first_values_and_generated_ones_compared() -> None:
    config = configuration.load(specs.path("ml1m_ids"))
    meta = msgspec.structs.replace(config.meta, mode="off")
    config = msgspec.structs.replace(config, meta=meta, quality=msgspec.structs.replace(config.quality, block_rows=100))
    ways = {name: cold_items.STARTS[name] for name in ("zero", "generated")}
    runs = [cold_items.measure(config, stream().head(400), ways, seed, 60, quality.Progress()) for seed in (0, 1)]
    told = {row.id: row for row in cold_items.rows_of(runs)}
    gain = [r["generated"]["6-20"].logloss - r["zero"]["6-20"].logloss for r in runs]
    assert told["cold_items/over/logloss/6-20/zero"].value == pytest.approx(np.mean(gain))
    assert told["cold_items/logloss/1/generated"].value is not None
    assert gain[0] != 0
    assert cold_items.table(runs, list(told.values())).row_count == 2
