"""Merged requests: whatever is scored together, each gets what it gets alone, and the troubles of one are not those of others."""

import asyncio
import functools
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.step import Trainer
from models.scorer import Scored, Scorer, Task
from serving import app, asyncio_merger, live, requests, scoring
from state import config as configuration
from state import ids, memory_store, supports

REGROUPED = 1e-6
"""What rounding may change where products are cut into other blocks."""
TS = 1_700_000_000_000
TEXT = """
[task]
key = ["KEY"]
[model]
embedding_width = 4
hidden = [8, 4]
gate_hidden = 4
[meta]
inner_rate = 0.5
[features]
categories = [
  { name = "user", source = "user_id" },
  { name = "item", source = "item_id" },
  { name = "scenario", source = "scenario" },
]
"""


def merging(most: int, wait_ms: float, key: str = "user") -> configuration.Config:
    return configuration.parse(f"{TEXT.replace('KEY', key)}\n[serving.merging]\nmax_requests = {most}\nmax_wait_ms = {wait_ms}")


@functools.cache
def model(key: str) -> live.Model:
    plain = merging(1, 0.0, key)
    trainer = Trainer(plain)
    trainer.dense[:] += np.random.default_rng(0).normal(0, 0.3, trainer.dense.shape).astype(np.float32)
    return live.Model("v", 1, 0, Scorer(plain, trainer.arrays()))


async def service(config: configuration.Config, key: str) -> app.Service:
    """A service whose store holds support of users and items a to d."""
    scores = scoring.Scoring(config)
    store = memory_store.MemoryStore(scores.engine.schema, lambda: TS)
    layout, rng = supports.layout(config), np.random.default_rng(1)
    for name in "abcd":
        made = np.zeros(6, layout.dtype)
        made["ts"], made["ids"], made["item"] = TS - 10 + np.arange(6), rng.integers(0, 50, made["ids"].shape), np.arange(6)
        made["label"][:, 0] = rng.random(6) < 0.5
        await store.put_supports(np.array([ids.of(name)], np.uint64), [supports.pack(layout, made)], 10**6)
    out = app.Service(config, store, scores)
    out.live.swap(model(key), 0)
    return out


async def answers(config: configuration.Config, key: str, asked: Sequence[dict[str, Any]]) -> tuple[list[Any], app.Service]:
    made = await service(config, key)
    bodies = [made.decoder.decode(msgspec.json.encode(body), "json") for body in asked]
    found = await asyncio.gather(*(made.answer(body) for body in bodies), return_exceptions=True)
    made.loader.shutdown()
    return found, made


ASKED = st.fixed_dictionaries(
    {
        "user_id": st.sampled_from("abcxyz"),
        "scenario": st.sampled_from(["home", "shop"]),
        "ts_ms": st.integers(TS - 12, TS),
        "candidates": st.lists(st.fixed_dictionaries({"item_id": st.sampled_from("abcdefg")}), min_size=1, max_size=6),
    }
)


@settings(max_examples=30, deadline=None)
@given(st.lists(ASKED, min_size=1, max_size=7), st.integers(1, 5), st.sampled_from([0.0, 1.0]), st.sampled_from(["user", "item"]))
def test_any_merge_of_requests_gives_each_reply_what_it_gets_alone(
    asked: list[dict[str, Any]], most: int, wait_ms: float, key: str
) -> None:
    together, merged = asyncio.run(answers(merging(most, wait_ms, key), key, asked))
    for body, reply in zip(asked, together, strict=True):
        [alone], _ = asyncio.run(answers(merging(1, 0.0, key), key, [body]))
        assert isinstance(alone, requests.Reply)
        assert reply.scores["click"] == pytest.approx(alone.scores["click"], abs=REGROUPED)
        assert msgspec.structs.replace(reply, scores={}) == msgspec.structs.replace(alone, scores={})
    passes = [s for m in merged.metrics.merges.collect() for s in m.samples if s.name.endswith(("_sum", "_count"))]
    counted = {sample.name.rpartition("_")[2]: sample.value for sample in passes}
    assert counted["sum"] == (len(asked) if most > 1 else 0)
    assert counted["count"] >= (counted["sum"] / most)


class Odd:
    """A scorer whose score is its task's scenario; a scenario below 0 is none that it can score, whoever is beside it."""

    def __init__(self) -> None:
        self.passes: list[list[int]] = []

    def merged(self, tasks: Sequence[Task]) -> list[Scored]:
        self.passes.append([task.scenario for task in tasks])
        if any(task.scenario < 0 for task in tasks):
            raise ValueError("no such scenario")
        scores = [np.full((1, 1), task.scenario, np.float32) for task in tasks]
        return [Scored(score, score, 0) for score in scores]


def tasks(*scenarios: int) -> list[Task]:
    return [Task(np.zeros((1, 1), np.uint64), np.zeros((1, 0), np.float32), scenario, None) for scenario in scenarios]


class Window:
    """A merger and what it says of its passes."""

    def __init__(self, most: int = 8, wait_ms: float = 0.0) -> None:
        self.counted: list[int] = []
        self.failures = 0
        self.merger = asyncio_merger.Merger(configuration.Merging(most, wait_ms), self.counted.append, self._fail)

    def _fail(self) -> None:
        self.failures += 1

    def put(self, scorer: Any, *scenarios: int) -> "asyncio.Task[Sequence[live.Scored]]":
        return asyncio.ensure_future(self.merger.score(scorer, tasks(*scenarios)))


def told(parts: Any) -> list[float]:
    return [float(part.adapted[0, 0]) for part in parts]


def test_a_request_that_cannot_be_scored_fails_alone() -> None:
    async def run() -> None:
        window, scorer = Window(), Odd()
        found = await asyncio.gather(
            window.put(scorer, 1), window.put(scorer, 2, -3), window.put(scorer, 4, 5), return_exceptions=True
        )
        assert [told(found[0]), told(found[2])] == [[1], [4, 5]]
        assert isinstance(found[1], ValueError)
        assert (window.counted, window.failures) == ([1, 1], 1)
        alone = await asyncio.gather(window.put(scorer, -1), return_exceptions=True)
        assert isinstance(alone[0], ValueError)
        assert told(await window.put(scorer, 6)) == [6], "the next window is as if nothing had happened"

    asyncio.run(run())


def test_a_request_that_is_cancelled_is_not_scored_and_takes_nobody_along() -> None:
    async def run() -> None:
        window, scorer = Window(wait_ms=20.0), Odd()
        first, second, third = (window.put(scorer, k) for k in (1, 2, 3))
        await asyncio.sleep(0)
        second.cancel()
        assert [told(await first), told(await third)] == [[1], [3]]
        assert second.cancelled()
        last = window.put(scorer, 4)
        await asyncio.sleep(0)
        last.cancel()
        await asyncio.sleep(0.05)
        assert scorer.passes == [[1, 3]]

    asyncio.run(run())


def test_a_full_window_does_not_wait_and_every_model_scores_its_own_requests() -> None:
    async def run() -> None:
        window, old, new = Window(most=3, wait_ms=60_000.0), Odd(), Odd()
        found = await asyncio.wait_for(asyncio.gather(window.put(old, 1), window.put(new, 2), window.put(old, 3)), 10)
        assert [told(parts) for parts in found] == [[1], [2], [3]]
        assert (old.passes, new.passes, window.counted) == ([[1, 3]], [[2]], [2, 1])

    asyncio.run(run())


def test_without_merging_nothing_waits() -> None:
    window, scorer = Window(most=1, wait_ms=50.0), Odd()
    coroutine = window.merger.score(scorer, tasks(7))  # type: ignore[arg-type]
    with pytest.raises(StopIteration) as done:
        coroutine.send(None)
    assert told(done.value.value) == [7]
    assert window.counted == []
