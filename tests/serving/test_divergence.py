"""Numbers as served beside numbers as trained: requests through the service, from a model that a learner trained."""

import asyncio
import math
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest

from learner.step import Trainer
from models import base
from models.scorer import Scorer
from serving import app, divergence, http_admin, scoring
from serving.live import Model
from state import config, ids, memory_store

SETTINGS = config.parse("""
[scenarios]
slots = 3
[model]
embedding_width = 4
hidden = [8]
gate_hidden = 4
[divergence]
every = 1
min_requests = 30
min_rows = 100
[features]
categories = [
  { name = "user", source = "user_id" },
  { name = "item", source = "item_id" },
  { name = "scenario", source = "scenario" },
]
numbers = [{ name = "price", source = "item.price" }, { name = "age", source = "user.age" }]
""")
ROWS = 5


def numbers(generator: np.random.Generator, n: int) -> base.F32:
    """Price and age, of which a tenth was not sent."""
    x = generator.normal([20, 40], [5, 10], (n, 2))
    x[generator.random(n) < 0.1, 1] = 0
    return x.astype(np.float32)


def scorer(settings: config.Config, *scenarios: str) -> Scorer:
    """A model that was trained on 1500 rows of each scenario."""
    trainer, generator = Trainer(settings), np.random.default_rng(0)
    none = np.zeros((0, 3), np.uint64), np.zeros((0, 2), np.float32), np.zeros((0, 1), np.float32)
    for scenario in scenarios * 5:
        lists, n = 60, 300
        found = generator.integers(0, 99, (n, 3)).astype(np.uint64)
        found[:, 2] = ids.of(scenario)
        label = (generator.random((n, 1)) < 0.3).astype(np.float32)
        batch = base.Batch(
            found, numbers(generator, n), label, np.ones_like(label), np.full(lists, ids.of(scenario), np.uint64),
            np.full(lists, ROWS), np.zeros(lists, np.int64), *none,
        )  # fmt: skip
        assert not trainer.step(batch, 0).skipped
    arrays = trainer.arrays()
    return Scorer(settings, {name: arrays[name] for name in trainer.serving_names})


def service(settings: config.Config = SETTINGS) -> app.Service:
    scores = scoring.Scoring(settings)
    made = app.Service(settings, memory_store.MemoryStore(scores.engine.schema, lambda: 0), scores)
    made.live.swap(Model("v", 1, 0, scorer(settings, "home", "search")), 0)
    return made


def ask(made: app.Service, scenario: str, requests: int, price: float = 0.0, known: bool = True, seed: int = 1) -> None:
    """Requests of a scenario, their prices higher by `price`, their users' ages known or not."""
    generator = np.random.default_rng(seed)

    async def run() -> None:
        for _ in range(requests):
            x = numbers(generator, ROWS)
            age = {"age": float(x[0, 1])} if known and x[0, 1] else {}
            shown = [{"item_id": str(i), "features": {"price": float(x[i, 0]) + price}} for i in range(ROWS)]
            asked = {"user_id": "u", "user": age, "scenario": scenario, "ts_ms": 1, "candidates": shown}
            await made.answer(made.decoder.decode(msgspec.json.encode(asked), "json"))

    asyncio.run(run())


def metrics(made: app.Service, name: str) -> dict[tuple[str, str], float]:
    return {
        (sample.labels["number"], sample.labels["scenario"]): sample.value
        for family in made.metrics.registry.collect()
        for sample in family.samples
        if sample.name == name
    }


def table(made: app.Service) -> dict[tuple[str, str], dict[str, Any]]:
    async def get() -> Any:
        transport = httpx.ASGITransport(app=http_admin.application(made))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            answer = await client.get("/admin/moments")
            assert answer.status_code == 200, answer.text
            return answer.json()

    return {(row["number"], row["scenario"]): row for row in asyncio.run(get())["numbers"]}


def test_a_number_that_serving_sees_shifted_raises_the_alarm_in_its_scenario_and_no_other_does() -> None:
    made = service()
    ask(made, "home", 100)
    ask(made, "search", 100, price=15)
    made.compare()
    far = metrics(made, "thousandfold_feature_divergence")
    assert far.keys() == {(n, s) for n in ("price", "age") for s in ("home", "search")}
    assert far.pop(("price", "search")) > 3
    assert all(0 < value < 0.8 for value in far.values()), far
    assert metrics(made, "thousandfold_feature_alarms_total") == {("price", "search"): 1}
    rows = table(made)
    assert next(iter(rows)) == ("price", "search")
    assert {row["state"] for key, row in rows.items() if key != ("price", "search")} == {"calm"}
    shifted = rows["price", "search"]
    assert shifted["state"] == "alarm"
    assert shifted["mean"] == pytest.approx(3, abs=0.3)
    assert shifted["trained"]["rows"] == pytest.approx(1500, rel=0.01)
    assert shifted["trained"]["mean"] == pytest.approx(20, abs=0.5)
    assert shifted["served"]["mean"] == pytest.approx(35, abs=1)
    assert rows["age", "home"]["trained"]["missing"] == pytest.approx(0.1, abs=0.03)


def test_a_number_that_serving_lacks_raises_the_alarm() -> None:
    made = service()
    ask(made, "home", 100, known=False)
    made.compare()
    row = table(made)["age", "home"]
    assert (row["state"], row["served"]["missing"], row["served"]["mean"]) == ("alarm", 1.0, 0.0)
    assert row["missing"] == pytest.approx(0.9, abs=0.03)


def test_an_alarm_counts_once_and_ends_when_the_numbers_come_back() -> None:
    made = service(
        msgspec.structs.replace(SETTINGS, divergence=msgspec.structs.replace(SETTINGS.divergence, half_life_requests=20))
    )
    for _ in range(3):
        ask(made, "home", 40, price=15)
        made.compare()
    assert metrics(made, "thousandfold_feature_alarms_total") == {("price", "home"): 1}
    ask(made, "home", 200)
    made.compare()
    assert metrics(made, "thousandfold_feature_divergence")["price", "home"] < 0.8
    assert table(made)["price", "home"]["state"] == "calm"
    ask(made, "home", 100, price=15)
    made.compare()
    assert metrics(made, "thousandfold_feature_alarms_total") == {("price", "home"): 2}


def test_too_few_requests_or_rows_are_shown_and_not_judged() -> None:
    made = service()
    ask(made, "home", 29, price=1000)
    ask(made, "unseen", 100, price=1000)
    made.compare()
    assert metrics(made, "thousandfold_feature_alarms_total") == {}
    rows = table(made)
    assert {(scenario, row["state"]) for (_, scenario), row in rows.items()} == {("home", "few"), ("(other)", "few")}
    assert rows["price", "(other)"]["trained"] == {"rows": 0.0, "missing": 0.0, "mean": None, "deviation": None}


def test_one_request_in_so_many_is_looked_at_and_none_when_switched_off() -> None:
    model, x, scores = scorer(SETTINGS, "home"), np.full((4, 2), 7, np.float32), np.zeros(4, np.float32)
    for every, rows in ((3, 16), (0, 0)):
        limits = msgspec.structs.replace(SETTINGS.divergence, every=every, half_life_requests=1e12)
        watch = divergence.Watch(msgspec.structs.replace(SETTINGS, divergence=limits))
        for _ in range(10):
            watch.observe(model, "home", x, scores)
        assert sum(row.served.rows for row in watch.table(model) if row.number == "price") == pytest.approx(rows)


def test_only_the_best_candidates_count_where_only_they_are_shown() -> None:
    model = scorer(SETTINGS, "home")
    watch = divergence.Watch(msgspec.structs.replace(SETTINGS, divergence=msgspec.structs.replace(SETTINGS.divergence, top=2)))
    x = np.arange(10, dtype=np.float32).reshape(5, 2)
    watch.observe(model, "home", x, np.array([0.1, 0.9, 0.2, 0.8, 0.3], np.float32))
    price = next(row for row in watch.table(model) if row.number == "price")
    assert price.served == (2.0, 0.0, 4.0, 2.0)


def test_a_scenario_that_the_model_no_longer_knows_is_forgotten() -> None:
    made = service()
    ask(made, "search", 100, price=15)
    made.compare()
    made.live.swap(Model("older", 0, 0, scorer(SETTINGS, "home")), 0)
    made.compare()
    assert table(made) == {}
    assert metrics(made, "thousandfold_feature_divergence")["price", "search"] == 0


def test_without_a_model_there_is_nothing_to_compare() -> None:
    scores = scoring.Scoring(SETTINGS)
    made = app.Service(SETTINGS, memory_store.MemoryStore(scores.engine.schema, lambda: 0), scores)
    made.compare()
    assert table(made) == {}


@pytest.mark.parametrize(
    ("one", "other", "mean", "deviation"),
    [
        ((10.0, 2.0), (13.0, 2.0), 1.5, 0.0),
        ((10.0, 2.0), (10.0, 6.0), 0.0, math.log(3)),
        ((5.0, 0.0), (5.0, 0.0), 0.0, 0.0),
    ],
)
def test_the_measures(one: tuple[float, float], other: tuple[float, float], mean: float, deviation: float) -> None:
    found = divergence.apart(divergence.Side(1, 0, *one), divergence.Side(1, 0, *other))
    assert found == pytest.approx((mean, deviation))


def test_a_number_that_was_constant_and_is_not_any_more_diverges() -> None:
    mean, deviation = divergence.apart(divergence.Side(1, 0, 5.0, 0.0), divergence.Side(1, 0, 6.0, 0.0))
    assert mean is not None
    assert abs(mean) > 1000
    assert deviation == 0
    assert divergence.apart(divergence.Side(1, 1, None, None), divergence.Side(1, 0, 6.0, 0.0)) == (None, None)
