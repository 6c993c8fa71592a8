"""The mode `auto` on a world whose truth is known: users who differ turn adaptation on, users who do not leave it off."""

import itertools

import msgspec
import numpy as np
import pytest

from learner import episodes, evidence, publishing, rehearsal
from learner.loop import Loop, layout_of
from state import columns, config, ids
from thousandfold.bench import logs, protocol
from thousandfold.data import simulator

SETTINGS = config.parse("""
[model]
name = "shared_bottom"
embedding_width = 4
hidden = [8, 4]
personal_features = ["item"]
[embedding]
capacity = 4096
[meta]
mode = "auto"
inner_rate = 0.5
[learner]
rows_per_step = 64
fetch_messages = 1
baseline = "off"
dedup_rows = 65536
window_rows = 1000
[features]
categories = [{ name = "item", source = "item_id" }, { name = "scenario", source = "scenario" }]
""")
CALM = {"users": 300, "items": 60, "lists_per_s": 5, "base": 0.0, "delay_median_s": 0, "delay_p90_s": 0, "drift_spread": 0.0}
SCENARIOS = (simulator.Scenario("home", 1.0, 0.0, 4.0),)
LISTS, CUT = 6000, 100


def messages(world: simulator.Settings) -> list[episodes.Message]:
    """The first lists of a world as episodes, each with its user's support."""
    made = simulator.Simulator(world, 11)
    log = logs.from_blocks(SETTINGS, made.world, list(itertools.islice(made.events(), 5)))
    data = protocol.prepare(SETTINGS, log, protocol.Lag())
    known, layout, out = protocol.Supports(SETTINGS, data), layout_of(SETTINGS), []
    for offset, first in enumerate(range(0, min(LISTS, len(data.ts)), CUT)):
        last = min(first + CUT, len(data.ts))
        n_support, s = known.of(first, last)
        low, high = int(data.start[first]), int(data.start[last])
        label, lists = data.label[low:high], slice(first, last)
        packed = {
            "request": np.arange(first + 1, last + 1, dtype="<u8"), "user": data.task[lists], "scenario": data.scenario[lists],
            "task": data.task[lists], "ts": data.ts[lists], "version": np.zeros(last - first, "<i4"),
            "n_items": np.diff(data.start[first : last + 1]).astype("<i4"), "n_support": n_support.astype("<i4"),
            "item": data.item[low:high], "ids": data.ids[low:high], "x": data.x[low:high], "label": label,
            "weight": np.ones_like(label),
            **{f"s_{name}": np.ascontiguousarray(s[name]) for name in ("ids", "x", "label", "ts")},
        }  # fmt: skip
        value = columns.pack(packed, spec=layout.spec, scenarios={str(ids.of("home")): "home"})
        out.append(episodes.Message(SETTINGS.topics.episodes, 0, offset, None, value))
    return out


def learned(settings: config.Config = SETTINGS, **planted: float) -> Loop:
    """A learner that has gone through such a world."""
    world = simulator.Settings(scenarios=SCENARIOS, **CALM, **planted)  # type: ignore[arg-type]
    publisher = publishing.Publisher(rehearsal.MemoryWriter(), lambda _: None, settings.snapshot)
    loop = Loop(settings, rehearsal.MemorySource(messages(world)), rehearsal.MemoryLog(), publisher)
    while loop.once():
        pass
    return loop


def test_users_who_differ_turn_adaptation_on_and_it_stays_on() -> None:
    loop = learned(user_spread=1.5, taste_spread=0.0)
    state = loop.measures.policy.scenarios[ids.of("home")]
    assert (state.on, state.changes) == (True, 1)
    assert loop.trainer.modes.granted == {ids.of("home")}


def test_users_who_do_not_differ_leave_it_off() -> None:
    loop = learned(user_spread=0.0, taste_spread=0.0)
    state = loop.measures.policy.scenarios[ids.of("home")]
    assert (state.on, state.changes) == (False, 0)
    assert evidence.value(state.gain) < 0
    assert loop.trainer.modes.granted == set()


@pytest.mark.parametrize(("share", "on"), [(0.0, False), (0.1, True)])
def test_what_gains_by_meta_training_alone_is_found_by_the_trial_which_harms_nobody(share: float, on: bool) -> None:
    """Rates of 8 are far too high until they are learned, which only lists that meta-learn do."""
    meta = msgspec.structs.replace(SETTINGS.meta, algorithm="meta_sgd", inner_rate=8.0, auto_trial_share=share)
    loop = learned(msgspec.structs.replace(SETTINGS, meta=meta), user_spread=1.5, taste_spread=0.0)
    assert loop.measures.policy.scenarios[ids.of("home")].on == on
    plain = next(q for q in loop.measures.figures.report("cumulative") if q.variant == "unadapted")
    assert plain.logloss < 0.600, "what serving says while it is off"
