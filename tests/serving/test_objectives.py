"""What a reply says of objectives of other kinds, and of those that the scenario does not have."""

import asyncio

import msgspec
import numpy as np
import pytest

from learner.step import Trainer
from models.scorer import Scorer
from serving import app, requests, scoring
from serving.live import Model
from state import config, ids, memory_store

SETTINGS = config.parse("""
[scenarios]
known = ["home", "7"]
[[objectives]]
name = "click"
action = "click"
scenarios = ["home"]
[[objectives]]
name = "power"
action = "buy"
kind = "multiclass"
classes = 3
scenarios = ["7"]
[[objectives]]
name = "time"
action = "watch"
kind = "regression"
[model]
embedding_width = 4
hidden = [8, 4]
gate_hidden = 4
[features]
categories = [
  { name = "user", source = "user_id" },
  { name = "item", source = "item_id" },
  { name = "scenario", source = "scenario" },
]
""")


@pytest.fixture(scope="module")
def service() -> app.Service:
    scores = scoring.Scoring(SETTINGS)
    made = app.Service(SETTINGS, memory_store.MemoryStore(scores.engine.schema, lambda: 0), scores)
    trainer = Trainer(SETTINGS)
    trainer.dense[:] += np.random.default_rng(0).normal(0, 0.1, trainer.dense.shape).astype(np.float32)
    made.live.swap(Model("v", 1, 0, Scorer(SETTINGS, trainer.arrays())), 0)
    return made


def answer(service: app.Service, scenario: str | int, *objectives: str) -> dict[str, requests.Answer]:
    asked = {"user_id": "u", "scenario": scenario, "ts_ms": 1, "candidates": [{"item_id": "a"}, {"item_id": "b"}]}
    chosen = {"objectives": list(objectives)} if objectives else {}
    return asyncio.run(service.answer(service.decoder.decode(msgspec.json.encode(asked | chosen), "json"))).scores


def test_each_kind_answers_in_its_own_form_and_null_where_the_scenario_lacks_it(service: app.Service) -> None:
    home, seven = answer(service, "home"), answer(service, 7)
    assert home["power"] is None
    assert seven["click"] is None
    scorer = service.live.current
    assert scorer is not None
    shown = np.array([[ids.of("u"), ids.of(item), ids.of("7")] for item in "ab"], np.uint64)
    found = scorer.scorer.score(shown, np.zeros((2, 0), np.float32), ids.of("7"), None).plain
    assert seven["power"] == found[:, 1:4].tolist()
    assert seven["time"] == found[:, 4].tolist()
    assert home["click"] is not None
    assert [0 < p < 1 for p in home["click"] if isinstance(p, float)] == [True, True]


def test_an_objective_that_is_asked_for_where_it_does_not_exist_is_null_too(service: app.Service) -> None:
    assert answer(service, "elsewhere", "click") == {"click": None}
    assert msgspec.json.encode(answer(service, "elsewhere", "power", "click")) == b'{"power":null,"click":null}'


def test_a_reply_speaks_of_real_traffic_where_the_producer_dropped_negatives(service: app.Service) -> None:
    shares = msgspec.structs.replace(SETTINGS.scenarios, negative_sampling={"home": 0.1})
    sampled = msgspec.structs.replace(SETTINGS, scenarios=shares)
    scores = scoring.Scoring(sampled)
    other = app.Service(sampled, memory_store.MemoryStore(scores.engine.schema, lambda: 0), scores)
    current = service.live.current
    assert current is not None
    other.live.swap(current, 0)
    seen, real = (np.array(answer(one, "home")["click"], np.float64) for one in (service, other))
    np.testing.assert_allclose(real, seen / (seen + (1 - seen) / 0.1), rtol=1e-5)
    assert answer(other, "home")["time"] == answer(service, "home")["time"]
