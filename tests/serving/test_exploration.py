"""Exploration: propensities are how often things happen, clicks divided by them are unbiased, and nothing else decides."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import engines, modes
from models.scorer import Scored, Task
from serving import app, exploration, live, requests, scoring
from state import config as configuration
from state import memory_store, meta_supports, records
from thousandfold.data import simulator

SHARE = configuration.Exploration(share=0.3, count="item_count", new_below=50, place=1, prior=8)
SCORE = np.array([0.05, 0.30, 0.10, 0.20, 0.02, 0.25, 0.08], np.float32)
SEEN = np.array([0.0, 900.0, 3.0, 400.0, 0.0, 0.0, 20.0])
TEXT = """
[serving.exploration]
share = 0.4
count = "item_count"
[features]
categories = [
  { name = "user", source = "user_id" },
  { name = "item", source = "item_id" },
  { name = "scenario", source = "scenario" },
]
statistics = [{ name = "item_count", key = ["item"], kind = "count" }]
"""
CONFIG = configuration.parse(TEXT)
TS = 1_700_000_000_000


class ByPlace:
    """Scores that fall with the place in the request."""

    modes = modes.Modes(CONFIG.meta)
    trunk: meta_supports.Trunk | None = None
    shape = meta_supports.Shape(1, 1, 1, 1)
    choice = engines.Choice("native", "")

    def observed(self, _scenario: int) -> tuple[int, Any]:
        return 0, np.zeros((5, 1))

    def score(self, ids: Any, x: Any, scenario: int, support: Any) -> Scored:  # noqa: ARG002 - as a scorer's
        falling = np.linspace(0.4, 0.1, len(x), dtype=np.float32).reshape(-1, 1)
        return Scored(falling, falling, 0)

    def merged(self, tasks: Sequence[Task]) -> list[Scored]:
        return [self.score(*task) for task in tasks]


def test_logged_propensities_are_the_frequencies_of_what_happened() -> None:
    n, random = 5_000, np.random.default_rng(0)
    happened, logged = np.zeros((7, 7)), np.zeros((7, 7))
    for draw in random.random((n, 2)).tolist():
        said = exploration.explore(SHARE, SCORE, SEEN, (draw[0], draw[1]))
        happened[said.order, range(7)] += 1
        logged[said.order, range(7)] = said.propensity
    shown = happened > 0
    error = np.sqrt(logged * (1 - logged) / n)
    assert np.abs(happened / n - logged)[shown].max() < 5 * error.max()
    assert happened[0, 1] / n == pytest.approx(logged[0, 1], abs=5 * error[0, 1] + 1e-9)
    assert shown.sum() > 12
    assert logged[1, 0] == 1.0


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 6), st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_what_may_stand_at_a_place_has_chances_that_sum_to_one(n: int, place: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    rules = msgspec.structs.replace(SHARE, place=place)
    score, seen = random.random(n).astype(np.float32), random.choice([0.0, 10.0, 100.0], n)
    chances = np.zeros((n, n))
    plain = exploration.explore(rules, score, seen, (0.99, 0.0))
    chances[plain.order, range(n)] = plain.propensity
    for draw in np.linspace(0, 1, 300, endpoint=False):
        said = exploration.explore(rules, score, seen, (0.0, float(draw)))
        assert sorted(said.order) == list(range(n))
        if said.explored is None:
            continue
        assert seen[said.explored] < rules.new_below
        assert said.order.index(said.explored) == place
        for at, row in enumerate(said.order):
            assert chances[row, at] in (0.0, pytest.approx(said.propensity[at], abs=1e-12))
            chances[row, at] = said.propensity[at]
    assert chances.sum(0) == pytest.approx(np.ones(n), abs=3e-2)


def test_chances_follow_beliefs_and_sharpen_with_exposures() -> None:
    equal = exploration.best_chances(np.full(4, 0.1), np.zeros(4), 5.0)
    assert equal == pytest.approx(np.full(4, 0.25), abs=1e-6)
    unsure, sure = (exploration.best_chances(np.array([0.1, 0.2]), np.full(2, n), 5.0) for n in (0.0, 3000.0))
    assert 0.5 < unsure[1] < sure[1]
    assert sure[1] > 0.999


def test_sampling_beliefs_and_taking_the_best_agrees_with_the_chances() -> None:
    score, seen = np.array([0.1, 0.15, 0.05]), np.array([0.0, 30.0, 2.0])
    deviation = 1 / np.sqrt((8 + seen + 1) * score * (1 - score))
    drawn = np.log(score / (1 - score)) + deviation * np.random.default_rng(1).standard_normal((100_000, 3))
    often = np.bincount(drawn.argmax(1), minlength=3) / 100_000
    assert exploration.best_chances(score, seen, 8.0) == pytest.approx(often, abs=0.01)


def test_clicks_by_propensity_tell_what_new_items_are_worth_and_plain_means_do_not() -> None:
    """The target policy puts one of the new items forward, each as often as any other."""
    rules = msgspec.structs.replace(SHARE, place=0, share=0.5)
    world = simulator.Simulator(simulator.Settings(base=-0.5, position_bias=0.0, item_spread=1.5), 3)
    random, worth, weighed, naive, block = np.random.default_rng(5), [], [], [], next(iter(world.events()))
    for first, last in zip(block.start[:300], block.start[1:301], strict=True):
        truth = block.truth[first : min(last, first + 8)].astype(np.float64)
        score = np.clip(truth + 0.15 * random.standard_normal(len(truth)), 0.02, 0.98).astype(np.float32)
        seen = np.where(np.arange(len(truth)) % 2, 0.0, 1000.0)
        behind = np.argsort(-score, kind="stable")[1:]
        new = [int(i) for i in behind if seen[i] < rules.new_below]
        if not new:
            continue
        worth.append(truth[new].mean())
        draws = random.random((12, 3))
        for draw in draws.tolist():
            said = exploration.explore(rules, score, seen, (draw[0], draw[1]))
            top, clicked = said.order[0], draw[2] < truth[said.order[0]]
            weighed.append(clicked * (top in new) / len(new) / said.propensity[0])
            if top in new:
                naive.append(float(clicked))
    error = np.std(weighed) / np.sqrt(len(weighed))
    assert abs(np.mean(weighed) - np.mean(worth)) < 4 * error
    assert error < 0.2 * np.mean(worth)
    assert abs(np.mean(naive) - np.mean(worth)) > 2 * error


def answered(config: configuration.Config, request_id: str) -> requests.Reply:
    made = scoring.Scoring(config)
    store = memory_store.MemoryStore(made.engine.schema, lambda: TS)
    service = app.Service(config, store, made)
    service.live.swap(live.Model("v", 1, 1, ByPlace()), 1)
    body = {"request_id": request_id, "user_id": "u", "scenario": "s", "ts_ms": TS}
    body |= {"candidates": [{"item_id": f"i{k}"} for k in range(5)]}
    reply = asyncio.run(service.answer(service.decoder.decode(json.dumps(body).encode(), "json")))
    service.loader.shutdown()
    return reply


def test_a_reply_says_the_order_and_the_same_request_gets_the_same_one() -> None:
    replies = [answered(CONFIG, f"r{k}").exploration for k in range(12)]
    assert replies == [answered(CONFIG, f"r{k}").exploration for k in range(12)]
    explored = [r for r in replies if r is not None and r.explored is not None]
    assert 1 < len(explored) < 10
    assert all(r.order[0] == r.explored and 0 < r.propensity[0] < 0.4 for r in explored)
    other = configuration.parse(TEXT.replace("share = 0.4", "share = 0.4\nseed = 1"))
    assert replies != [answered(other, f"r{k}").exploration for k in range(12)]


def test_the_propensity_goes_into_the_impression() -> None:
    said = answered(CONFIG, "r1").exploration
    assert said is not None
    items = [
        {"item_id": f"i{row}", "position": place, "propensity": chance}
        for place, (row, chance) in enumerate(zip(said.order, said.propensity, strict=True))
    ]
    message = {"request_id": "r1", "user_id": "u", "scenario": "s", "ts_ms": TS, "items": items}
    shown = records.decoder(CONFIG).impression(msgspec.json.encode(message), TS)
    assert [item.propensity for item in shown.items] == said.propensity


def test_without_exploration_a_reply_is_what_it_was() -> None:
    off = configuration.parse(TEXT.replace("share = 0.4", ""))
    assert b"exploration" not in requests.encode(answered(off, "r1"), "json")


def test_without_the_store_nothing_is_new() -> None:
    made = scoring.Scoring(CONFIG)
    service = app.Service(CONFIG, memory_store.MemoryStore(made.engine.schema, lambda: TS), made)
    asked = service.decoder.decode(b'{"user_id": "u", "scenario": "s", "candidates": [{"item_id": 1}, {"item_id": 2}]}', "json")
    outcome = scoring.Outcome(np.array([[0.2], [0.3]], np.float32), 0, None, scoring.Ignored(), np.zeros((2, 1), np.float32))
    said = [service._explored(asked, outcome, ts, known=False) for ts in range(40)]
    service.loader.shutdown()
    assert all(one == exploration.Exploration([1, 0], [1.0, 1.0], None) for one in said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TEXT.replace('count = "item_count"', ""), "serving.exploration.count: .* allowed: item_count"),
        (TEXT.replace('key = ["item"]', 'key = ["user"]'), "declare one in features.statistics"),
        (TEXT + '[[objectives]]\nname = "o"\naction = "a"\nkind = "regression"\n', "needs a binary first objective"),
    ],
)
def test_what_exploration_lacks_is_named(text: str, said: str) -> None:
    with pytest.raises(configuration.ConfigError, match=said):
        configuration.parse(text)
