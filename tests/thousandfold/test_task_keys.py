"""Every kind of task key from raw messages to trained rows: users, pairs with the scenario, items, groups of items."""

import itertools
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from learner import episodes, publishing, rehearsal
from learner.loop import Loop
from serving import scoring
from state import columns, config, features, ids, records, spec
from thousandfold import pipeline, specs, warm

KEYS = [("user",), ("scenario", "user"), ("segment",), ("item",), ("category",), ("category", "user")]
"""`category` is declared of the item (`item.category`), as an ad group would be, `segment` of the user, as a crowd is."""


@pytest.fixture(scope="module")
def declared() -> config.Config:
    whole = config.load(specs.path("search_log"))
    small = {
        "join": msgspec.structs.replace(whole.join, window_s=0.3, lateness_s=0.0),
        "embedding": msgspec.structs.replace(whole.embedding, capacity=4096),
        "learner": msgspec.structs.replace(whole.learner, dedup_rows=4096, baseline="off"),
    }
    return msgspec.structs.replace(whole, **small)


@pytest.fixture(scope="module")
def raw(declared: config.Config) -> list[pipeline.Raw]:
    return warm.raw_messages(declared, 120, seed=2)


@pytest.mark.parametrize("key", KEYS, ids="+".join)
def test_a_task_learns_every_row_once_with_its_own_earlier_rows_and_serving_names_it_alike(
    declared: config.Config, raw: list[pipeline.Raw], key: tuple[str, ...]
) -> None:
    settings = msgspec.structs.replace(declared, task=config.Task(key))
    flow = pipeline.Pipeline(settings)
    packed = [*flow.feed(raw), *flow.end()]
    starts = {c.name: c.start for c in spec.id_columns(settings.features)}
    supported = 0
    tasks: dict[tuple[int, int], int] = {}
    for value in packed:
        found = columns.unpack(value)[1]
        task, s_task = (_tasks(found[name], [starts[part] for part in key]) for name in ("ids", "s_ids"))
        of, s_of = (np.repeat(np.arange(len(found["task"])), found[name]) for name in ("n_items", "n_support"))
        assert (task == found["task"][of]).all()
        assert (s_task == found["task"][s_of]).all()
        assert (found["s_ts"] < found["ts"][s_of]).all()
        supported += len(s_of)
        tasks |= dict(zip(zip(found["request"][of].tolist(), found["item"].tolist(), strict=True), task.tolist(), strict=True))
    assert len(tasks) == flow.counts.rows
    assert supported > 100
    assert _served(settings, raw) == tasks
    source = rehearsal.MemorySource(episodes.Message("episodes", 0, i, None, value) for i, value in enumerate(packed))
    loop = Loop(settings, source, rehearsal.MemoryLog(), publishing.Publisher(rehearsal.MemoryWriter(), print, settings.snapshot))
    while loop.once():
        pass
    assert loop.trained_rows == flow.counts.rows


def _tasks(found: npt.NDArray[Any], at: list[int]) -> npt.NDArray[Any]:
    task = found[:, at[0]]
    for column in at[1:]:
        task = ids.mix(task, found[:, column])
    return task


def _served(settings: config.Config, raw: list[pipeline.Raw]) -> dict[tuple[int, int], int]:
    """The task by (request, item) that serving would adapt for."""
    made, decoder = scoring.Scoring(settings), records.decoder(settings)
    out: dict[tuple[int, int], int] = {}
    for message in raw:
        if message.topic == "impressions":
            shown = decoder.impression(message.value, message.at_ms)
            lists = features.lists_of([shown], made.engine.compiled, ids.Ids())
            tasks, of_task = scoring.tasks_of(lists, made._key)
            each = itertools.repeat(0) if of_task is None else of_task.tolist()
            out |= {(int(lists.request[0]), item): int(tasks[t]) for item, t in zip(lists.item.tolist(), each, strict=False)}
    return out
