from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from state import columns, ids
from state import config as configuration
from streams import samples

SPEC = """
task.key = KEY
model = { scenario_features = [], personal_features = [] }
[features]
categories = [
  { name = "user", source = "user_id" },
  { name = "genre", source = "item.genre", max_values = 2 },
]
"""


def routing(*key: str) -> samples.Routing:
    return samples.routing(configuration.parse(SPEC.replace("KEY", str(list(key)).replace("'", '"'))))


def lists(n_items: list[int]) -> columns.Columns:
    n, r = len(n_items), sum(n_items)
    rows = np.arange(r, dtype=np.uint64)
    of = np.repeat(np.arange(n), n_items)
    return {
        "request": np.arange(n, dtype=np.uint64) + np.uint64(100),
        "user": np.arange(n, dtype=np.uint64) % np.uint64(3),
        "scenario": np.arange(n, dtype=np.uint64) % np.uint64(2),
        "ts": np.arange(n, dtype=np.int64),
        "n_items": np.array(n_items, np.int32),
        "version": np.zeros(n, np.int32),
        "item": rows % np.uint64(5),
        "ids": np.stack([of.astype(np.uint64), rows % np.uint64(2), np.full(r, ids.PAD, np.uint64)], axis=1),
        "x": rows.astype(np.float32).reshape(-1, 1),
        "label": (rows % np.uint64(2)).astype(np.float32).reshape(-1, 1),
        "weight": np.ones((r, 1), np.float32),
    }


def unpacked(
    found: columns.Columns, route: samples.Routing, partition: int = 1
) -> list[tuple[int, dict[str, Any], columns.Columns]]:
    return [
        (target, *columns.unpack(value))
        for target, value, _, _ in samples.messages(found, samples.Names({0: "home", 1: "search"}, {}), route, partition)
    ]


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=12),
    st.sampled_from([("user",), ("scenario",), ("item",), ("genre", "user")]),
)
def test_every_row_arrives_once_with_its_list_and_its_task(n_items: list[int], key: tuple[str, ...]) -> None:
    route, found = routing(*key), lists(n_items)
    rows = set()
    for target, head, c in unpacked(found, route._replace(lists_per_message=3)):
        assert head["spec"] == route.spec
        assert len(c["task"]) <= 3
        assert int(c["n_items"].sum()) == len(c["item"])
        of = np.repeat(np.arange(len(c["task"])), c["n_items"])
        for row, i in enumerate(of.tolist()):
            rows.add((int(c["request"][i]), float(c["x"][row, 0])))
            parts = {"user": c["user"][i], "scenario": c["scenario"][i], "item": c["item"][row], "genre": c["ids"][row, 1]}
            task = parts[key[0]] if len(key) == 1 else ids.mix(parts[key[0]], parts[key[1]])
            assert c["task"][i] == task
            assert target == (1 if key == ("user",) else int(task) % route.partitions)
    request = np.repeat(found["request"], found["n_items"])
    assert rows == {(int(request[r]), float(r)) for r in range(sum(n_items))}


def test_messages_stay_below_the_limit_and_a_larger_list_is_kept_whole() -> None:
    route = routing("user")._replace(max_bytes=samples.HEAD_BYTES + 4_000, lists_per_message=1000)
    sizes = [len(value) for _, value, _, _ in samples.messages(lists([10] * 50), samples.Names({}, {}), route, 0)]
    assert len(sizes) > 1
    assert max(sizes) <= route.max_bytes
    ((_, _, c),) = unpacked(lists([300]), route)
    assert c["n_items"].tolist() == [300]


def test_a_message_names_the_scenarios_that_it_holds() -> None:
    for _, head, c in unpacked(lists([1] * 4), routing("scenario")):
        assert set(head["scenarios"]) == {str(s) for s in c["scenario"].tolist()}


@pytest.mark.parametrize("key", [("user",), ("item",)])
def test_the_same_lists_give_the_same_bytes(key: tuple[str, ...]) -> None:
    first, second = (
        [v for _, v, _, _ in samples.messages(lists([3, 2]), samples.Names({}, {}), routing(*key), 0)] for _ in range(2)
    )
    assert first == second
