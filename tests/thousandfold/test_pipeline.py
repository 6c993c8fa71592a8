"""The in-process pipeline: raw messages to episodes, the same whatever the batches."""

import msgspec
import numpy as np
import pytest

from state import columns, config, ids
from thousandfold import pipeline, specs, warm


@pytest.fixture(scope="module")
def settings() -> config.Config:
    return config.load(specs.path("ml1m"))


def episodes(settings: config.Config, raw: list[pipeline.Raw], batch: int) -> dict[int, tuple[bytes, bytes]]:
    """(label, x) of every list by request."""
    flow = pipeline.Pipeline(settings)
    packed = [value for i in range(0, len(raw), batch) for value in flow.feed(raw[i : i + batch])] + flow.end()
    out = {}
    for value in packed:
        _, c = columns.unpack(value)
        ends = np.cumsum(c["n_items"])
        for i, request in enumerate(c["request"].tolist()):
            rows = slice(ends[i] - c["n_items"][i], ends[i])
            assert request not in out
            out[request] = (c["label"][rows].tobytes(), c["ids"][rows].tobytes())
    return out


def test_every_list_becomes_one_episode_whatever_the_batches(settings: config.Config) -> None:
    raw = warm.raw_messages(settings, 40, seed=3)
    whole = episodes(settings, raw, len(raw))
    assert len(whole) == len({m.value for m in raw if m.topic == "impressions"})
    assert episodes(settings, raw, 7) == whole


def test_a_click_within_the_window_is_a_label_and_one_after_it_is_late(settings: config.Config) -> None:
    def shown(request: str, ts_ms: int) -> bytes:
        return msgspec.json.encode(
            {
                "request_id": request,
                "ts_ms": ts_ms,
                "user_id": "u",
                "scenario": "young",
                "items": [{"item_id": "i", "position": 0}],
            }
        )

    def click(request: str, ts_ms: int) -> bytes:
        return msgspec.json.encode({"request_id": request, "item_id": "i", "user_id": "u", "ts_ms": ts_ms})

    start, p, window_ms = 1_700_000_000_000, ids.of("u") % 4, round(settings.join.window_s * 1000)
    late_ms = start + window_ms + 1
    flow = pipeline.Pipeline(settings)
    packed = flow.feed(
        [
            pipeline.Raw("impressions", p, 0, shown("a", start), start),
            pipeline.Raw("impressions", p, 1, shown("b", start + 1), start + 1),
            pipeline.Raw("clicks", p, 0, click("a", start + 100), start + 100),
            pipeline.Raw("clicks", p, 1, click("b", late_ms + 1), late_ms + 1),
        ]
    )
    packed += flow.end()
    found = [columns.unpack(value)[1] for value in packed]
    labels = {r: x for c in found for r, x in zip(c["request"].tolist(), c["label"][:, 0].tolist(), strict=True)}
    assert labels == {ids.of("a"): 1.0, ids.of("b"): 0.0}
    assert flow.counts.late == 1


def test_malformed_messages_are_counted_and_the_rest_goes_on(settings: config.Config) -> None:
    raw = warm.raw_messages(settings, 10)
    offset = sum(m.topic == "impressions" and m.partition == 0 for m in raw)
    flow = pipeline.Pipeline(settings)
    flow.feed([*raw, pipeline.Raw("impressions", 0, offset, b"{not json", raw[-1].at_ms)])
    flow.end()
    assert flow.counts.rejected >= 1
    assert flow.counts.lists == 10


def test_the_warm_up_trains_and_scores(settings: config.Config) -> None:
    assert warm.warm(settings) > 0


def test_the_warm_up_takes_a_configuration_whose_first_lists_have_no_support() -> None:
    assert warm.warm(config.load(specs.path("ml1m_dupn"))) > 0
