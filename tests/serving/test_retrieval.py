"""Items for a user: in the order that scoring every item gives, adapted to support, and refused where nothing can be found."""

import asyncio
import pathlib
import re
from typing import Any

import httpx
import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from learner.step import Trainer
from models import base
from serving import app, http_public, requests, scoring
from serving.live import Model
from serving.problems import Problem
from state import config, ids, memory_store, supports

NOW = 1_700_000_000_000
ITEMS = 40
TEXT = """
[scenarios]
slots = 3
[support]
max_age_s = 1e6
[model]
name = "two_tower"
embedding_width = 4
hidden = [12, 8]
[embedding]
init_scale = 0.5
[optimizer]
average = 0.0
gain_rate = 5.0
[meta]
inner_rate = 2.0
support_rows = 12
[retrieval]
loss = "softmax"
[[objectives]]
name = "like"
action = "like"
kind = "ranking"
[features]
categories = [
  { name = "user", source = "user_id" },
  { name = "item", source = "item_id" },
  { name = "scenario", source = "scenario" },
  { name = "genre", source = "item.genre" },
  { name = "device", source = "context.device" },
]
numbers = [{ name = "price", source = "item.price" }, { name = "age", source = "user.age" }]
"""
BINARY = TEXT.replace('"softmax"', '"objectives"').replace('kind = "ranking"', 'kind = "binary"')


def attributes(item: int) -> dict[str, Any]:
    return {"genre": f"g{item % 5}", "price": 1.0 + item % 7}


def rows(user: str, items: list[int], scenario: str) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.float32]]:
    """Ids and numbers of a user's rows, as the streams make them."""
    told = [[user, f"i{item}", scenario, attributes(item)["genre"], "phone"] for item in items]
    found = np.array([[ids.of(text) for text in row] for row in told], np.uint64)
    return found, np.array([[attributes(item)["price"], 30.0] for item in items], np.float32)


def batch(random: np.random.Generator) -> base.Batch:
    """Lists of ten items of users who like every third one."""
    parts = []
    for _ in range(6):
        user = int(random.integers(9))
        items = random.choice(ITEMS, 10, replace=False).tolist()
        label = np.array([[float(item % 3 == user % 3)] for item in items], np.float32)
        parts.append((*rows(f"u{user}", items, ("home", "shop")[user % 2]), label))
    found, x, label = (np.concatenate(part) for part in zip(*parts, strict=True))
    scenario = found[::10, 2]
    return base.Batch(
        found, x, label, np.ones_like(label), scenario, np.full(6, 10), np.zeros(6, np.int64), found[:0], x[:0], label[:0],
        np.zeros(0, np.int64),
    )  # fmt: skip


def without_a_model(text: str) -> app.Service:
    settings = config.parse(text)
    scores = scoring.Scoring(settings)
    return app.Service(settings, memory_store.MemoryStore(scores.engine.schema, lambda: 0), scores)


def service_of(text: str, *, named: int = ITEMS) -> app.Service:
    """A service with a model of a few steps, whose scenarios read embeddings in ways of their own; so many items have names."""
    made = without_a_model(text)
    settings = made.config
    trainer, random = Trainer(settings), np.random.default_rng(0)
    for step in range(12):
        assert not trainer.step(batch(random), NOW - 1000 + step).skipped
    if trainer.catalogue is not None:
        trainer.catalogue.name({ids.of(f"i{item}"): f"i{item}" for item in range(named)})
    arrays = {name: np.array(trainer.arrays()[name]) for name in trainer.serving_names}
    built = made.load(settings, arrays)
    made.live.swap(Model("v", 12, 0, built), 0)
    return made


@pytest.fixture(scope="module")
def service() -> app.Service:
    made = service_of(TEXT)
    asyncio.run(made.reads._store.put_supports(*support(made, "u1", [1, 4, 7, 10, 2, 3]), 10**9))
    return made


def support(made: app.Service, user: str, items: list[int]) -> tuple[Any, list[bytes]]:
    """A user's support set: the first four items were liked."""
    layout = supports.layout(made.config)
    packed = np.zeros(len(items), layout.dtype)
    packed["ids"], packed["x"] = rows(user, items, "home")
    packed["ts"] = NOW - 5000 + np.arange(len(items))
    packed["item"], packed["request"] = packed["ids"][:, 1], np.arange(len(items))
    packed["label"][:, 0] = np.arange(len(items)) < 4
    return np.array([ids.of(user)], np.uint64), [supports.pack(layout, packed)]


def asked(user: str = "u1", scenario: str = "home", k: int = 10, **more: Any) -> dict[str, Any]:
    known = {"user_id": user, "scenario": scenario, "ts_ms": NOW, "user": {"age": 30.0}, "context": {"device": "phone"}}
    return known | {"k": k} | more


def retrieve(service: app.Service, **request: Any) -> requests.Found:
    search = service.decoder.decode_search(msgspec.json.encode(asked(**request)), "json")
    return asyncio.run(service.retrieve(search))


def score(service: app.Service, user: str, scenario: str) -> tuple[list[str], list[float], requests.Reply]:
    """Every item by score, and the scores."""
    told = asked(user, scenario)
    del told["k"]
    told["candidates"] = [{"item_id": f"i{item}", "features": attributes(item)} for item in range(ITEMS)]
    reply = asyncio.run(service.answer(service.decoder.decode(msgspec.json.encode(told), "json")))
    scores = np.array(reply.scores[service.config.objectives[0].name])
    order = np.argsort(-scores, kind="stable")
    return [f"i{item}" for item in order.tolist()], scores[order].tolist(), reply


@pytest.mark.parametrize("scenario", ["home", "shop", "nowhere"])
@pytest.mark.parametrize("user", ["u1", "u2", "never met"])
def test_the_best_items_are_those_that_scoring_every_item_puts_first(service: app.Service, user: str, scenario: str) -> None:
    items, scores, reply = score(service, user, scenario)
    found = retrieve(service, user=user, scenario=scenario, k=ITEMS)
    assert found.scores == pytest.approx(scores, abs=1e-5)
    # Two items may be a rounding apart.
    assert [dict(zip(items, scores, strict=True))[item] for item in found.items] == pytest.approx(scores, abs=1e-5)
    assert (found.known, found.support_rows, found.mode) == (ITEMS, reply.support_rows, reply.mode)
    assert retrieve(service, user=user, scenario=scenario, k=7).items == found.items[:7]


def test_two_towers_of_ordinary_objectives_find_items_too() -> None:
    service = service_of(BINARY)
    asyncio.run(service.reads._store.put_supports(*support(service, "u1", [1, 4, 7, 10, 2, 3]), 10**9))
    _, scores, reply = score(service, "u1", "home")
    found = retrieve(service, k=ITEMS)
    assert found.scores == pytest.approx(scores, abs=1e-5)
    assert found.support_rows == reply.support_rows == 6


def test_scenarios_that_read_embeddings_in_their_own_way_have_an_index_of_their_own(service: app.Service) -> None:
    home, shop = (retrieve(service, user="never met", scenario=scenario).scores for scenario in ("home", "shop"))
    assert home != pytest.approx(shop, abs=1e-4)


def test_a_user_with_support_gets_other_items_than_by_the_plain_tower(service: app.Service) -> None:
    adapted = retrieve(service, user="u1")
    service.switch("home", "off")
    try:
        plain = retrieve(service, user="u1")
    finally:
        service.switch("home", "on")
    assert (adapted.adapted, adapted.mode, adapted.support_rows) == (True, "adapted", 12)
    assert (plain.adapted, plain.mode, plain.degraded) == (False, "plain", None)
    assert adapted.scores != pytest.approx(plain.scores, abs=1e-3)


def test_a_user_whom_nobody_knows_is_served_by_the_plain_tower(service: app.Service) -> None:
    found = retrieve(service, user="never met", k=5)
    assert (len(found.items), found.degraded, found.adapted) == (5, "no_support", False)
    assert found.scores == sorted(found.scores, reverse=True)


def test_excluded_items_are_left_out_and_the_next_ones_come_in(service: app.Service) -> None:
    every = retrieve(service, k=8).items
    assert retrieve(service, k=5, exclude=[every[0], every[2], "unheard of", 7]).items == [every[1], *every[3:7]]
    assert retrieve(service, k=ITEMS, exclude=[f"i{item}" for item in range(ITEMS)]).items == []


def test_items_without_a_name_are_not_found() -> None:
    found = retrieve(service_of(TEXT, named=30), k=ITEMS)
    assert (found.known, len(found.items)) == (30, 30)
    assert set(found.items) == {f"i{item}" for item in range(30)}


def test_items_that_nobody_was_shown_for_long_are_not_found() -> None:
    found = retrieve(service_of(TEXT.replace("[retrieval]", "[retrieval]\nmax_idle_s = 0.001"), named=ITEMS), k=ITEMS)
    assert 0 < found.known < ITEMS


@pytest.mark.parametrize(
    ("change", "code"),
    [({"k": 0}, "invalid_request"), ({"k": 1001}, "too_many_candidates"), ({"k": 5, "limit": 2}, "invalid_request"),
     ({"k": "5"}, "invalid_request"), ({"exclude": ["i"] * 1001}, "too_many_candidates"), ({"user_id": None}, "invalid_request")],
)  # fmt: skip
def test_a_request_that_makes_no_sense_is_refused(service: app.Service, change: dict[str, Any], code: str) -> None:
    with pytest.raises(Problem) as caught:
        service.decoder.decode_search(msgspec.json.encode(asked() | change), "json")
    assert (caught.value.status, caught.value.code) == (422, code)


def test_a_deployment_without_vectors_of_items_says_so() -> None:
    with pytest.raises(Problem) as caught:
        retrieve(without_a_model(BINARY.replace('name = "two_tower"', 'name = "shared_bottom"')))
    assert (caught.value.status, caught.value.code) == (404, "no_retrieval")
    assert "model.name is 'shared_bottom'" in str(caught.value)


def test_two_towers_that_know_no_item_by_its_id_say_so() -> None:
    text = BINARY.replace('{ name = "item", source = "item_id" }', '{ name = "group", source = "item.group" }')
    text = text.replace("[model]", '[model]\npersonal_features = ["user"]')
    with pytest.raises(Problem, match="no category of the features holds the item's id"):
        retrieve(service_of(text))


def test_a_scenario_without_the_objective_has_no_items() -> None:
    known = BINARY.replace("slots = 3", 'slots = 3\nknown = ["home", "shop"]')
    text = known.replace('kind = "binary"', 'scenarios = ["home"]\n[[objectives]]\nname = "buy"\naction = "buy"')
    with pytest.raises(Problem, match="scenario 'shop' does not have the objective 'like'"):
        retrieve(without_a_model(text), scenario="shop")


def test_the_page_shows_a_request_and_a_reply_as_they_are(service: app.Service) -> None:
    page = (pathlib.Path(__file__).parents[2] / "docs" / "retrieval.md").read_text(encoding="utf-8")
    request, reply = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    found = asyncio.run(service.retrieve(service.decoder.decode_search(request.encode(), "json")))
    assert set(msgspec.json.decode(reply)) == set(msgspec.to_builtins(found))
    shown = msgspec.json.decode(reply, type=requests.Found)
    assert len(shown.items) == len(shown.scores) == len(found.items) == 3


def test_http_answers_in_both_formats_counts_and_says_when_there_is_no_model(service: app.Service) -> None:
    empty = without_a_model(TEXT)

    async def ask(of: app.Service, **more: Any) -> httpx.Response:
        transport = httpx.ASGITransport(http_public.application(of))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post("/v1/retrieve", **more)

    plain = asyncio.run(ask(service, json=asked(request_id="r", k=3)))
    packed = asyncio.run(
        ask(
            service,
            content=msgspec.msgpack.encode(asked(request_id="r", k=3)),
            headers={"content-type": "application/msgpack"},
        )
    )
    one, two = plain.json(), msgspec.msgpack.decode(packed.content)
    assert one.pop("took_ms") > 0
    assert two.pop("took_ms") > 0
    assert one == two
    assert (one["request_id"], one["version"], len(one["items"])) == ("r", "v", 3)
    missing = asyncio.run(ask(empty, json=asked()))
    assert (missing.status_code, missing.json()["error"]["code"]) == (503, "no_model")
    assert asyncio.run(ask(service, content=b"{")).status_code == 400
    assert b'thousandfold_retrievals_total{status="200"} 2.0' in service.metrics.text()
