import itertools
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from thousandfold.data import blocks, simulator

QUIET = simulator.Settings(
    users=300, items=200, duplicate_share=0, disorder_share=0, view_share=0, save_share=0, search_share=0, drift_spread=0
)


def take(settings: simulator.Settings, n: int, seed: int = 0) -> tuple[simulator.Simulator, list[blocks.Block]]:
    made = simulator.Simulator(settings, seed)
    return made, list(itertools.islice(made.events(), n))


def rows(found: list[blocks.Block]) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """Position, scenario, truth and click of every row."""
    position = np.concatenate([np.arange(len(b.item)) - np.repeat(b.start[:-1], np.diff(b.start)) for b in found])
    scenario = np.concatenate([np.repeat(b.scenario, np.diff(b.start)) for b in found])
    return position, scenario, np.concatenate([b.truth for b in found]), np.concatenate([blocks.labels(b, 0) for b in found])


def test_the_same_seed_gives_the_same_log_and_another_seed_another() -> None:
    first, second, other = (take(simulator.Settings(), 4, seed)[1] for seed in (7, 7, 8))
    for a, b in zip(first, second, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a._asdict().values(), b._asdict().values(), strict=True))
    assert not np.array_equal(first[0].item, other[0].item)


def test_clicks_happen_as_often_as_the_true_probability_says() -> None:
    _, found = take(simulator.Settings(), 6)
    _, _, truth, click = rows(found)
    edges = np.quantile(truth, [0, 0.5, 0.8, 0.95, 1])
    for low, high in itertools.pairwise(edges):
        inside = (truth >= low) & (truth <= high)
        error = np.sqrt(truth[inside].mean() / inside.sum())
        assert abs(click[inside].mean() - truth[inside].mean()) < 5 * error


def test_a_later_position_is_clicked_less_and_no_position_bias_means_none() -> None:
    _, _, truth, _ = rows(take(QUIET, 2)[1])
    position, *_ = rows(take(QUIET, 2)[1])
    assert truth[position == 0].mean() > 2 * truth[position == 5].mean()
    flat = msgspec.structs.replace(QUIET, position_bias=0, item_spread=0)
    position, _, truth, _ = rows(take(flat, 4)[1])
    assert truth[position == 0].mean() == pytest.approx(truth[position == 10].mean(), rel=0.1)


def test_scenarios_get_their_share_of_traffic_and_their_bias() -> None:
    _, found = take(simulator.Settings(), 30)
    position, scenario, truth, _ = rows(found)
    shares = np.bincount(np.concatenate([b.scenario for b in found]), minlength=3) / sum(len(b.user) for b in found)
    assert shares == pytest.approx([0.6, 0.3, 0.1], abs=0.07)
    assert truth[(scenario == 1) & (position == 0)].mean() > truth[(scenario == 2) & (position == 0)].mean()


def test_lists_and_sessions_are_as_long_as_asked() -> None:
    _, found = take(simulator.Settings(), 20)
    lengths = np.concatenate([np.diff(b.start) for b in found])
    assert lengths.min() >= 1
    assert 18 < lengths.mean() < 28


def test_no_item_is_shown_twice_in_one_list() -> None:
    _, found = take(simulator.Settings(repeat_share=1.0), 2)
    for block in found:
        lists = np.repeat(np.arange(len(block.user)), np.diff(block.start))
        assert len(np.unique(np.stack([lists, block.item]), axis=1).T) == len(block.item)


def test_users_and_items_arrive_and_their_codes_are_described() -> None:
    made, found = take(simulator.Settings(users=50, items=50, new_items_per_hour=500), 5)
    assert len(made.world.users.ids) > 50
    assert len(made.world.items.ids) > 50
    last = found[-1]
    assert last.item.max() < len(made.world.items.ids)
    described = made.world.items.describe(int(last.item.max()))
    assert set(described) == {"category", "tags", "price"}
    assert set(made.world.users.describe(int(last.user.max()))) == {"segment", "country"}


def test_time_never_falls_across_blocks_and_lists_are_numbered_through() -> None:
    _, found = take(simulator.Settings(), 6)
    assert (np.diff(np.concatenate([b.ts_ms for b in found])) >= 0).all()
    assert [b.first for b in found] == np.cumsum([0, *(len(b.user) for b in found)])[:-1].tolist()


def test_actions_belong_to_rows_of_their_list_and_a_search_has_no_item() -> None:
    _, found = take(simulator.Settings(), 3)
    for block in found:
        for k in range(0, len(block.a_list), 97):
            shown = block.item[block.start[block.a_list[k]] : block.start[block.a_list[k] + 1]]
            if simulator.KINDS[block.a_kind[k]] == "search":
                assert block.a_item[k] == -1
            else:
                assert block.a_item[k] in shown
    assert {simulator.KINDS[k] for b in found for k in b.a_kind} == set(simulator.KINDS)


def test_disorder_stays_within_its_bound_and_shares_are_kept() -> None:
    _, found = take(simulator.Settings(disorder_share=0.3, disorder_ms=700, duplicate_share=0.1), 4)
    held = np.concatenate([b.held_ms for b in found])
    assert held.max() <= 700
    assert (held > 0).mean() == pytest.approx(0.3, abs=0.05)
    again = sum(len(b.again) for b in found) / sum(len(b.user) for b in found)
    assert again == pytest.approx(0.1, abs=0.03)


def test_drift_changes_the_truth_of_an_item_over_time_only_when_asked() -> None:
    def spread(settings: simulator.Settings) -> float:
        made = simulator.Simulator(settings, 0)
        before = made._item_drift.copy()
        for _ in itertools.islice(made.events(), 40):
            pass
        return float(np.abs(made._item_drift[: len(before)] - before).mean())

    assert spread(QUIET) == 0
    assert spread(msgspec.structs.replace(QUIET, drift_spread=0.5)) > 0.05


def test_regret_is_zero_for_the_truth_and_positive_for_its_opposite() -> None:
    _, found = take(QUIET, 1)
    assert simulator.regret(found[0], found[0].truth) == 0
    assert simulator.regret(found[0], -found[0].truth) > 0.05


def test_taking_some_lists_keeps_their_rows_actions_and_repetitions() -> None:
    _, found = take(simulator.Settings(duplicate_share=0.2), 1)
    part = blocks.take(found[0], 100)
    assert len(part.user) == 100
    assert part.start[-1] == len(part.item) == len(part.truth)
    assert part.a_list.max() < 100
    assert len(part.a_list) == (found[0].a_list < 100).sum()
    whole = {(int(found[0].a_list[k]), int(found[0].a_item[k]), int(found[0].a_kind[k])) for k in found[0].a_again[:, 0]}
    assert {(int(part.a_list[k]), int(part.a_item[k]), int(part.a_kind[k])) for k in part.a_again[:, 0]} <= whole


def test_a_share_above_one_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="<= 1"):
        msgspec.convert({"view_share": 1.5}, simulator.Settings)


def test_visitors_of_a_contrary_scenario_like_what_the_others_do_not() -> None:
    likes = simulator.Settings(
        scenarios=(simulator.Scenario("a", 0.5), simulator.Scenario("b", 0.5, shared=-1.0)), users=50, items=40, user_spread=0,
        taste_spread=0, scenario_spread=0, drift_spread=0, item_spread=2, position_bias=0,
    )  # fmt: skip
    _, found = take(likes, 3)
    _, scenario, truth, _ = rows(found)
    item = np.concatenate([b.item for b in found])
    logit = np.log(truth / (1 - truth))
    own = np.array([[logit[(scenario == s) & (item == i)].mean() for i in range(40)] for s in (0, 1)])
    assert np.corrcoef(own)[0, 1] < -0.999


def test_a_scenario_without_a_liking_of_its_own_clicks_like_another() -> None:
    def truths(own: float) -> npt.NDArray[Any]:
        scenarios = tuple(simulator.Scenario(name, 0.5, own=own) for name in "ab")
        settings = msgspec.structs.replace(
            QUIET, scenarios=scenarios, items=20, position_bias=0, scenario_spread=2.0, taste_spread=0
        )
        _, found = take(msgspec.structs.replace(settings, user_spread=0), 3)
        _, scenario, truth, _ = rows(found)
        item = np.concatenate([b.item for b in found])
        return np.array([[truth[(scenario == s) & (item == i)].mean() for i in range(20)] for s in (0, 1)])

    same, apart = truths(0.0), truths(1.0)
    assert np.allclose(same[0], same[1], atol=1e-5)
    assert np.abs(apart[0] - apart[1]).max() > 0.1


def test_further_actions_agree_with_clicks_as_much_as_they_are_told_to() -> None:
    actions = (simulator.Action("like", 0.0, 1.0), simulator.Action("hate", 0.0, -1.0), simulator.Action("chance", -1.0, 0.0))
    made, found = take(msgspec.structs.replace(QUIET, actions=actions, base=0.0, item_spread=1.5), 3)
    truth = rows(found)[2].astype(np.float64)
    for name, expected in (("like", truth), ("hate", 1 - truth), ("chance", np.full(len(truth), 1 / (1 + np.e)))):
        label = np.concatenate([blocks.labels(b, made.world.kinds.index(name)) for b in found])
        for part in (truth < 0.3, truth > 0.5):
            assert abs(label[part].mean() - expected[part].mean()) < 4 * 0.5 / np.sqrt(part.sum())


def test_a_further_action_has_a_taste_of_its_own_and_changes_no_click() -> None:
    one = msgspec.structs.replace(QUIET, actions=(simulator.Action("like", 0.0, 0.0, 3.0),))
    made, found = take(one, 1)
    before = take(QUIET, 1)[1][0]
    assert np.array_equal(before.item, found[0].item)
    assert np.array_equal(blocks.labels(before, 0), blocks.labels(found[0], 0))
    liked = blocks.labels(found[0], made.world.kinds.index("like"))
    user = np.repeat(found[0].user, np.diff(found[0].start))
    pairs: dict[tuple[int, int], list[float]] = {}
    for u, i, value in zip(user.tolist(), found[0].item.tolist(), liked.tolist(), strict=True):
        pairs.setdefault((u, i), []).append(value)
    again = [(v[0], v[1]) for v in pairs.values() if len(v) > 1]
    assert len(again) > 100
    assert np.corrcoef(np.array(again).T)[0, 1] > 0.3


def test_a_further_action_with_a_name_that_is_taken_is_refused() -> None:
    with pytest.raises(ValueError, match="names must differ"):
        simulator.Simulator(simulator.Settings(actions=(simulator.Action("save", 0.0),)))
