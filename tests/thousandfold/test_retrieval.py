"""Retrieval from raw messages to found items: ids as they were sent come through the streams, the learner and its snapshot."""

import msgspec
import numpy as np
import pytest

from learner import publishing, rehearsal
from learner.episodes import Message
from learner.loop import Loop
from models import retriever
from state import columns, config, ids
from thousandfold import pipeline

START, P = 1_700_000_000_000, 2
TEXT = """
[kafka]
partitions = 2
[join]
window_s = 5.0
[model]
name = "two_tower"
embedding_width = 4
hidden = [8, 4]
[retrieval]
loss = "softmax"
candidates = 16
[learner]
baseline = "off"
fetch_messages = 1
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
]
"""
SETTINGS = config.parse(TEXT)


def log(lists: int = 60) -> list[pipeline.Raw]:
    """Users who are shown four of twelve items, whose ids are text or numbers, and like one."""
    random, out, offsets = np.random.default_rng(0), [], {p: [-1, -1] for p in range(P)}
    for k in range(lists):
        user, ts = f"u{k % 5}", START + 2_000 * k
        partition = ids.of(user) % P
        items = [item if item % 2 else f"ä{item}" for item in random.choice(12, 4, replace=False).tolist()]
        shown = [{"item_id": item, "position": p, "features": {"genre": "g"}} for p, item in enumerate(items)]
        head = {"request_id": k, "user_id": user}
        for which, (topic, message, at) in enumerate(
            (
                ("impressions", {"scenario": "home", "items": shown}, ts),
                ("clicks", {"item_id": items[k % 4], "action": "like"}, ts + 100),
            )
        ):
            offsets[partition][which] += 1
            value = msgspec.json.encode(head | {"ts_ms": at} | message)
            out.append(pipeline.Raw(topic, partition, offsets[partition][which], value, at))  # type: ignore[arg-type]
    return out


def episodes(settings: config.Config) -> list[bytes]:
    flow, raw = pipeline.Pipeline(settings), log()
    return [value for i in range(0, len(raw), 20) for value in flow.feed(raw[i : i + 20])] + flow.end()


def learner(packed: list[bytes], writer: rehearsal.MemoryWriter) -> tuple[Loop, rehearsal.MemorySource]:
    source = rehearsal.MemorySource(Message(SETTINGS.topics.episodes, 0, k, None, value) for k, value in enumerate(packed))
    return Loop(SETTINGS, source, rehearsal.MemoryLog(), publishing.Publisher(writer, lambda _: None, SETTINGS.snapshot)), source


@pytest.fixture(scope="module")
def packed() -> list[bytes]:
    return episodes(SETTINGS)


def test_messages_name_their_items_where_two_towers_are_configured_and_only_there(packed: list[bytes]) -> None:
    for value in packed:
        head, found = columns.unpack(value)
        assert set(map(int, head["items"])) == set(found["ids"][:, 1].tolist())
        assert all(ids.of(name) == int(key) for key, name in head["items"].items())
    other = config.parse(TEXT.replace('"two_tower"', '"shared_bottom"').replace('loss = "softmax"', ""))
    assert all("items" not in columns.unpack(value)[0] for value in episodes(other))


def test_a_learner_that_resumes_goes_on_byte_for_byte_and_finds_items_by_their_names(
    packed: list[bytes],
) -> None:
    writer = rehearsal.MemoryWriter()
    whole, _ = learner(packed, rehearsal.MemoryWriter())
    while whole.once():
        pass
    half, _ = learner(packed[: len(packed) // 2], writer)
    while half.once():
        pass
    half.stop()
    manifest, parts = writer.snapshots[-1]
    again, source = learner(packed, rehearsal.MemoryWriter())
    again.load(manifest, {name: array.copy() for part in parts.values() for name, array in part.items()})
    source.messages = source.messages[len(packed) // 2 :]
    while again.once():
        pass
    ends = [{name: np.asarray(a).tobytes() for name, a in loop.trainer.arrays().items()} for loop in (whole, again)]
    assert ends[0] == ends[1]
    serving = again.parts()["serving"]
    served = retriever.build(SETTINGS, {name: np.array(array) for name, array in serving.items()})
    assert isinstance(served, retriever.Retriever)
    rows = np.array([[ids.of(text) for text in ("u1", "", "home", "")]], np.uint64)
    found = served.retrieve(retriever.Asked(rows, np.zeros((1, 0), np.float32), ids.of("home"), None), 50)
    assert sorted(found.items) == sorted(str(item) if item % 2 else f"ä{item}" for item in range(12))
    assert again.report.items in ({}, {"named": 12, "unnamed": 0})
