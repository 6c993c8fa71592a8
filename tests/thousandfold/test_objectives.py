"""Objectives of four kinds in two scenarios, from raw messages to labels, figures and scores, in one process."""

import math
from typing import Any

import msgspec
import numpy as np
import pytest

from learner import publishing, rehearsal
from learner.episodes import Message
from learner.loop import Loop
from learner.prequential import Quality
from models import scorer
from models.base import Support
from state import columns, config, ids
from thousandfold import pipeline

START, P, LISTS = 1_700_000_000_000, 4, 1500
SETTINGS = config.parse("""
[scenarios]
known = ["home", "shop"]

[[objectives]]
name = "click"
action = "click"

[[objectives]]
name = "power"
action = "buy"
kind = "multiclass"
classes = 3
scenarios = ["shop"]

[[objectives]]
name = "time"
action = "watch"
kind = "regression"
transform = "log1p"

[[objectives]]
name = "order"
action = "click"
kind = "ranking"
weights = { buy = 5.0 }

[join]
window_s = 60.0

[meta]
inner_rate = 0.02

[model]
hidden = [16, 8]
embedding_width = 4
gate_hidden = 8

[optimizer]
dense_rate = 0.005

[learner]
rows_per_step = 25
window_rows = 500

[features]
categories = [
  { name = "user", source = "user_id" },
  { name = "item", source = "item_id" },
  { name = "scenario", source = "scenario" },
]
statistics = [{ name = "item_rate", key = ["item"], kind = "rate" }]
""")
CLICK, POWER, TIME, ORDER = range(4)


def log(lists: int, seed: int = 0) -> list[pipeline.Raw]:
    """Users with an item each that they like; who buys has a class, who watches does so for long where the item is good."""
    random, out, offsets = np.random.default_rng(seed), [], dict.fromkeys(range(P), (-1, -1))
    for k in range(lists):
        user, ts = int(random.integers(8)), START + 30_000 * k
        scenario, items = ("home", "shop")[user % 2], random.choice(6, 4, replace=False)
        partition = ids.of(f"u{user}") % P
        shown = {
            "request_id": k, "ts_ms": ts, "user_id": f"u{user}", "scenario": scenario,
            "items": [{"item_id": f"i{i}", "position": p} for p, i in enumerate(items)],
        }  # fmt: skip
        a, b = offsets[partition]
        out.append(pipeline.Raw("impressions", partition, a := a + 1, msgspec.json.encode(shown), ts))
        for item in items.tolist():
            liked = item == user % 6
            done = [("click", 1.0)] if liked or random.random() < 0.1 else []
            done += [("buy", float(user % 3))] if liked and scenario == "shop" else []
            done += [("watch", 10.0 * (item + 1))] if random.random() < 0.5 else []
            for kind, value in done:
                action = {
                    "request_id": k, "user_id": f"u{user}", "item_id": f"i{item}", "ts_ms": ts + 1,
                    "action": kind, "value": value,
                }  # fmt: skip
                out.append(pipeline.Raw("clicks", partition, b := b + 1, msgspec.json.encode(action), ts + 1))
        offsets[partition] = (a, b)
    return out


@pytest.fixture(scope="module")
def packed() -> list[bytes]:
    flow = pipeline.Pipeline(SETTINGS)
    raw = log(LISTS)
    found = [value for i in range(0, len(raw), 50) for value in flow.feed(raw[i : i + 50])] + flow.end()
    assert flow.counts.lists == LISTS
    assert flow.counts.rejected == flow.counts.late == flow.counts.orphans == 0
    return found


@pytest.fixture(scope="module")
def learned(packed: list[bytes]) -> tuple[Loop, rehearsal.MemoryLog]:
    source = rehearsal.MemorySource(Message(SETTINGS.topics.episodes, 0, k, None, value) for k, value in enumerate(packed))
    plans, publisher = rehearsal.MemoryLog(), publishing.Publisher(rehearsal.MemoryWriter(), lambda _: None, SETTINGS.snapshot)
    loop = Loop(SETTINGS, source, plans, publisher)
    while loop.once():
        pass
    return loop, plans


def test_labels_and_weights_are_those_of_each_kind(packed: list[bytes]) -> None:
    for value in packed:
        _, c = columns.unpack(value)
        shop = np.repeat(c["scenario"] == np.uint64(ids.of("shop")), c["n_items"])
        label, weight = c["label"], c["weight"]
        assert np.array_equal(weight, (~np.isnan(label)).astype(np.float32))
        assert np.isin(label[:, CLICK], (0, 1)).all()
        assert np.isnan(label[~shop, POWER]).all()
        bought = shop & ~np.isnan(label[:, POWER])
        assert np.isin(label[bought, POWER], (0, 1, 2)).all()
        assert (label[bought, ORDER] == 5).all()
        assert np.array_equal(label[~bought, ORDER], label[~bought, CLICK])
        watched = label[:, TIME][~np.isnan(label[:, TIME])]
        assert np.isin(watched, 10 * np.arange(1, 7)).all()
        assert c["s_label"].shape[1] == 4


def figure(loop: Loop, scenario: str, objective: str, variant: str = "adapted", window: str = "recent") -> Quality:
    (one,) = [q for q in loop.measures.figures.report(window) if q[:3] == (scenario, objective, variant)]
    return one


def test_every_objective_is_learned_where_it_exists_and_measured_by_the_figures_of_its_kind(
    packed: list[bytes], learned: tuple[Loop, rehearsal.MemoryLog]
) -> None:
    loop, plans = learned
    assert not plans.letters
    assert not loop.counts.skipped_steps
    labels = np.concatenate([columns.unpack(value)[1]["label"] for value in packed])
    for o, name in enumerate(("click", "power", "time", "order")):
        assert figure(loop, "(all)", name, window="cumulative").rows == (~np.isnan(labels[:, o])).sum()
    assert figure(loop, "home", "power").rows == 0
    click, power, time, order = (figure(loop, "shop", name) for name in ("click", "power", "time", "order"))
    assert click.auc > 0.8
    assert click.gauc > 0.8
    assert power.accuracy > 0.6
    assert power.logloss < math.log(3)
    assert 0 < time.rmse < 25
    assert time.calibration == pytest.approx(1.0, abs=0.4)
    assert order.gauc > 0.8
    assert all(math.isnan(v) for v in (order.auc, order.logloss, order.rmse, power.auc, time.logloss, click.accuracy, click.rmse))
    assert figure(loop, "shop", "click", "river").rows > 0
    assert figure(loop, "shop", "time", "river").rows == 0


def test_a_snapshot_scores_every_objective_by_its_kind_and_resumes(learned: tuple[Loop, rehearsal.MemoryLog]) -> None:
    loop, _ = learned
    parts: dict[str, dict[str, Any]] = loop.parts()
    served = scorer.Scorer(SETTINGS, parts["serving"])
    shown = np.array([[ids.of("u1"), ids.of(f"i{i}"), ids.of("shop")] for i in range(6)], np.uint64)
    x, label = np.full((6, 1), 0.3, np.float32), np.full((6, 4), np.nan, np.float32)
    label[:, CLICK] = 0
    label[1] = [1, 1, 20, 5]
    found = served.score(shown, x, ids.of("shop"), Support(shown, x, label))
    assert found.adapted.shape == (6, 6)
    assert np.isfinite(found.adapted).all()
    assert found.adapted[:, 1:4].sum(1) == pytest.approx(np.ones(6), abs=1e-5)
    assert found.adapted_on == 6
    assert not np.array_equal(found.adapted, found.plain)
    assert found.adapted[:, 5].argmax() == 1
    again = Loop(SETTINGS, rehearsal.MemorySource(), rehearsal.MemoryLog(), publishing.Publisher(
        rehearsal.MemoryWriter(), lambda _: None, SETTINGS.snapshot))  # fmt: skip
    again.measures.figures.load(
        {name.removeprefix("figures/"): a for name, a in parts["training"].items() if name.startswith("figures/")}
    )
    assert msgspec.json.encode(again.measures.figures.report()) == msgspec.json.encode(loop.measures.figures.report())
