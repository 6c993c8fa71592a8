"""What the learner leaves for serving: its trunk's view of the rows that it trained on, and how far that trunk has moved."""

import numpy as np
import pytest

from learner import meta_inputs, publishing, rehearsal, step
from learner.loop import Clock, Loop, Origin
from models import base, scorer
from serving import scoring
from state import columns, config, meta_supports, supports
from tests import minibatches

SETTINGS = minibatches.settings(
    support={"mode": "meta_inputs", "size": 6, "max_age_s": 1e6},
    learner={"rows_per_step": 12, "fetch_messages": 2, "dedup_rows": 2048, "window_rows": 100},
    embedding={"capacity": 1024},
    meta={"inner_rate": 0.5},
)


class Bench:
    """A loop with a store of sets in this process."""

    def __init__(self, store: meta_inputs.MemoryStore | None = None, settings: config.Config = SETTINGS) -> None:
        self.store, self.writer = store or meta_inputs.MemoryStore(), rehearsal.MemoryWriter()
        publisher = publishing.Publisher(self.writer, lambda _: None, settings.snapshot)
        self.source = rehearsal.MemorySource(rehearsal.message(settings, i, seed=i) for i in range(6))
        origin = Origin("test", 77)
        self.loop = Loop(
            settings, self.source, rehearsal.MemoryLog(), publisher, Clock(lambda: 5, lambda: 5.0), origin, self.store
        )

    def run(self) -> "Bench":
        while self.loop.once():
            pass
        return self

    @property
    def keeper(self) -> meta_inputs.Keeper:
        assert self.loop.keeper is not None
        return self.loop.keeper

    def sets(self) -> dict[int, supports.Rows]:
        layout = meta_supports.layout(SETTINGS, self.keeper.shape)
        found = {task: supports.unpack(layout, value) for task, value in self.store.sets.items()}
        return {task: rows for task, rows in found.items() if rows is not None}

    def published(self) -> scorer.Scorer:
        self.loop.publish()
        return scorer.Scorer(SETTINGS, self.writer.snapshots[-1][1]["serving"])


def test_every_row_that_was_trained_on_becomes_support_of_its_task_up_to_the_newest_k() -> None:
    bench, rows = Bench().run(), dict[int, list[tuple[int, float]]]()
    for i in range(6):
        _, c = columns.unpack(rehearsal.message(SETTINGS, i, seed=i).value)
        of = np.repeat(np.arange(len(c["task"])), c["n_items"])
        for r, place in enumerate(of.tolist()):
            rows.setdefault(int(c["task"][place]), []).append((int(c["ts"][place]), float(c["label"][r, 0])))
    held = bench.sets()
    assert held.keys() == rows.keys()
    for task, found in held.items():
        newest = sorted(t for t, _ in rows[task])[-6:]
        assert found["ts"].tolist() == newest
    assert bench.keeper.rows == bench.loop.counts.support_rows == sum(map(len, rows.values()))


def test_meta_inputs_are_those_of_the_published_trunk_and_give_the_scores_that_features_give() -> None:
    settings, trainer = SETTINGS, step.Trainer(SETTINGS)
    for i in range(3):
        trainer.step(minibatches.minibatch(settings, i), i)
    model = scorer.Scorer(settings, {name: trainer.arrays()[name] for name in trainer.serving_names})
    generator = np.random.default_rng(2)
    ids, x, _ = minibatches.rows(settings, generator, 9, 3, 1)
    raw = base.Support(*minibatches.rows(settings, generator, 6, 3, 1))
    found = trainer.trunk(raw.ids, raw.x)
    known = base.Known(found.hidden.numpy(), found.gate.numpy(), found.offset.numpy(), found.shift.numpy(), raw.label)
    one, other = model.score(ids, x, 1, raw), model.score(ids, x, 1, known)
    assert other.adapted == pytest.approx(one.adapted, abs=1e-5)
    assert other.adapted_on == 6
    assert np.abs(one.adapted - one.plain).max() > 1e-3


def test_a_packed_row_gives_its_meta_inputs_back() -> None:
    shape = meta_supports.Shape(2, 5, 3, 1)
    layout = meta_supports.layout(minibatches.settings(2), shape)
    generator = np.random.default_rng(0)
    parts = meta_supports.Parts(*(generator.standard_normal((4, 2, *w)).astype(np.float32) for w in ((5,), (3,), (), (1,))))
    rows = meta_supports.rows_of(layout, meta_supports.Trunk(9, 0.25, 3), parts)
    back = supports.unpack(layout, supports.pack(layout, rows))
    assert back is not None
    for one, other in zip(meta_supports.parts_of(back, shape), parts, strict=True):
        np.testing.assert_array_equal(one, other)
    assert back["ids"].tolist() == [[3, 9]] * 4


def test_the_odometer_moves_with_the_trunk_and_rows_that_it_left_behind_are_not_compatible() -> None:
    bench = Bench()
    bench.loop.once()
    bench.loop.publish()
    before = bench.keeper.trunk
    for _ in range(5):
        bench.loop.once()
    bench.published()
    after = bench.keeper.trunk
    assert after.moved > before.moved == 0.0
    assert after.step > before.step > 0
    rows = np.concatenate(list(bench.sets().values()))
    old = rows["ids"][:, meta_supports.STEP] <= before.step
    assert old.any()
    assert meta_supports.compatible(rows, after, 1e6).all()
    assert not meta_supports.compatible(rows[old], after, after.moved / 2).any()
    assert meta_supports.compatible(rows[rows["x"][:, 0] == np.float32(after.moved)], after, 1e-9).all()
    assert not meta_supports.compatible(rows, after._replace(lineage=78), 1e6).any()


def test_serving_uses_what_the_learner_left_and_ignores_and_counts_what_does_not_fit() -> None:
    bench = Bench().run()
    model, engine = bench.published(), scoring.Scoring(SETTINGS)
    layout = meta_supports.layout(SETTINGS, bench.keeper.shape)
    task, rows = next((t, r) for t, r in bench.sets().items() if len(r) == 6)
    now_ms = int(rows["ts"][-1])
    known, ignored = engine._support(model, bench.store.sets[task], now_ms + 1)
    assert known is not None
    assert (len(known.label), ignored) == (6, scoring.Ignored())
    np.testing.assert_array_equal(known.label, rows["label"])
    _, ignored = engine._support(model, bench.store.sets[task], now_ms)
    assert ignored.future == (rows["ts"] == now_ms).sum()
    other = rows.copy()
    other["ids"][:2, meta_supports.LINEAGE] += 1
    other["x"][2, meta_supports.MOVED] += 1e3
    known, ignored = engine._support(model, supports.pack(layout, other), now_ms + 1)
    assert known is not None
    assert (len(known.label), ignored.stale) == (3, 3)
    foreign = meta_supports.layout(minibatches.settings(model={"hidden": (12, 6)}), bench.keeper.shape._replace(gate=6))
    assert engine._support(model, supports.pack(foreign, np.zeros(2, foreign.dtype)), 1) == (None, scoring.Ignored(foreign=1))
    model.trunk = None
    assert engine._support(model, bench.store.sets[task], now_ms + 1) == (None, scoring.Ignored(stale=6))


def test_a_restart_goes_on_with_the_same_trunk_lineage_and_odometer() -> None:
    bench = Bench()
    for _ in range(3):
        bench.loop.once()
    bench.loop.publish()
    manifest, parts = bench.writer.snapshots[-1]
    again = Bench(bench.store)
    again.loop.load(manifest, {name: array.copy() for arrays in parts.values() for name, array in arrays.items()})
    assert again.keeper.trunk == bench.keeper.trunk
    again.source.messages = list(bench.source.messages)
    bench.run()
    again.run()
    bench.loop.publish()
    again.loop.publish()
    assert again.keeper.trunk == bench.keeper.trunk


def test_a_store_that_is_away_is_counted_and_learning_goes_on() -> None:
    class Away(meta_inputs.MemoryStore):
        def read(self, tasks: supports.U64) -> list[bytes | None]:
            self.failures += 1
            return [None] * len(tasks)

    bench = Bench(Away()).run()
    assert bench.loop.counts.support_failures > 0
    assert bench.loop.trained_rows > 0


def test_sets_of_another_model_are_reported_and_start_empty() -> None:
    bench = Bench()
    other = meta_supports.layout(SETTINGS, bench.keeper.shape._replace(gate=6))
    left = supports.pack(other, np.zeros(2, other.dtype))
    bench.store.sets = dict.fromkeys(range(1, 21), left)
    bench.run()
    bench.loop._report(0.0)
    assert bench.loop.report.counts.foreign_supports == bench.keeper.foreign == len(bench.sets()) > 10
