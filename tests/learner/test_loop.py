"""The loop: planned before it is trained, each list once, and the same bytes after any crash."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from learner import episodes, publishing, rehearsal
from learner.loop import Clock, DeadLetter, Loop, Note, Origin, layout_of
from models import modes
from state import columns, config, control, ids, plan
from state.snapshots import Manifest

TEXT = """
[scenarios]
known = ["even"]
[learner]
rows_per_step = 12
fetch_messages = 2
dedup_rows = 2048
window_rows = 100
[embedding]
capacity = 1024
[model]
personal_features = ["user", "item"]
scenario_features = ["user"]
[features]
categories = [{ name = "user", source = "user_id" }, { name = "item", source = "item_id" }]
numbers = [{ name = "price", source = "item.price" }]
"""
SETTINGS = config.parse(TEXT)
Arrays = dict[str, npt.NDArray[Any]]


class Bench:
    """A loop with everything around it in memory, and a clock that tests move."""

    def __init__(
        self, messages: Sequence[episodes.Message], settings: config.Config = SETTINGS, log: rehearsal.MemoryLog | None = None
    ) -> None:
        self.now_s = 1000.0
        self.source, self.log = rehearsal.MemorySource(messages), log or rehearsal.MemoryLog()
        self.writer, self.announced = rehearsal.MemoryWriter(), list[Manifest]()
        self.publisher = publishing.Publisher(self.writer, self.announced.append, settings.snapshot)
        clock = Clock(lambda: int(self.now_s * 1000), lambda: self.now_s)
        self.loop = Loop(settings, self.source, self.log, self.publisher, clock, Origin("test", int(self.now_s)))

    def run(self, rounds: int = 1000) -> "Bench":
        while rounds and self.loop.once():
            rounds -= 1
        return self

    def state(self) -> Arrays:
        return {f"{part}:{name}": array.copy() for part, arrays in self.loop.parts().items() for name, array in arrays.items()}


def resumed(messages: Sequence[episodes.Message], saved: tuple[Manifest, Any], log: rehearsal.MemoryLog) -> Bench:
    """A new learner from a snapshot: messages are given again from its offsets on."""
    manifest, parts = saved
    bench = Bench([], log=log)
    bench.loop.load(manifest, {name: array.copy() for arrays in parts.values() for name, array in arrays.items()})
    bench.source.messages = [m for m in messages if m.offset >= bench.loop.offsets.get((m.topic, m.partition), 0)]
    return bench


def some(count: int, lists: int = 6) -> list[episodes.Message]:
    return [rehearsal.message(SETTINGS, offset, seed=offset, lists=lists) for offset in range(count)]


def switch(offset: int, mode: control.Mode, scenario: str = control.EVERY) -> episodes.Message:
    key, value = control.encode(control.Switch(scenario=scenario, mode=mode, wall_ms=0))
    return episodes.Message(SETTINGS.topics.control, 0, offset, key, value)


def lists_of(messages: Sequence[episodes.Message]) -> int:
    return sum(len(columns.unpack(m.value)[1]["request"]) for m in messages)


def same(one: Arrays, other: Arrays) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)


def test_a_fetch_is_planned_before_its_first_step_runs() -> None:
    class Watching(rehearsal.MemoryLog):
        def write(self, record: bytes, letters: Sequence[DeadLetter], notes: Sequence[Note] = ()) -> None:
            super().write(record, letters, notes)
            steps_then.append((self.records[-1].first_step, self.records[-1].last_step, bench.loop.step))

    steps_then: list[tuple[int, int, int]] = []
    bench = Bench(some(5), log=Watching())
    bench.run()
    assert [(first - 1, done) for first, _, done in steps_then] == [(done, done) for _, _, done in steps_then]
    assert steps_then[-1][1] == bench.loop.step > 5


def test_the_plan_covers_every_offset_and_the_manifest_says_how_far() -> None:
    bench = Bench([*some(5), rehearsal.message(SETTINGS, 7, seed=99, partition=1)]).run()
    bench.loop.stop()
    consumed = plan.consumed(bench.log.records)
    assert consumed.ranges == {("episodes", 0): [(0, 5)], ("episodes", 1): [(7, 8)]}
    assert not consumed.gaps
    assert consumed.rows == bench.loop.trained_rows == bench.loop.measures.figures.total
    assert consumed.steps == bench.loop.step
    manifest = bench.announced[-1]
    assert manifest.offsets == (("episodes", 0, 5), ("episodes", 1, 8))
    assert (manifest.step, manifest.trained_rows) == (bench.loop.step, bench.loop.trained_rows)


def test_messages_of_a_fetch_are_taken_in_order_of_partition_and_offset() -> None:
    settings = config.parse(TEXT.replace("fetch_messages = 2", "fetch_messages = 10"))
    messages = [*some(3), *(rehearsal.message(SETTINGS, offset, seed=50 + offset, partition=1) for offset in range(3))]
    shuffled = [messages[i] for i in (4, 0, 1, 5, 2, 3)]
    same(Bench(messages, settings).run().state(), Bench(sorted(shuffled), settings).run().state())
    one, other = Bench(messages, settings), Bench([messages[i] for i in (3, 0, 4, 1, 5, 2)], settings)
    same(one.run().state(), other.run().state())


def test_a_redelivered_list_is_skipped_and_named() -> None:
    first, second = some(2)
    again = first._replace(offset=2)
    bench = Bench([first, second, again]).run()
    assert bench.log.records[-1].skipped == tuple(("episodes", 0, 2, i, plan.DUPLICATE) for i in range(6))
    assert bench.log.records[-1].last_step == bench.log.records[-1].first_step - 1
    assert bench.loop.counts.duplicates == 6
    plain = Bench([first, second]).run()
    np.testing.assert_array_equal(bench.loop.trainer.dense, plain.loop.trainer.dense)
    assert bench.loop.trained_rows == plain.loop.trained_rows


def test_a_message_of_another_spec_is_dead_lettered_and_the_rest_is_trained(caplog: pytest.LogCaptureFixture) -> None:
    good, bad, junk = some(3)
    head, packed = columns.unpack(bad.value)
    bad = bad._replace(value=columns.pack(packed, spec="of another time", scenarios=head["scenarios"]), key=b"k")
    junk = junk._replace(value=b"junk")
    with caplog.at_level(logging.CRITICAL):
        bench = Bench([good, bad, junk]).run()
    assert [(d.message, d.letter.reason, d.letter.stage, d.letter.origin_offset) for d in bench.log.letters] == [
        (bad, plan.SCHEMA, "learner", 1),
        (junk, plan.MALFORMED, "learner", 2),
    ]
    consumed = plan.consumed(bench.log.records)
    assert consumed.skipped == {("episodes", 0, 1, -1): plan.SCHEMA, ("episodes", 0, 2, -1): plan.MALFORMED}
    assert consumed.ranges == {("episodes", 0): [(0, 3)]}
    assert bench.loop.seen.arrays()["keys"].size == lists_of([good])


def guarded(bench: Bench, at_step: int) -> None:
    """Make a guard refuse one step."""
    real = bench.loop.trainer.step
    done = [0]

    def step(batch: Any, now_ms: int) -> Any:
        done[0] += 1
        said = bench.loop.trainer.score(batch) if done[0] == at_step else real(batch, now_ms)
        return said._replace(skipped="loss is not finite" if done[0] == at_step else "")

    bench.loop.trainer.step = step  # type: ignore[method-assign]


def test_lists_that_a_guard_refused_are_named_in_the_next_record(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(some(4))
    guarded(bench, at_step=1)
    with caplog.at_level(logging.CRITICAL):
        bench.run()
    assert bench.log.records[0].skipped == ()
    named = bench.log.records[1].skipped
    assert named
    assert {(s[2], s[4]) for s in named} == {(0, plan.GUARD)}
    assert bench.loop.counts.skipped_steps == {"loss is not finite": 1}
    assert plan.consumed(bench.log.records).rows > bench.loop.trained_rows


def test_lists_that_a_guard_refused_last_survive_a_snapshot_and_are_named_at_the_stop(caplog: pytest.LogCaptureFixture) -> None:
    messages = some(2)
    bench = Bench(messages)
    guarded(bench, at_step=1)
    with caplog.at_level(logging.CRITICAL):
        bench.run()
    saved = bench.writer.snapshots[-1]
    assert saved[0].skipped
    after = resumed(messages, saved, bench.log)
    after.loop.stop()
    assert bench.log.records[-1].skipped == saved[0].skipped
    assert after.announced[-1].skipped == ()
    assert not plan.consumed(bench.log.records).gaps


def test_a_resumed_learner_ends_with_the_same_bytes_as_one_that_never_stopped() -> None:
    messages = some(8)
    straight = Bench(messages).run()
    crashed = Bench(messages).run(rounds=2)
    crashed.loop.publish()
    saved = crashed.writer.snapshots[-1]
    crashed.run(rounds=1)
    after = resumed(messages, saved, crashed.log).run()
    same(after.state(), straight.state())
    assert after.loop.step == straight.loop.step
    consumed = plan.consumed(crashed.log.records)
    assert consumed.ranges == {("episodes", 0): [(0, 8)]}
    assert (consumed.gaps, consumed.overlaps, consumed.superseded) == ([], [], 1)


@hypothesis_settings(max_examples=12)
@given(st.lists(st.tuples(st.integers(1, 3), st.booleans()), min_size=1, max_size=4), st.integers(0, 1000))
def test_after_any_crashes_every_list_counts_once(history: list[tuple[int, bool]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    fresh = some(6, lists=3)
    messages = [m if rng.random() < 0.7 else fresh[0]._replace(offset=m.offset) for m in fresh]
    log, saved = rehearsal.MemoryLog(), None
    for rounds, snapshot in history:
        bench = resumed(messages, saved, log) if saved else Bench(messages, log=log)
        bench.run(rounds)
        if snapshot:
            bench.loop.publish()
            saved = bench.writer.snapshots[-1]
    last = (resumed(messages, saved, log) if saved else Bench(messages, log=log)).run()
    consumed = plan.consumed(log.records)
    assert consumed.ranges == {("episodes", 0): [(0, 6)]}
    trained = [
        (request, task)
        for m in messages
        for place, (request, task) in enumerate(
            zip(*(columns.unpack(m.value)[1][n].tolist() for n in ("request", "task")), strict=True)
        )
        if (m.topic, m.partition, m.offset, place) not in consumed.skipped
    ]
    assert len(trained) == len(set(trained))
    wanted = {r for m in messages for r in columns.unpack(m.value)[1]["request"].tolist()}
    assert {request for request, _ in trained} == wanted
    assert consumed.rows == last.loop.trained_rows


def test_snapshots_come_in_time_and_versions_never_go_back() -> None:
    bench = Bench(some(8))
    bench.run(rounds=1)
    bench.now_s += 5
    bench.run(rounds=1)
    assert len(bench.writer.snapshots) == 1, "30 seconds are not over"
    bench.now_s += 30
    bench.run(rounds=1)
    assert [m.step for m, _ in bench.writer.snapshots] == [bench.log.records[0].last_step, bench.loop.step]
    bench.now_s -= 20
    bench.loop.once()
    bench.loop.publish()
    times = [m.created_ms for m, _ in bench.writer.snapshots]
    assert times == sorted(set(times))


def test_a_snapshot_of_another_spec_or_model_is_refused_with_what_to_do() -> None:
    bench = Bench(some(2)).run()
    manifest, parts = bench.writer.snapshots[-1]
    arrays = {name: array for arrays in parts.values() for name, array in arrays.items()}
    other = config.parse(TEXT.replace('"price"', '"cost"'))
    with pytest.raises(config.ConfigError, match="name another folder"):
        Bench([], other).loop.load(manifest, arrays)
    wider = config.parse(TEXT.replace("[model]", "[model]\nhidden = [16, 8]"))
    with pytest.raises(ValueError, match="this configuration has"):
        Bench([], wider).loop.load(manifest, arrays)


def test_serving_gets_what_it_needs_and_nothing_of_the_rest() -> None:
    bench = Bench(some(2)).run()
    parts = bench.loop.parts()
    assert set(parts["serving"]) == set(bench.loop.trainer.serving_names)
    assert not set(parts["serving"]) & set(parts["training"])
    assert {"seen/keys", "figures/hist", "baseline/moments"} <= set(parts["training"])


def test_the_report_shows_all_variants_and_the_baseline_can_be_switched_off() -> None:
    bench = Bench(some(30, lists=10)).run()
    bench.now_s += 10
    bench.loop.once()
    rows = {(q.scenario, q.variant, q.window): q.rows for q in bench.loop.report.qualities}
    assert rows["even", "river", "cumulative"] == rows["even", "adapted", "cumulative"] > 0
    assert 0 < rows["odd", "adapted", "recent"] <= 100
    assert bench.loop.report.step == bench.loop.step
    assert bench.loop.report.embedding_rows > 0
    off = Bench(some(3), config.parse(TEXT.replace("[learner]", '[learner]\nbaseline = "off"'))).run()
    off.now_s += 10
    off.loop.once()
    assert {q.rows for q in off.loop.report.qualities if q.variant == "river"} == {0}


def test_offsets_that_come_again_after_the_broker_lost_its_tail_are_planned_and_skipped(caplog: pytest.LogCaptureFixture) -> None:
    messages = some(4)
    bench = Bench(messages).run()
    new = rehearsal.message(SETTINGS, 3, seed=77, lists=6)
    bench.source.messages = [messages[2], new]
    with caplog.at_level(logging.CRITICAL):
        bench.run()
    record = bench.log.records[-1]
    assert record.ranges == (("episodes", 0, 2, 4),)
    assert {s[2] for s in record.skipped} == {2}
    assert bench.loop.seen.arrays()["keys"].size == lists_of([*messages, new])


def test_a_message_that_fits_the_layout_of_its_configuration_is_what_rehearsal_makes() -> None:
    packed, names = episodes.decode(some(1)[0].value, layout_of(SETTINGS))
    assert names == ({ids.of("even"): "even", ids.of("odd"): "odd"}, {})
    assert packed["ids"].shape[1] == 2


def test_a_switch_holds_from_the_first_step_of_its_fetch_on_and_is_planned_with_it() -> None:
    class Watching(rehearsal.MemoryLog):
        def write(self, record: bytes, letters: Sequence[DeadLetter], notes: Sequence[Note] = ()) -> None:
            super().write(record, letters, notes)
            modes_then.append(bench.loop.trainer.modes.default)

    modes_then: list[int] = []
    bench = Bench([], log=Watching())
    bench.source.messages = [*some(2), switch(0, "off"), rehearsal.message(SETTINGS, 2, seed=2), *some(5)[3:]]
    bench.run()
    assert [r.switches for r in bench.log.records] == [(), (("*", "off"),), ()]
    assert bench.log.records[1].ranges == (("control", 0, 0, 1), ("episodes", 0, 2, 3))
    assert modes_then == [modes.ON, modes.ON, modes.OFF], "planned before it is applied"
    from_then_on = Bench(some(2)).run()
    from_then_on.loop.trainer.set_meta(None, "off")
    from_then_on.source.messages = [rehearsal.message(SETTINGS, 2, seed=2)]
    from_then_on.run()
    from_then_on.source.messages = some(5)[3:]
    from_then_on.run()
    np.testing.assert_array_equal(bench.loop.trainer.dense, from_then_on.loop.trainer.dense)
    assert not np.array_equal(bench.loop.trainer.dense, Bench(some(5)).run().loop.trainer.dense)


def test_a_switch_without_any_episode_is_planned_and_reaches_the_next_snapshot() -> None:
    bench = Bench(some(2)).run()
    bench.now_s += 60
    bench.source.messages = [switch(0, "off", "even"), switch(1, "off", "elsewhere")]
    bench.run()
    record = bench.log.records[-1]
    assert (record.first_step - 1, record.last_step, record.rows) == (bench.loop.step, bench.loop.step, 0)
    assert bench.loop.trainer.modes.own == {ids.of("even"): modes.OFF, ids.of("elsewhere"): modes.OFF}
    manifest, parts = bench.writer.snapshots[-1]
    assert ("control", 0, 2) in manifest.offsets
    served = modes.Modes(SETTINGS.meta)
    served.load(parts["serving"])
    assert (served.code(ids.of("even")), served.code(ids.of("odd"))) == (modes.OFF, modes.ON)
    bench.now_s += 60
    bench.loop.once()
    assert bench.loop.report.meta == {"*": "on", "even": "off", "odd": "on", str(ids.of("elsewhere")): "off"}


def test_a_switch_that_is_none_is_dead_lettered_and_the_rest_of_the_fetch_counts(caplog: pytest.LogCaptureFixture) -> None:
    junk = switch(0, "off")._replace(value=b'{"scenario": "even", "mode": "sometimes", "wall_ms": 0}')
    with caplog.at_level(logging.CRITICAL):
        bench = Bench([junk, switch(1, "off", "odd"), *some(1)]).run()
    assert [(d.message, d.letter.reason, d.letter.origin_topic) for d in bench.log.letters] == [(junk, plan.MALFORMED, "control")]
    assert plan.consumed(bench.log.records).skipped == {("control", 0, 0, -1): plan.MALFORMED}
    assert bench.loop.counts.dead_letters == {plan.MALFORMED: 1}
    assert bench.loop.trainer.modes.own == {ids.of("odd"): modes.OFF}
    assert bench.loop.step > 0


def fetches(records: Sequence[plan.Record], messages: Sequence[episodes.Message]) -> list[list[episodes.Message]]:
    """What the plan says that each fetch held."""
    within = [{(t, p): range(first, last) for t, p, first, last in r.ranges} for r in records]
    return [[m for m in messages if m.offset in ranges.get((m.topic, m.partition), ())] for ranges in within]


@hypothesis_settings(max_examples=12)
@given(st.lists(st.tuples(st.integers(0, 8), st.sampled_from(modes.NAMES), st.sampled_from(["*", "even", "odd"])), max_size=4))
def test_the_plan_repeats_a_run_with_its_switches_to_the_last_bit(history: list[tuple[int, control.Mode, str]]) -> None:
    messages = some(8, lists=3)
    for offset, (place, mode, scenario) in enumerate(sorted(history, key=lambda h: h[0])):
        messages.insert(place + offset, switch(offset, mode, scenario))
    live = Bench(messages).run()
    again = Bench([])
    for held in fetches(live.log.records, messages):
        again.source.messages = held
        again.loop.once()
    same(again.state(), live.state())
    assert [r.switches for r in again.log.records] == [r.switches for r in live.log.records]
    assert sum(len(r.switches) for r in live.log.records) == len(history)


@pytest.mark.parametrize("rounds", [1, 2, 3, 4])
def test_a_restart_resumes_with_the_modes_of_its_snapshot_and_reads_only_later_switches(rounds: int) -> None:
    messages = some(8)
    messages[3:3] = [switch(0, "off", "odd")]
    messages[6:6] = [switch(1, "fine_tune_only")]
    straight = Bench(messages).run()
    crashed = Bench(messages).run(rounds)
    crashed.loop.publish()
    saved = crashed.writer.snapshots[-1]
    crashed.run(1)
    after = resumed(messages, saved, crashed.log).run()
    same(after.state(), straight.state())
    kept, superseded = plan.effective(crashed.log.records)
    assert superseded == 1
    assert [switch for r in kept for switch in r.switches] == [("odd", "off"), ("*", "fine_tune_only")]
    assert plan.consumed(crashed.log.records).ranges["control", 0] == [(0, 2)]


AUTO = TEXT.replace("[features]", '[meta]\nmode = "auto"\nauto_alarm_rate = 0.5\ninner_rate = 2.0\n[features]')


def gaining(count: int) -> list[episodes.Message]:
    """Lists of users who say the same to everything, with support that tells what."""
    out = []
    for message in some(count, lists=24):
        head, packed = columns.unpack(message.value)
        likes = (packed["user"] % 4 < 2).astype("<f4")
        packed = dict(packed)
        packed["label"] = np.repeat(likes, packed["n_items"]).reshape(-1, 1)
        packed["s_label"] = np.repeat(likes, packed["n_support"]).reshape(-1, 1)
        packed["ids"] = packed["ids"] * 0 + 1
        out.append(message._replace(value=columns.pack(packed, **head)))
    return out


def test_auto_turns_on_what_gains_and_says_so_in_plan_control_snapshot_and_report() -> None:
    bench = Bench(gaining(60), config.parse(AUTO))
    assert bench.loop.trainer.modes.code(ids.of("even")) == modes.OFF, "serving waits for evidence"
    bench.run()
    decisions = [(r.sequence, *decision) for r in bench.log.records for decision in r.decisions]
    assert {(name, on) for _, name, _, on in decisions} == {("even", True), ("odd", True)}
    told = [control.decode_decision(value) for _, value in bench.log.notes]
    assert [(d.sequence, d.scenario, d.on) for d in told] == [(sequence, name, on) for sequence, name, _, on in decisions]
    assert all(control.is_decision(key) for key, _ in bench.log.notes)
    assert [d.first_step for d in told] == [bench.log.records[d.sequence].first_step for d in told]
    bench.loop.publish()
    served = modes.Modes(config.parse(AUTO).meta)
    served.load(bench.writer.snapshots[-1][1]["serving"])
    assert (served.code(ids.of("even")), served.code(ids.of("odd"))) == (modes.ON, modes.ON)
    bench.now_s += 60
    bench.loop.once()
    assert bench.loop.report.meta == {"*": "auto", "even": "auto", "odd": "auto"}
    assert {name: judged.on for name, judged in bench.loop.report.auto.items()} == {"even": True, "odd": True}


def test_auto_learns_as_if_off_until_it_is_on_without_a_trial_and_with_one_otherwise() -> None:
    text = AUTO.replace("auto_alarm_rate = 0.5", "auto_alarm_rate = 1e-9")
    settings = config.parse(text.replace("auto_alarm_rate", "auto_trial_share = 0.0\nauto_alarm_rate"))
    waiting, tuned = Bench(gaining(4), settings).run(), Bench(gaining(4), config.parse(AUTO.replace('"auto"', '"off"'))).run()
    assert not waiting.loop.measures.policy.scenarios[ids.of("even")].on
    np.testing.assert_array_equal(waiting.loop.trainer.dense, tuned.loop.trainer.dense)
    on_trial = Bench(gaining(4), config.parse(text.replace("auto_alarm_rate", "auto_trial_share = 1.0\nauto_alarm_rate"))).run()
    assert not on_trial.loop.measures.policy.scenarios[ids.of("even")].on
    assert on_trial.loop.trainer.modes.granted == set()
    assert (on_trial.loop.trainer.dense != tuned.loop.trainer.dense).any()


@pytest.mark.parametrize("rounds", [3, 20])
def test_decisions_are_repeated_from_the_plan_and_after_a_restart_to_the_last_bit(rounds: int) -> None:
    settings, messages = config.parse(AUTO), gaining(44)
    messages[12:12] = [switch(0, "off", "odd")]
    key, value = control.encode_decision(control.Decision(scenario="odd", on=True, first_step=1, sequence=0, wall_ms=0))
    messages[16:16] = [switch(1, "auto", "odd"), episodes.Message(SETTINGS.topics.control, 0, 2, key, value)]
    live, crashed = Bench(messages, settings).run(), Bench(messages, settings).run(rounds)
    crashed.loop.publish()
    after = Bench([], settings, crashed.log)
    manifest, parts = crashed.writer.snapshots[-1]
    crashed.run(2)
    after.loop.load(manifest, {name: array.copy() for arrays in parts.values() for name, array in arrays.items()})
    after.source.messages = [m for m in messages if m.offset >= after.loop.offsets.get((m.topic, m.partition), 0)]
    same(after.run().state(), live.state())
    again = Bench([], settings)
    for held in fetches(live.log.records, messages):
        again.source.messages = held
        again.loop.once()
    same(again.state(), live.state())
    decided = [r.decisions for r in live.log.records]
    assert sum(map(len, decided)) >= 2
    assert decided == [r.decisions for r in again.log.records] == [r.decisions for r in plan.effective(crashed.log.records)[0]]


def test_a_switch_to_auto_begins_with_nothing_and_one_away_from_it_ends_it() -> None:
    bench = Bench(gaining(60), config.parse(AUTO)).run()
    assert ids.of("odd") in bench.loop.trainer.modes.granted
    bench.source.messages = [switch(0, "off", "odd")]
    bench.run()
    bench.source.messages = [switch(1, "auto", "odd")]
    bench.run()
    assert bench.loop.trainer.modes.code(ids.of("odd")) == modes.OFF
    assert list(bench.loop.measures.policy.scenarios) == [ids.of("even")]
    assert bench.loop.trainer.modes.code(ids.of("even")) == modes.ON


def test_scenarios_without_a_slot_are_named_in_the_log_and_their_rows_reported(caplog: pytest.LogCaptureFixture) -> None:
    text = TEXT.replace('source = "item_id" }', 'source = "item_id" }, { name = "scenario", source = "scenario" }')
    settings = config.parse(text.replace("[scenarios]", "[scenarios]\nslots = 1"))
    at = [c.name for c in settings.features.categories].index("scenario")
    messages = []
    for offset in range(4):
        made = rehearsal.message(settings, offset, seed=offset)
        head, packed = columns.unpack(made.value)
        packed = {name: array.copy() for name, array in packed.items()}
        packed["ids"][:, at] = np.repeat(packed["scenario"], packed["n_items"])
        messages.append(made._replace(value=columns.pack(packed, spec=head["spec"], scenarios=head["scenarios"])))
    with caplog.at_level(logging.WARNING, "learner.slot_watch"):
        loop = Bench(messages, settings).run().loop
    loop._report(0.0)
    assert [r.getMessage().split(" gets ")[0] for r in caplog.records] in (["scenario odd"], ["scenario even"])
    rows = int(loop.trainer.slots.rows[0])
    assert 0 < rows < loop.trained_rows
    assert loop.report.room == (1, 1, rows)
