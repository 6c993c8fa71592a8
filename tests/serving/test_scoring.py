import asyncio
import json
from collections.abc import Sequence
from typing import Any

import hypothesis
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import strategies as st

from models import base, engines, modes
from models.scorer import Scored, Task
from serving import live, metrics, requests, scoring
from serving.problems import Problem
from state import config as configuration
from state import features, ids, memory_store, meta_supports, records, supports
from streams import samples

FEATURES = """
[features]
categories = [
  { name = "user", source = "user_id" },
  { name = "item", source = "item_id" },
  { name = "scenario", source = "scenario" },
  { name = "genres", source = "item.genres", max_values = 2 },
]
statistics = [{ name = "item_count", key = ["item"], kind = "count" }, { name = "user_count", key = ["user"], kind = "count" }]
"""
CONFIG = configuration.parse(FEATURES)
TS = 1_700_000_000_000


class Remembering:
    """A scorer whose score is the row's `user_count` and which remembers what it was given."""

    trunk: meta_supports.Trunk | None = None
    shape = meta_supports.Shape(1, 2, 1, 1)
    choice = engines.Choice("native", "")

    def __init__(self) -> None:
        self.modes = modes.Modes(CONFIG.meta)
        self.calls: list[tuple[npt.NDArray[np.uint64], npt.NDArray[np.float32], base.Support | base.Known | None]] = []
        self.offset = np.float32(0)

    def observed(self, _scenario: int) -> tuple[int, npt.NDArray[np.float64]]:
        return 0, np.zeros((5, 2))

    def score(
        self, ids: npt.NDArray[np.uint64], x: npt.NDArray[np.float32], scenario: int, support: base.Support | base.Known | None
    ) -> Scored:
        [scored] = self.merged([Task(ids, x, scenario, support)])
        return scored

    def merged(self, tasks: Sequence[Task]) -> list[Scored]:
        return [self._scored(*task) for task in tasks]

    def _scored(
        self, ids: npt.NDArray[np.uint64], x: npt.NDArray[np.float32], scenario: int, support: base.Support | base.Known | None
    ) -> Scored:
        self.calls.append((ids, x, support))
        used = 0 if support is None or self.modes.code(scenario) == modes.OFF else len(support.label)
        plain = x[:, -1:] + self.offset
        return Scored(plain, plain + used, used)


def asked(config: configuration.Config = CONFIG, user: str = "u", items: int = 4, **more: Any) -> requests.Request:
    shown = [{"item_id": f"i{k}", "features": {"genres": [f"g{k % 2}", "x"]}} for k in range(items)]
    body = {"user_id": user, "scenario": "s", "candidates": shown} | more
    return requests.Decoder(config).decode(json.dumps(body).encode(), "json")


def packed(rows: list[int], config: configuration.Config = CONFIG) -> bytes:
    layout = supports.layout(config)
    made = np.zeros(len(rows), layout.dtype)
    made["ts"] = rows
    return supports.pack(layout, made)


def counted(store: memory_store.MemoryStore, user: str, times: int) -> None:
    engine = features.Engine(CONFIG, 256)
    for k in range(times):
        body = {"request_id": f"r{k}", "ts_ms": TS - 100 + k, "user_id": user, "scenario": "s"}
        body["items"] = [{"item_id": "i0", "position": 0, "features": {}}]
        lists = features.lists_of([records.decoder(CONFIG).impression(json.dumps(body).encode(), TS)], engine.compiled, ids.Ids())

        async def work(lists: features.Lists = lists) -> None:
            wanted = engine.wanted(lists, None, 0.0)
            engine.fill(wanted, await store.read(wanted), 0.0)
            engine.run(lists, None)
            engine.merged(await store.count(engine.take()))

        asyncio.run(work())


@pytest.mark.parametrize("key", [("user",), ("user", "scenario"), ("item",), ("user", "item"), ("scenario", "genres")])
def test_a_candidate_belongs_to_the_task_that_the_streams_would_give_it(key: tuple[str, ...]) -> None:
    config = configuration.parse(f"[task]\nkey = {json.dumps(key)}\n{FEATURES}")
    begun = scoring.Scoring(config).begin(asked(config), TS, 0.0)
    mine = begun.tasks[np.zeros(4, np.intp) if begun.of_task is None else begun.of_task]
    lists = begun.lists._asdict()
    columns = {name: lists[name] for name in ("request", "user", "scenario", "ts", "n_items", "item", "ids")}
    labelled = columns | {"x": np.zeros((4, 2), "f4"), "label": np.zeros((4, 1), "f4"), "weight": np.zeros((4, 1), "f4")}
    cut = samples.with_tasks(labelled, samples.routing(config).key)
    theirs = dict(zip(cut["item"].tolist(), np.repeat(cut["task"], cut["n_items"]).tolist(), strict=True))
    assert dict(zip(begun.lists.item.tolist(), mine.tolist(), strict=True)) == theirs


def test_candidates_of_several_tasks_are_each_adapted_to_their_own() -> None:
    config = configuration.parse(f'[task]\nkey = ["item"]\n{FEATURES}')
    made, scorer = scoring.Scoring(config), Remembering()
    begun = made.begin(asked(config), TS, 0.0)
    held = {ids.of("i1"): packed([TS - 1], config), ids.of("i3"): packed([TS - 2, TS - 1], config)}
    outcome = made.finish(scorer, begun, None, [held.get(task) for task in begun.tasks.tolist()], 0.0)
    assert outcome.scores[:, 0].tolist() == [0, 1, 0, 2]
    assert outcome.support_rows == 3


@hypothesis.given(st.lists(st.integers(TS - 50, TS + 50), max_size=12), st.integers(0, 60))
def test_support_is_strictly_earlier_and_not_too_old(times: list[int], max_age_ms: int) -> None:
    rows, ignored = scoring.support_rows(supports.layout(CONFIG), packed(sorted(times)), TS, max_age_ms)
    assert rows is not None
    assert len(rows.ids) == sum(TS - max_age_ms <= t < TS for t in times)
    assert ignored == scoring.Ignored(future=sum(t >= TS for t in times))


@pytest.mark.parametrize("damaged", [b"", b"x" * 40, packed([TS - 1])[:-1]])
def test_a_damaged_support_set_counts_as_foreign(damaged: bytes) -> None:
    made = scoring.Scoring(CONFIG)
    outcome = made.finish(Remembering(), made.begin(asked(), TS, 0.0), None, [damaged], 0.0)
    assert (outcome.support_rows, outcome.plain_reason, outcome.ignored.foreign) == (0, "foreign_support", 1)


def test_a_scenario_that_is_switched_off_says_so() -> None:
    made, scorer = scoring.Scoring(CONFIG), Remembering()
    scorer.modes.set("s", "off")
    outcome = made.finish(scorer, made.begin(asked(), TS, 0.0), None, [packed([TS - 1])], 0.0)
    assert (outcome.support_rows, outcome.plain_reason) == (0, "adaptation_off")


def test_without_the_store_what_was_read_before_is_used_and_the_rest_is_nothing() -> None:
    made, scorer = scoring.Scoring(CONFIG), Remembering()
    store = memory_store.MemoryStore(made.engine.schema, lambda: TS)
    counted(store, "known", 3)
    begun = made.begin(asked(user="known"), TS, 0.0)
    read = made.finish(scorer, begun, asyncio.run(store.read(begun.wanted)), [None], 0.0)
    assert read.scores[:, 0] == pytest.approx(np.log1p(3))
    for user, count in (("known", 3), ("unknown", 0)):
        again = made.finish(scorer, made.begin(asked(user=user), TS, 999.0), None, [None], 999.0)
        assert again.scores[:, 0] == pytest.approx(np.log1p(count))


def test_a_users_cells_are_wanted_every_time_and_shared_ones_once_old() -> None:
    made = scoring.Scoring(CONFIG)
    store = memory_store.MemoryStore(made.engine.schema, lambda: TS)

    def wanted(now_s: float) -> tuple[int, int]:
        begun = made.begin(asked(), TS, now_s)
        made.finish(Remembering(), begun, asyncio.run(store.read(begun.wanted)), [None], now_s)
        return len(begun.wanted.users), sum(map(len, begun.wanted.cells))

    assert wanted(10.0) == (1, 1 + 4 + 1)
    assert wanted(10.5) == (1, 1)
    assert wanted(12.0) == (1, 1 + 4 + 1)


def test_scoring_counts_nothing() -> None:
    made, scorer = scoring.Scoring(CONFIG), Remembering()
    first, second = (made.finish(scorer, made.begin(asked(), TS, 0.0), None, [None], 0.0) for _ in range(2))
    assert first.scores.tolist() == second.scores.tolist()


def test_a_score_that_is_no_number_is_a_problem() -> None:
    made, scorer = scoring.Scoring(CONFIG), Remembering()
    scorer.offset = np.float32("nan")
    with pytest.raises(Problem) as caught:
        made.finish(scorer, made.begin(asked(), TS, 0.0), None, [None], 0.0)
    assert (caught.value.status, caught.value.code) == (500, "not_finite")


def test_metrics_name_the_engine_of_the_model_that_answers_and_no_other() -> None:
    counted, slow = metrics.Metrics(), Remembering()
    counted.swapped(live.Model("1", 1, 1, Remembering()))
    slow.choice = engines.Choice("torch", 'meta.algorithm = "anil"')
    counted.swapped(live.Model("2", 2, 2, slow))
    lines = [line for line in counted.text().decode().splitlines() if line.startswith("thousandfold_engine_info{")]
    assert lines == ['thousandfold_engine_info{engine="torch",reason="meta.algorithm = \\"anil\\""} 1.0']
