"""Propensities from the impression to the loss: nothing else of a sample changes, and nothing where none is said."""

import functools
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learner import episodes, publishing, rehearsal
from learner.loop import Loop
from state import columns, config, ids
from thousandfold import pipeline, specs, warm

SAID = st.one_of(st.none(), st.floats(1e-6, 1.0), st.sampled_from([0.0, -0.5, 1.5, 1e-60, 1.0]))


@functools.cache
def declared(mode: str = "window", key: str = "user") -> config.Config:
    whole = config.load(specs.path("search_log"))
    small: dict[str, Any] = {
        "join": msgspec.structs.replace(whole.join, window_s=0.3, lateness_s=0.0, mode=mode),
        "embedding": msgspec.structs.replace(whole.embedding, capacity=4096),
        "learner": msgspec.structs.replace(whole.learner, dedup_rows=4096, baseline="off", propensity_clip=4.0),
        "streams": msgspec.structs.replace(whole.streams, lists_per_message=3),
        "task": config.Task((key,)),
    }
    return msgspec.structs.replace(whole, **small)


@functools.cache
def raw() -> tuple[pipeline.Raw, ...]:
    return tuple(warm.raw_messages(declared(), 30, seed=2))


def logged(said: list[float | None]) -> tuple[list[pipeline.Raw], dict[tuple[int, int], float]]:
    """The log with propensities said of its rows in turn, and those that should arrive, by (request, item)."""
    out, expected, at = [], {}, 0
    for message in raw():
        if message.topic == "impressions":
            body = msgspec.json.decode(message.value or b"")
            for item in body["items"]:
                value = said[at % len(said)]
                if value is not None:
                    item["propensity"] = value
                bad = value is None or not 0 < np.float32(value) <= 1
                expected[ids.of(body["request_id"]), ids.of(item["item_id"])] = np.nan if bad else float(np.float32(value))
                at += 1
            out.append(message._replace(value=msgspec.json.encode(body)))
        else:
            out.append(message)
    return out, expected


def run(settings: config.Config, messages: list[pipeline.Raw]) -> tuple[list[bytes], pipeline.Pipeline]:
    flow = pipeline.Pipeline(settings)
    return [*flow.feed(messages), *flow.end()], flow


@settings(max_examples=8, deadline=None)
@given(st.lists(SAID, min_size=1, max_size=40), st.sampled_from(["window", "eager"]), st.sampled_from(["user", "item"]))
def test_every_sample_carries_what_its_impression_said_and_what_is_no_probability_is_counted(
    said: list[float | None], mode: str, key: str
) -> None:
    messages, expected = logged(said)
    packed, flow = run(declared(mode, key), messages)
    arrived = set()
    for value in packed:
        found = columns.unpack(value)[1]
        request = np.repeat(found["request"], found["n_items"]).tolist()
        rows = [expected[row] for row in zip(request, found["item"].tolist(), strict=True)]
        assert ("propensity" in found) == (not np.isnan(rows).all())
        np.testing.assert_array_equal(found.get("propensity", np.full(len(rows), np.nan)), rows)
        arrived |= set(zip(request, found["item"].tolist(), strict=True))
    assert arrived == expected.keys()
    spoken = [said[k % len(said)] for k in range(len(expected))]
    known = sum(not np.isnan(value) for value in expected.values())
    assert flow.bad_propensities == len(spoken) - spoken.count(None) - known
    plain, _ = run(declared(mode, key), list(raw()))
    for one, value in zip(packed, plain, strict=True):
        head, columns_of = columns.unpack(one)
        columns_of.pop("propensity", None)
        assert columns.pack(columns_of, **{k: v for k, v in head.items() if k not in {"v", "cols"}}) == value


def test_a_log_in_which_nobody_says_them_has_no_such_column() -> None:
    packed, flow = run(declared(), list(raw()))
    assert not any("propensity" in columns.unpack(value)[1] for value in packed)
    assert flow.bad_propensities == 0


def learned(settings: config.Config, packed: list[bytes]) -> tuple[Loop, dict[str, bytes]]:
    source = rehearsal.MemorySource(episodes.Message("episodes", 0, i, None, value) for i, value in enumerate(packed))
    loop = Loop(settings, source, rehearsal.MemoryLog(), publishing.Publisher(rehearsal.MemoryWriter(), print, settings.snapshot))
    while loop.once():
        pass
    # Figures by inverse propensities are there where propensities are, whatever the learner makes of them.
    state = {name: array.tobytes() for part in loop.parts().values() for name, array in part.items()}
    return loop, {name: found for name, found in state.items() if not name.startswith("explored/")}


def test_the_learner_weighs_rows_by_them_where_it_is_asked_to_and_counts_what_it_did() -> None:
    said = [0.5, 0.01, None, 1.0]
    messages, _ = logged(said)
    asked, unasked = declared(), msgspec.structs.replace(declared(), learner=config.Learner(dedup_rows=4096, baseline="off"))
    packed, plain = run(asked, messages)[0], run(asked, list(raw()))[0]
    weighted, state = learned(asked, packed)
    rows = sum(len(columns.unpack(value)[1]["item"]) for value in packed)
    assert weighted.counts.propensities == {"weighted": rows - rows // 4, "clipped": rows // 4 + (rows % 4 > 1)}
    assert learned(asked, packed)[1] == state
    untouched, same = learned(unasked, packed)
    assert untouched.counts.propensities == {"unused": rows - rows // 4}
    assert learned(unasked, plain)[1] == same == learned(asked, plain)[1]
    assert state["dense"] != same["dense"]
    # Figures and moments are those of traffic: weights of the loss are not weights of what was seen.
    assert state["moments.observed"] == same["moments.observed"]


@pytest.mark.parametrize("clip", [-1.0, 0.5])
def test_a_clip_that_would_make_rows_count_less_is_refused(clip: float) -> None:
    with pytest.raises(config.ConfigError, match=r"learner\.propensity_clip"):
        config.parse(f"[learner]\npropensity_clip = {clip}")
